"""What users hand to public functions, held against the annotations there.

`checked` is all that a function needs: an argument of another kind is an `InputError`
that names it. What a list holds is looked at where it is read, by `sentence_words`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import numbers
import operator
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np

from elmojax.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
Take = Callable[[Any], Any]
"""A value as its kind has it; one of REFUSALS for a value of another kind."""
REFUSALS = (ValueError, TypeError, OverflowError)

NO_LIST = (str, bytes, bytearray, Mapping, set, frozenset)
"""Can be gone through, and are no list of anything."""


SEVERAL = inspect.Parameter.VAR_POSITIONAL
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


class Range(NamedTuple):
    """Of a number, or of the length of a tuple: bounds that stand in its type."""

    least: float
    most: float
    infinite: bool = False
    """Whether math.inf is good too."""

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most or (self.infinite and value == math.inf)

    def __str__(self) -> str:
        least, most = (
            f"{bound:g}" if isinstance(bound, float) else bound for bound in self[:2]
        )
        return f"from {least} to {most}{', or inf' * self.infinite}"


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, which refuses arguments that are not what its annotations say."""
    signature, owner = inspect.signature(function), inspect.unwrap(function)

    @cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(owner, include_extras=True)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        known = hints()
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            several = signature.parameters[name].kind is SEVERAL
            for each in value if several else (value,):
                require(name, each, known.get(name, Any))
        return function(*args, **kwargs)

    return call


def require(name: str, value: Any, hint: Any) -> Any:
    """The value as the hint has it: an int as a float, a list as a tuple.

    `InputError` naming the argument where the value is something else, or out of range.
    """
    take, wanted = _kind(hint)
    try:
        return take(value)
    except REFUSALS as error:
        raise InputError(f"{name} is {shown(value)}; it must be {wanted}.") from error


@cache
def field_hints(kind: Any) -> dict[str, tuple[str, Any]]:
    """Fields of a dataclass: the class that declares each of them, and its type."""
    owners = {
        name: owner.__name__
        for owner in reversed(kind.__mro__)
        for name in inspect.get_annotations(owner)
    }
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: (owners[name], hints[name]) for name in names}


def check_fields(owner: Any, flags: bool = False) -> None:
    """Makes every field of a frozen dataclass what its type says.

    Raises `InputError` for the first that is not, or that is out of its range.

    Args:
      flags: whether fields are named as flags of the command line.
    """
    for name, (kind, hint) in field_hints(owner.__class__).items():
        called = f"--{name.replace('_', '-')}" if flags else f"{kind}.{name}"
        value = require(called, getattr(owner, name), hint)
        # A number of NumPy or JAX; JSON and hashes need ours.
        value = value.item() if hasattr(value, "item") else value
        object.__setattr__(owner, name, value)


def shown(value: object) -> str:
    """The beginning of a value as Python writes it, on one line."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    try:
        text = " ".join(SHORT.repr(value).split())
    except ValueError:  # a container of such a number
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def sentence_words(sentences: Iterable[Any]) -> Iterator[list[str]]:
    """The words of each sentence, as they come.

    Raises:
      InputError: for what is no list of words. What the sentences themselves raise
        goes through.
    """
    for number, words in enumerate(sentence_lists(sentences)):
        for place, word in enumerate(words):
            if not isinstance(word, str):
                raise InputError(
                    f"Word {place} of sentence {number} is {shown(word)}, which is no "
                    "string; give a list of words for each sentence."
                )
        yield words


def sentence_lists(sentences: Iterable[Any]) -> Iterator[list[Any]]:
    """`sentence_words` before the words are looked at: some may be padding."""
    require("sentences", sentences, Iterable[Sequence[str]])
    for number, sentence in enumerate(sentences):
        if not _is_iterable(sentence):
            kind = "the string " if isinstance(sentence, str) else ""
            raise InputError(
                f"Sentence {number} is {kind}{shown(sentence)}; give a list of words, "
                "and put one list around a single sentence."
            )
        yield list(sentence)


@cache
def _kind(hint: Any) -> tuple[Take, str]:
    """What takes a value as the hint says, and the hint in words."""
    members = _members(hint)
    if any(_holds_numbers(member) for member in members):
        # Python's numbers and lists of them are meant where arrays of them are.
        left = tuple(m for m in members if m in (None, type(None)))
        kinds = [
            (_if(lambda value: _shape(value) is not None), "an array of numbers"),
            *map(_one, left),
        ]
    else:
        kinds = list(map(_one, members))
    *first, last = dict.fromkeys(words for _, words in kinds)
    wanted = f"{', '.join(first)} or {last}" if first else last

    def take(value: Any) -> Any:
        for one, _ in kinds:
            with contextlib.suppress(*REFUSALS):
                return one(value)
        raise ValueError(wanted)

    return take, wanted


def _members(hint: Any) -> tuple[Any, ...]:
    """The kinds of a union, or the one there is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = map(_members, typing.get_args(hint))
        return tuple(member for part in parts for member in part)
    return (getattr(hint, "array_type", hint),)  # of jaxtyping


def _holds_numbers(kind: Any) -> bool:
    """Whether it is a class of arrays."""
    return isinstance(kind, type) and hasattr(kind, "dtype") and hasattr(kind, "shape")


def _one(hint: Any) -> tuple[Take, str]:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Annotated:
        return _ranged(*arguments)
    if hint in (None, type(None)):
        return _if(lambda value: value is None), "None"
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        known = _if(lambda value: isinstance(value, str) and value in arguments)
        return known, f"one of {choices}"
    if origin is tuple:
        return _tuple(arguments)
    if origin in SIMPLE:
        take, words = SIMPLE[origin]
        return take, LISTS.get(hint, words)
    if isinstance(origin, type) and origin not in (Any, object):
        article = "an" if origin.__name__[0] in "AEIO" else "a"
        kind = f"{article} {origin.__name__}"
        return _if(lambda value: isinstance(value, origin)), kind
    return _if(lambda value: True), "anything"


def _ranged(hint: Any, *more: Any) -> tuple[Take, str]:
    """A number, or the length of a tuple, between bounds."""
    take, words = _kind(hint)
    bounds = [part for part in more if isinstance(part, Range)]
    if bounds and typing.get_origin(hint) is tuple:
        words = f"{' '.join(map(str, bounds)).removeprefix('from ')} {words}"
    else:
        words = " ".join([words, *map(str, bounds)])

    def inside(value: Any) -> Any:
        value = take(value)
        size = len(value) if isinstance(value, tuple) else value
        if not all(bound.holds(size) for bound in bounds):
            raise ValueError(words)
        return value

    return inside, words


def _tuple(arguments: tuple[Any, ...]) -> tuple[Take, str]:
    inner = [_kind(a) for a in arguments if a is not Ellipsis]
    takes, words = zip(*inner, strict=True)
    several = Ellipsis in arguments

    def take(value: Any) -> Any:
        if not _is_sequence(value):
            raise ValueError
        each = takes * len(value) if several else takes
        return tuple(one(part) for one, part in zip(each, value, strict=True))

    return take, f"values, each {words[0]}" if several else f"({', '.join(words)})"


def _if(fits: Callable[[Any], bool]) -> Take:
    """The value itself, if it fits."""

    def take(value: Any) -> Any:
        if not fits(value):
            raise ValueError
        return value

    return take


def _integer(value: Any) -> int:
    if isinstance(value, bool):  # which is an int to Python
        raise ValueError
    return operator.index(value)


def _number(value: Any) -> Any:
    """Python's numbers as float; one that JAX traces as it is."""
    if isinstance(value, (bool, np.bool_)) or _shape(value) != ():
        raise ValueError
    return float(value) if isinstance(value, numbers.Real) else value


def _path(value: Any) -> Path:
    if not isinstance(os.fspath(value), str):
        raise ValueError
    return Path(value)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else str(_path(value))


def _is_iterable(value: Any) -> bool:
    if isinstance(value, NO_LIST) or not isinstance(value, Iterable):
        return False
    return getattr(value, "shape", None) != ()


def _is_sequence(value: Any) -> bool:
    return _is_iterable(value) and isinstance(value, Sized)


def _shape(value: Any) -> tuple[Any, ...] | None:
    """Of numbers; None for anything else. JAX may be tracing some of them."""
    if isinstance(value, (list, tuple)):
        shapes = {_shape(each) for each in value}
        if len(shapes) > 1 or None in shapes:
            return None
        (inner,) = shapes or {()}
        return (len(value), *(inner or ()))
    if isinstance(value, numbers.Real):
        return ()
    if not hasattr(value, "__array__") and not hasattr(value, "__jax_array__"):
        return None
    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype):  # of another library, or keys of jax.random
        try:
            value = np.asarray(value)
        except Exception:  # whatever its own code raises
            return None
        dtype = value.dtype
    small = dtype.kind == "V" and dtype.names is None  # bfloat16 and such
    return tuple(value.shape) if small or dtype.kind in "biuf" else None


LISTS: dict[Any, str] = {
    Iterable[str]: "a list of strings",
    Iterable[Sequence[str]]: 'a list of sentences, as [["The", "bank"], ["Hi"]]',
}
SIMPLE: dict[Any, tuple[Take, str]] = {
    bool: (_if(lambda value: isinstance(value, (bool, np.bool_))), "True or False"),
    int: (_integer, "a whole number"),
    float: (_number, "a number"),
    str: (_string, "a string"),
    Path: (_path, "a path"),
    os.PathLike: (_if(lambda value: isinstance(value, os.PathLike)), "a path"),
    typing.IO: (_if(lambda value: hasattr(value, "read")), "an open file"),
    dict: (_if(lambda value: isinstance(value, Mapping)), "a dict"),
    Sequence: (_if(_is_sequence), "a list"),
    Iterable: (_if(_is_iterable), "a list"),
    Callable: (_if(callable), "a function"),
}
