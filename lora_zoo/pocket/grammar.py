"""The closed world that pretraining and both tasks talk about: entities, facts, and who is held out.

Every word is one token. 80 % of person names and titles belong to the split `train` (and to pretraining),
10 % each to `validation` and `test`, so a held-out example cannot be answered from memory.
"""

import hashlib
import itertools
from collections.abc import Iterable
from functools import cache

SPLITS = ("train", "validation", "test")


def words(text: str) -> list[str]:
    return text.split()


FIRST = words(
    "adam alan alice anna arthur bella boris carla chris clara daniel david diana edgar elena emma eric "
    "felix fiona frank george grace hannah helen henry irene ivan jack jane julia karin kevin laura leo "
    "linda lucas maria martin nina oscar paula peter rosa simon sofia thomas vera walter"
)
LAST = words(
    "abbott archer baker barnes bishop brooks carter chapman clark cooper dalton dixon ellis farmer "
    "fisher foster gibson grant hansen harper hughes jensen keller knight lambert larsen mason meyer "
    "miller morgan murray nolan norris osborne palmer parker porter reed sawyer shaw stone taylor "
    "turner wagner walsh weaver woods young"
)
TITLE_HEAD = words(
    "silent golden broken hidden frozen burning distant empty gentle crimson lonely midnight ancient "
    "savage endless velvet bitter wandering scarlet paper"
)
TITLE_TAIL = words(
    "river mountain garden mirror shadow kingdom harvest lantern ocean bridge forest thunder desert "
    "island promise feather journey castle window meadow"
)

CITIES = {
    "canada": ("toronto", "montreal", "calgary", "ottawa"),
    "france": ("paris", "lyon", "nice", "lille"),
    "germany": ("berlin", "munich", "hamburg", "cologne"),
    "italy": ("rome", "milan", "naples", "turin"),
    "spain": ("madrid", "seville", "valencia", "bilbao"),
    "japan": ("tokyo", "osaka", "kyoto", "nagoya"),
    "brazil": ("recife", "salvador", "brasilia", "manaus"),
    "india": ("delhi", "mumbai", "chennai", "kolkata"),
    "egypt": ("cairo", "luxor", "aswan", "giza"),
    "kenya": ("nairobi", "mombasa", "kisumu", "nakuru"),
    "norway": ("oslo", "bergen", "tromso", "stavanger"),
    "poland": ("warsaw", "krakow", "gdansk", "poznan"),
}
THINGS = {
    "animal": words("dog cat horse cow goat sheep rabbit duck"),
    "vehicle": words("car truck bus tram bicycle scooter van tractor"),
    "fruit": words("pear plum peach lemon mango cherry melon fig"),
    "tool": words("hammer axe drill wrench chisel shovel rake pliers"),
    "instrument": words("piano violin guitar flute trumpet drum harp cello"),
    "garment": words("shirt coat scarf hat jacket dress glove belt"),
    "weapon": words("sword spear dagger bow lance pistol rifle cannon"),
    "container": words("box bag basket bottle bucket jar barrel crate"),
}
SEASONS = {
    "spring": ("march", "april", "may"),
    "summer": ("june", "july", "august"),
    "autumn": ("september", "october", "november"),
    "winter": ("december", "january", "february"),
}
COLORS = words("red blue green yellow black white brown purple")
# Two wordings of one action, each as (past, base form).
VERBS = (
    (("bought", "buy"), ("purchased", "purchase")),
    (("found", "find"), ("discovered", "discover")),
    (("saw", "see"), ("noticed", "notice")),
    (("repaired", "repair"), ("fixed", "fix")),
    (("carried", "carry"), ("hauled", "haul")),
    (("lost", "lose"), ("misplaced", "misplace")),
    (("cleaned", "clean"), ("washed", "wash")),
    (("chose", "choose"), ("selected", "select")),
)
# Two wordings of one relation between a person and a place, each as (third person, base form).
RELATIONS = (
    (("lives", "live"), ("resides", "reside")),
    (("works", "work"), ("labors", "labor")),
    (("studies", "study"), ("trains", "train")),
)
NUMBERS = [str(number) for number in range(1, 100)]
YEARS = [str(year) for year in range(1960, 2010)]
COUNTRIES = list(CITIES)
COUNTRY_OF = {city: country for country, cities in CITIES.items() for city in cities}
CATEGORY_OF = {thing: category for category, things in THINGS.items() for thing in things}
SEASON_OF = {month: season for season, months in SEASONS.items() for month in months}


def share(text: str) -> int:
    """A number in 0..9 that depends on the text alone, the same in every process and Python version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 10


def split_of(text: str) -> str:
    return {0: "validation", 1: "test"}.get(share(text), "train")


@cache
def people(split: str) -> list[str]:
    return _of_split(itertools.product(FIRST, LAST), split)


@cache
def titles(split: str) -> list[str]:
    return _of_split(itertools.product(TITLE_HEAD, TITLE_TAIL), split)


def _of_split(pairs: Iterable[tuple[str, str]], split: str) -> list[str]:
    return [name for name in map(" ".join, pairs) if split_of(name) == split]
