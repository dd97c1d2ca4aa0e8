"""The flags of a pretraining run, and what they fall back on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from elmojax.cli.common import arg
from elmojax.config import TrainConfig
from elmojax.errors import InputError


@dataclass(frozen=True)
class RecipeArguments(TrainConfig):
    """What commands about a run that is to be share."""

    start_from: Annotated[
        Literal["mini", "small", "medium", "original"], arg(name="preset")
    ] = "mini"
    """Model size and recipe to start from."""
    config: Path | None = None
    """Python file with `config() -> TrainConfig` to start from."""


Recipe = TypeVar("Recipe", bound=RecipeArguments)


def train_config(asked: RecipeArguments) -> TrainConfig:
    """The run that flags describe, without the flags of the command."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return TrainConfig(**{name: getattr(asked, name) for name in names})


def defaults(kind: type[Recipe], argv: list[str]) -> Recipe:
    """What flags fall back to: the run that is there, else --config, else --preset."""
    from elmojax.initialization import read_config
    from elmojax.training.record import read_record

    found = given(argv, "--preset", "--config", "--workdir", "--steps", "--epochs")
    for one, other in (("--preset", "--config"), ("--steps", "--epochs")):
        if one in found and other in found:
            raise InputError(f"Give {one} or {other}, not both.")
    chosen: dict[str, Any] = {}
    if "--config" in found:
        chosen["config"] = Path(found["--config"])
        base = read_config(chosen["config"])
    else:
        chosen["start_from"] = found.get("--preset", "mini")
        base = TrainConfig.preset(chosen["start_from"])
        run = Path(found.get("--workdir", base.workdir))
        if "--preset" not in found and (run / "config.json").exists():
            base = dataclasses.replace(read_record(run).train, workdir=run)
    if "--epochs" in found:
        base = dataclasses.replace(base, steps=None)
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(TrainConfig)}
    return kind(**values, **chosen)


def given(argv: list[str], *names: str) -> dict[str, str]:
    """The values of some flags, which others fall back on: read before the rest."""
    found = {}
    for word, after in zip(argv, [*argv, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name in names:
            found[name] = value if equals else after
    return found
