"""Events of which some follow from others, and the sentences that state or ask for them."""

import random
from dataclasses import dataclass, replace

from lora_zoo.pocket import grammar


@dataclass(frozen=True)
class Statement:
    """One sentence as a declaration and, where English has it, as a plain question."""

    sentence: str
    question: str = ""


@dataclass(frozen=True)
class Event:
    """Somebody did something; each optional part makes the event more specific."""

    who: str
    verb: int
    thing: str
    color: str = ""
    place: str = ""
    time: str = ""

    def claim(self, rng: random.Random, negated: bool = False) -> Statement:
        past, base = rng.choice(grammar.VERBS[self.verb])
        noun = f"{self.color} {self.thing}".strip()
        rest = with_article(noun) + (self.place and f" in {self.place}") + (self.time and f" in {self.time}")
        if negated:
            return Statement(f"{self.who} did not {base} {rest}")
        return Statement(f"{self.who} {past} {rest}", f"did {self.who} {base} {rest}")

    def weaker(self) -> list["Event"]:
        """Events that follow from this one, one step less specific."""
        steps = [replace(self, color="")] if self.color else []
        if self.thing in grammar.CATEGORY_OF:
            steps.append(replace(self, thing=grammar.CATEGORY_OF[self.thing]))
        if self.place:
            steps.append(replace(self, place=grammar.COUNTRY_OF.get(self.place, "")))
        if self.time:
            steps.append(replace(self, time=grammar.SEASON_OF.get(self.time, "")))
        return steps

    def stronger(self, rng: random.Random) -> list["Event"]:
        """Events from which this one follows, one step more specific."""
        steps = [] if self.color else [replace(self, color=rng.choice(grammar.COLORS))]
        if self.thing in grammar.THINGS:
            steps.append(replace(self, thing=rng.choice(grammar.THINGS[self.thing])))
        if self.place in grammar.CITIES:
            steps.append(replace(self, place=rng.choice(grammar.CITIES[self.place])))
        if self.time in grammar.SEASONS:
            steps.append(replace(self, time=rng.choice(grammar.SEASONS[self.time])))
        return steps

    def other(self, rng: random.Random) -> list["Event"]:
        """Events that neither follow from this one nor imply it."""
        steps = [replace(self, verb=(self.verb + rng.randrange(1, len(grammar.VERBS))) % len(grammar.VERBS))]
        steps.append(replace(self, thing=_another(rng, _peers(self.thing), self.thing)))
        if self.color:
            steps.append(replace(self, color=_another(rng, grammar.COLORS, self.color)))
        if self.place:
            steps.append(replace(self, place=_another(rng, _peers(self.place), self.place)))
        if self.time:
            steps.append(replace(self, time=_another(rng, _peers(self.time), self.time)))
        return steps


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_GROUPS = (
    list(grammar.CATEGORY_OF),
    list(grammar.THINGS),
    list(grammar.COUNTRY_OF),
    list(grammar.CITIES),
    list(grammar.SEASON_OF),
    list(grammar.SEASONS),
)


def _peers(word: str) -> list[str]:
    return next(group for group in _GROUPS if word in group)


def _another(rng: random.Random, words: list[str], word: str) -> str:
    return rng.choice([other for other in words if other != word])


def event(rng: random.Random, split: str) -> Event:
    """An event with zero to two of its optional parts, so that there is room to weaken and to strengthen."""
    who = rng.choice(grammar.people(split))
    thing = rng.choice(list(grammar.CATEGORY_OF) if rng.random() < 0.6 else list(grammar.THINGS))
    parts = {
        "color": rng.choice(grammar.COLORS),
        "place": rng.choice(list(grammar.COUNTRY_OF) if rng.random() < 0.6 else grammar.COUNTRIES),
        "time": rng.choice(list(grammar.SEASON_OF) if rng.random() < 0.6 else list(grammar.SEASONS)),
    }
    kept = rng.sample(list(parts), rng.choice((0, 1, 1, 2)))
    return Event(who, rng.randrange(len(grammar.VERBS)), thing, **{part: parts[part] for part in kept})
