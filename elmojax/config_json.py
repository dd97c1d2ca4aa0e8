"""Configurations as JSON, and back: what config.json of a run directory holds."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.errors import InputError

T = TypeVar("T")


def to_json(config: Any) -> str:
    """A configuration as indented JSON, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(
    cls: type[T],
    text: str,
    where: object,
    parse: Callable[[str], Any] = json.loads,
) -> T:
    """The configuration that `to_json` wrote; `where` names its file in errors.

    Raises `InputError` for text that `parse` does not read, unknown or missing fields,
    and values that the configuration itself refuses.
    """
    try:
        return _build(cls, parse(text))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where} does not hold a {cls.__name__}: {error}. Was it edited or cut "
            "short? Restore it from a copy."
        ) from error


def _build(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        if unknown := sorted(value.keys() - hints.keys()):
            raise TypeError(f"{hint.__name__} has no field {unknown[0]!r}")
        return hint(**{name: _build(hints[name], v) for name, v in value.items()})
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if CharCnnConfig in options:
            known = "filters" in value
            return _build(CharCnnConfig if known else WordTableConfig, value)
        return _build(options[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_build(arguments[0], v) for v in value)
    if hint is Path:
        return Path(value)
    if hint is float and isinstance(value, int):
        return float(value)
    if isinstance(hint, type) and not isinstance(value, hint):
        raise TypeError(f"{value!r} is no {hint.__name__}")
    return value
