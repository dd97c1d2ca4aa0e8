"""What commands about the uses of a word share: `similar` and `plot senses`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from elmojax.arguments import shown
from elmojax.cli.common import (
    BUNDLED,
    BadBytes,
    ModelOption,
    Step,
    TextFormat,
    arg,
    keep_compiled_programs,
    names_of,
    remark,
)
from elmojax.config import CountOrZero
from elmojax.errors import InputError
from elmojax.text.files import Oddities, expand, read_text, split
from elmojax.text.uses import Use, find_uses, sense_files, sense_words

if TYPE_CHECKING:
    from elmojax.embedding.embedder import Embedder

Among = Annotated[
    tuple[tuple[str, ...], ...],
    tyro.conf.UseAppendAction,
    arg(
        metavar="FILE [FILE ...]",
        help_behavior_hint="(may be repeated)",
        help="Text files or quoted globs that hold the word, one tokenised sentence a "
        "line; by default sentences that ship with elmojax, about bank, bat, cell, "
        "interest, plant and spring.",
    ),
]
Layer = Annotated[
    CountOrZero | None,
    arg(help="Layer of the vectors; by default the mean of layers 1 and up."),
]


@dataclass(frozen=True)
class UsesArguments:
    """What both commands ask for."""

    word: str
    """The word, in the spelling of the texts."""
    among: Among = ()
    format: TextFormat = "text"
    model: ModelOption = BUNDLED
    layer: Layer = None
    step: Step = None
    errors: BadBytes = "strict"


@dataclass(frozen=True)
class Found:
    """The uses of a word in texts, and the model to compare them with."""

    embedder: Embedder
    uses: list[Use]
    others: list[str]
    """All other words of the texts."""
    paths: list[Path]
    names: list[str]
    """Of the texts, each another one."""
    remarks: list[str]

    def layer(self, layer: int | None) -> str:
        """Which layer vectors are of, in words."""
        top = self.embedder.params.config.lstm.layers
        if layer is None and top > 1:
            return f"mean of layers 1 {'and' if top == 2 else 'to'} {top}"
        return f"layer {1 if layer is None else layer}"


def find(asked: UsesArguments) -> Found:
    """Reads the texts and opens the model.

    Raises `InputError` where a file or the model cannot be read, or no text has the
    word.
    """
    given = sum(asked.among, ())
    if not given and asked.format != "text":
        raise InputError("--format is for the texts of --among; leave it out.")
    if asked.format == "text" and split(asked.word) != [asked.word]:
        raise InputError(
            f"--word is {shown(asked.word)}; give one word, without spaces."
        )
    paths = expand(given) if given else sense_files()
    ours = sense_words(paths)
    if not given and asked.word not in ours:
        raise InputError(
            f"The sentences that ship with elmojax are about {', '.join(ours)}, not "
            f"{shown(asked.word)}; give texts that hold the word: --among FILE."
        )
    keep_compiled_programs()

    from elmojax.embedding.embedder import Embedder
    from elmojax.loading import open_model

    model = open_model(asked.model, asked.step, head=False)
    columns, odd = model.params.config.max_characters, Oddities()
    texts = [read_text(path, asked.errors, columns, asked.format) for path in paths]
    for text in texts:
        odd.add(text.odd)
    uses, words = find_uses(asked.word, texts)
    return Found(
        Embedder(model.params, model.vocabulary),
        uses,
        [word for word in words if word != asked.word],
        paths,
        names_of(paths),
        remark(odd, columns, asked.format),
    )
