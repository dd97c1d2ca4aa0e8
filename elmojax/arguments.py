"""What users hand to public functions, held against the annotations there.

`checked` is all that a function needs: an argument of another kind is an `InputError`
that names it. What a list holds is looked at where it is read, by `sentence_words`.
"""

from __future__ import annotations

import inspect
import numbers
import operator
import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np

from elmojax.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
Fits = Callable[[Any], bool]

NO_LIST = (str, bytes, bytearray, Mapping, set, frozenset)
"""Can be gone through, and are no list of anything."""


SEVERAL = inspect.Parameter.VAR_POSITIONAL
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


def checked(function: Callable[P, T], owner_name: str = "") -> Callable[P, T]:
    """`function`, which refuses arguments that are not what its annotations say."""
    signature, owner = inspect.signature(function), inspect.unwrap(function)

    @cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(owner)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        known = hints()
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            several = signature.parameters[name].kind is SEVERAL
            for each in value if several else (value,):
                require(owner_name + name, each, known.get(name, Any))
        return function(*args, **kwargs)

    return call


def checked_fields(kind: type[T]) -> type[T]:
    """A dataclass that refuses values which are not what its fields say."""
    kind.__init__ = checked(kind.__init__, f"{kind.__name__}.")  # type: ignore[method-assign]
    return kind


def require(name: str, value: Any, hint: Any) -> None:
    """`InputError` naming the argument, unless its value is what the hint says."""
    fits, wanted = _kind(hint)
    if not fits(value):
        raise InputError(f"{name} is {shown(value)}; it must be {wanted}.")


def shown(value: object) -> str:
    """The beginning of a value as Python writes it, on one line."""
    text = " ".join(SHORT.repr(value).split())
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
def _kind(hint: Any) -> tuple[Fits, str]:
    """Whether a value is what a hint says, and the hint in words."""
    members = _members(hint)
    if any(_holds_numbers(member) for member in members):
        # Python's numbers and lists of them are meant where arrays of them are.
        left = tuple(m for m in members if m in (None, type(None)))
        kinds = [(_is_numbers, "an array of numbers"), *map(_one, left)]
    else:
        kinds = list(map(_one, members))
    tests = [fits for fits, _ in kinds]
    *first, last = dict.fromkeys(words for _, words in kinds)
    wanted = f"{', '.join(first)} or {last}" if first else last
    return lambda value: any(fits(value) for fits in tests), wanted


def _members(hint: Any) -> tuple[Any, ...]:
    """The kinds of a union, or the one there is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = map(_members, typing.get_args(hint))
        return tuple(member for part in parts for member in part)
    if typing.get_origin(hint) is typing.Annotated:
        return _members(typing.get_args(hint)[0])
    return (getattr(hint, "array_type", hint),)  # of jaxtyping


def _holds_numbers(kind: Any) -> bool:
    """Whether it is a class of arrays."""
    return isinstance(kind, type) and hasattr(kind, "dtype") and hasattr(kind, "shape")


def _one(hint: Any) -> tuple[Fits, str]:
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint in (None, type(None)):
        return lambda value: value is None, "None"
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        return lambda value: _is_one_of(value, arguments), f"one of {choices}"
    if origin is tuple:
        return _tuple(arguments)
    if origin in SIMPLE:
        fits, words = SIMPLE[origin]
        return fits, LISTS.get(str(hint), words)
    if isinstance(origin, type) and origin not in (Any, object):
        vowel = origin.__name__[0] in "AEIOU"
        article = "an" if vowel else "a"
        return lambda value: isinstance(value, origin), f"{article} {origin.__name__}"
    return lambda value: True, "anything"


def _tuple(arguments: tuple[Any, ...]) -> tuple[Fits, str]:
    inner = [_kind(a) for a in arguments if a is not Ellipsis]
    if Ellipsis in arguments:
        ((one, words),) = inner
        return (
            lambda value: isinstance(value, tuple) and all(map(one, value)),
            f"a tuple, each of it {words}",
        )
    tests = [fits for fits, _ in inner]
    return (
        lambda value: (
            isinstance(value, tuple)
            and len(value) == len(tests)
            and all(fits(each) for fits, each in zip(tests, value, strict=True))
        ),
        f"({', '.join(words for _, words in inner)})",
    )


def _is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    return isinstance(value, str) and value in choices


def _is_integer(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def _is_number(value: Any) -> bool:
    return not isinstance(value, (bool, np.bool_)) and _shape(value) == ()


def _is_iterable(value: Any) -> bool:
    if isinstance(value, NO_LIST) or not isinstance(value, Iterable):
        return False
    return getattr(value, "shape", None) != ()


def _is_sequence(value: Any) -> bool:
    return _is_iterable(value) and isinstance(value, Sized)


def _is_path(value: Any) -> bool:
    return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)


def _is_numbers(value: Any) -> bool:
    return _shape(value) is not None


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


LISTS: dict[str, str] = {
    str(Iterable[str]): "a list of strings",
    str(Iterable[Sequence[str]]): 'a list of sentences, as [["The", "bank"], ["Hi"]]',
}
SIMPLE: dict[Any, tuple[Fits, str]] = {
    bool: (lambda value: isinstance(value, (bool, np.bool_)), "True or False"),
    int: (_is_integer, "an integer"),
    float: (_is_number, "a number"),
    str: (lambda value: isinstance(value, str), "a string"),
    Path: (lambda value: isinstance(value, str) or _is_path(value), "a path"),
    os.PathLike: (_is_path, "a path"),
    typing.IO: (lambda value: hasattr(value, "read"), "an open file"),
    dict: (lambda value: isinstance(value, Mapping), "a dict"),
    Sequence: (_is_sequence, "a list"),
    Iterable: (_is_iterable, "a list"),
    Callable: (callable, "a function"),
}
