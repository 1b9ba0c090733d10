"""A variant's hyperparameters: the keyword-only arguments of its class and hooks, checked and counted."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from lora_zoo.core.errors import unknown


def hyperparameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """A variant's hyperparameters: the keyword-only arguments of its class and of its hooks.

    ValueError where class and hooks mean two things by one name: another type or another default.
    """
    own, of_hooks = (
        {p.name: p.replace(default=cls.defaults[p.name]) if p.name in cls.defaults else p for p in found}
        for found in map(_keywords, (cls, cls.hooks))
    )
    if two := [key for key, p in of_hooks.items() if own.get(key, p) != p]:
        raise ValueError(
            f"{cls.name}: its class and its hooks mean two things by {two[0]}; rename one of them"
        )
    return own | of_hooks


def _keywords(cls: type[Any]) -> Iterator[inspect.Parameter]:
    """The keyword-only arguments of a constructor, with their types, and of those to which it passes `**` on.

    A name that a derived class takes again is the derived class's.
    """
    taken: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        every, passes_on = _keywords_of(vars(base)["__init__"])
        own = [p for p in every if p.name not in taken]
        yield from own
        taken |= {p.name for p in own}
        if not passes_on:
            return


@functools.cache
def _keywords_of(constructor: Callable[..., None]) -> tuple[list[inspect.Parameter], bool]:
    """The keyword-only arguments of one constructor, with their types; True if it takes `**`."""
    parameters = inspect.signature(constructor).parameters.values()
    hints = typing.get_type_hints(constructor, include_extras=True)
    own = [p.replace(annotation=hints.get(p.name, Any)) for p in parameters if p.kind is p.KEYWORD_ONLY]
    return own, any(p.kind is p.VAR_KEYWORD for p in parameters)


def keywords(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a class's constructor, with their types."""
    return {p.name: p for p in _keywords(cls)}


def counted(cls: type[Any], shape: tuple[int, int], hyper: Mapping[str, Any]) -> int:
    """The trainable parameters on one matrix (O, I), by the variant's own formula `count`."""
    O, I = shape
    names = {
        "ceil": math.ceil,
        "min": min,
        "len": len,
        "role": "",
        **hyper,
        "O": O,
        "I": I,
        "R": hyper.get("rank"),
    }
    return int(eval(cls.count, {"__builtins__": {}}, names)) if cls.count else 0


def accepted(cls: type[Any], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `hyper` that the constructor of `cls` takes as keyword-only arguments."""
    return {p.name: hyper[p.name] for p in _keywords(cls) if p.name in hyper}


def check_hyperparameters(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` completed with defaults, each value of its declared type. ValueError for people otherwise."""
    return checked(cls.name, hyperparameters(cls), given)


def checked(
    name: str,
    known: Mapping[str, inspect.Parameter],
    given: Mapping[str, Any],
    *,
    kind: str = "hyperparameter",
) -> dict[str, Any]:
    """`given` completed with the defaults of the `known` arguments of `name`. ValueError as above."""
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{name}: " + unknown(kind, key, known))
        if not fits(value, known[key].annotation):
            raise ValueError(f"{name}: {key} must be {type_words(known[key].annotation)}; got {value!r}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in given]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} must be given")
    return {key: given.get(key, p.default) for key, p in known.items()}


def fits(value: Any, hint: Any) -> bool:
    """True if `value` is of the type `hint` (int passes for float; bool passes for neither)."""
    if hint is Any:
        return True
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        base, form = typing.get_args(hint)
        return fits(value, base) and bool(form.pattern.fullmatch(value))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, (list, tuple)) and all(fits(v, typing.get_args(hint)[0]) for v in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def type_words(hint: Any) -> str:
    """A type hint in words."""
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is Annotated:
        return str(typing.get_args(hint)[1].words)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(type_words(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Sequence:
        return f"a list, each {type_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is Mapping:
        return "keys with values"
    words = {"int": "an integer", "float": "a number", "str": "a string", "bool": "true or false"}
    return (words | {"NoneType": "None"}).get(getattr(hint, "__name__", ""), str(hint))
