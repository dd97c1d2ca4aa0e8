"""How far each text of an output of many has come: one small file a text, so that any
process can write any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from elmojax.embedding.outputs.partial import read_json, write_json
from elmojax.embedding.outputs.text import Text
from elmojax.errors import InputError


@dataclass
class Progress:
    """Of one text. It is kept in `OUT.partial/_00003.json` for text file 3."""

    file: str
    """Name of the text file."""
    text: str
    """Its digest."""
    lines: int
    done: int = 0
    """Lines in parts that are whole."""
    parts: int = 0
    rows: int = 0

    @classmethod
    def read(cls, directory: Path, number: int) -> Progress | None:
        """What an earlier run kept. `InputError` if it is damaged."""
        path = _file(directory, number)
        if not path.exists():
            return None
        found = read_json(path)
        if set(found) != {field.name for field in fields(cls)}:
            raise InputError(f"{path} is damaged. Remove {directory} to start again.")
        return cls(**found)

    @classmethod
    def begin(
        cls, directory: Path, number: int, text: Text, overwrite: bool
    ) -> Progress:
        """What an earlier run kept of this text, or nothing yet.

        Raises:
          InputError: if it is of another text and `overwrite` is not given.
        """
        new = cls(os.fspath(text.path), text.digest, len(text.sizes))
        found = cls.read(directory, number)
        if found is None:
            return new
        if (found.file, found.text, found.lines) == (new.file, new.text, new.lines):
            return found
        if not overwrite:
            raise InputError(
                f"{text.path} is not the text of which {directory} holds an unfinished "
                "output. Put that text back to go on, give --overwrite to start again, "
                "or another --out."
            )
        return new

    def write(self, directory: Path, number: int) -> None:
        """Keeps it, at once and on the disk."""
        write_json(_file(directory, number), asdict(self))


def forget(directory: Path, number: int) -> None:
    """No line of this text is done."""
    _file(directory, number).unlink(missing_ok=True)


def begun(directory: Path) -> bool:
    """Whether a part of any text is whole."""
    return any(directory.glob("_[0-9]*.json"))


def all_whole(directory: Path, names: Sequence[str]) -> list[Progress]:
    """The texts of an output, in order. `InputError` if lines of one are missing."""
    texts = []
    for number, name in enumerate(names):
        found = Progress.read(directory, number)
        if found is None or found.done != found.lines:
            out = directory.with_name(directory.name.removesuffix(".partial"))
            raise InputError(
                f"{out} is not whole: lines of {name} are missing. Run the same "
                "command again to go on."
            )
        texts.append(found)
    return texts


def _file(directory: Path, number: int) -> Path:
    return directory / f"_{number:05d}.json"
