"""Tables: their columns, the wordings of each column's name and conditions, and values to fill them with."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from lora_zoo.pocket import grammar
from lora_zoo.pocket.grammar import words

Kind = Callable[[random.Random, str], str]


def _one_of(values: list[str]) -> Kind:
    return lambda rng, split: rng.choice(values)


def _person(rng: random.Random, split: str) -> str:
    return rng.choice(grammar.people(split))


def _title(rng: random.Random, split: str) -> str:
    return rng.choice(grammar.titles(split))


@dataclass(frozen=True)
class Column:
    """A table column; `over` and `under` are empty for columns that have no order."""

    name: str
    synonym: str
    kind: Kind
    equal: str
    over: str = ""
    under: str = ""

    @property
    def names_entity(self) -> bool:
        """True if its values are person names or titles, which differ between splits."""
        return self.kind in (_person, _title)


_number, _year, _color = _one_of(grammar.NUMBERS), _one_of(grammar.YEARS), _one_of(grammar.COLORS)
_city, _country = _one_of(list(grammar.COUNTRY_OF)), _one_of(grammar.COUNTRIES)
_thing = _one_of(list(grammar.CATEGORY_OF))

_genre = _one_of(words("comedy drama western thriller musical horror"))
_team = _one_of(words("hawks lions bears sharks eagles wolves"))
_position = _one_of(words("keeper defender striker winger center guard"))
_publisher = _one_of(words("acorn beacon compass falcon orchid summit"))
_language = _one_of(words("english french german italian spanish polish"))
_job = _one_of(words("nurse teacher driver cook lawyer painter"))
_department = _one_of(words("sales research finance legal support design"))

_ALL = [
    Column("name", "person", _person, "known as"),
    Column("title", "heading", _title, "called"),
    Column("director", "filmmaker", _person, "directed by"),
    Column("author", "writer", _person, "written by"),
    Column("singer", "vocalist", _person, "sung by"),
    Column("boss", "manager", _person, "reporting to"),
    Column("captain", "skipper", _person, "led by"),
    Column("album", "record", _title, "taken from"),
    Column("country", "nation", _country, "based in"),
    Column("city", "town", _city, "situated in"),
    Column("harbor", "port", _city, "docked in"),
    Column("genre", "style", _genre, "classed as"),
    Column("team", "squad", _team, "playing for"),
    Column("position", "role", _position, "playing as"),
    Column("publisher", "press", _publisher, "issued by"),
    Column("language", "tongue", _language, "written in"),
    Column("job", "profession", _job, "working as"),
    Column("department", "division", _department, "employed in"),
    Column("cargo", "freight", _thing, "carrying"),
    Column("color", "paint", _color, "painted"),
    Column("year", "date", _year, "made in", "made after", "made before"),
    Column("length", "duration", _number, "lasting", "longer than", "briefer than"),
    Column("rating", "grade", _number, "rated", "rated above", "rated below"),
    Column("points", "score", _number, "scoring", "scoring over", "scoring under"),
    Column("age", "maturity", _number, "aged", "older than", "younger than"),
    Column("weight", "mass", _number, "weighing", "heavier than", "lighter than"),
    Column("pages", "sheets", _number, "containing", "thicker than", "thinner than"),
    Column("price", "cost", _number, "costing", "costing over", "costing under"),
    Column("salary", "pay", _number, "earning", "earning over", "earning under"),
    Column("speed", "pace", _number, "moving at", "faster than", "slower than"),
    Column("crew", "staff", _number, "manned by", "manned by over", "manned by under"),
]
COLUMNS = {column.name: column for column in _ALL}
_DOMAINS = {
    "film": "title director year country genre length rating",
    "player": "name team country points age position weight",
    "book": "title author publisher year pages price language",
    "song": "title singer album year length genre price",
    "worker": "name job city salary age department boss",
    "ship": "captain harbor cargo speed crew country color",
}
DOMAINS = {domain: [COLUMNS[name] for name in words(names)] for domain, names in _DOMAINS.items()}


def table(rng: random.Random) -> tuple[str, list[Column]]:
    """A table's name and its four or five columns in random order."""
    domain = rng.choice(list(DOMAINS))
    return domain, rng.sample(DOMAINS[domain], rng.choice((4, 5)))


def header(domain: str, columns: list[Column]) -> str:
    return f"table {domain} : " + " | ".join(column.name for column in columns)
