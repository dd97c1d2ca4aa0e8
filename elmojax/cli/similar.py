"""`elmojax similar`, and flags about the uses of a word that `plot senses` has too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from elmojax.arguments import shown
from elmojax.cli import common
from elmojax.config import Count, CountOrZero
from elmojax.errors import InputError
from elmojax.text.files import expand
from elmojax.text.formats import split, words_of
from elmojax.text.uses import Use, find_uses, sense_files, sense_words, use_in

if TYPE_CHECKING:
    from elmojax.embedding.embedder import Embedder
    from elmojax.embedding.neighbours import Neighbour

WIDTH = 72
"""Characters of a use that are shown."""


@dataclass(frozen=True)
class UsesArguments:
    """A word, texts that hold it, and the model to compare its uses with."""

    word: str
    """The word, in the spelling of the texts."""
    among: common.Files = ()
    """Text files or quoted globs that hold the word, one tokenised sentence a line; by
    default sentences that ship with elmojax, about bank, bat, cell, interest, plant and
    spring."""
    format: common.TextFormat = "text"
    model: common.Model = common.BUNDLED
    layer: CountOrZero | None = None
    """Layer of the vectors; by default the mean of layers 1 and up."""
    step: common.Step = None
    errors: common.BadBytes = "strict"

    def find(self) -> Found:
        """Reads the texts and opens the model.

        Raises `InputError` where a file or the model cannot be read, or no text has the
        word.
        """
        given = sum(self.among, ())
        if not given and self.format != "text":
            raise InputError("--format is for the texts of --among; leave it out.")
        if self.format == "text" and split(self.word) != [self.word]:
            raise InputError(
                f"--word is {shown(self.word)}; give one word, without spaces."
            )
        paths = expand(given) if given else sense_files()
        ours = sense_words(paths)
        if not given and self.word not in ours:
            raise InputError(
                f"The sentences that ship with elmojax are about {', '.join(ours)}, "
                f"not {shown(self.word)}; give texts that hold the word: --among FILE."
            )
        common.keep_compiled_programs()

        from elmojax.embedding.embedder import Embedder
        from elmojax.loading import open_model

        model = open_model(self.model, self.step, head=False)
        columns = model.params.config.max_characters
        texts, odd = common.read_texts(paths, self.errors, self.format, columns)
        uses, words = find_uses(self.word, texts)
        return Found(
            Embedder(model.params, model.vocabulary),
            uses,
            [word for word in words if word != self.word],
            paths,
            common.names_of(paths),
            common.remark(odd, columns, self.format),
        )


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


@dataclass(frozen=True, kw_only=True)
class SimilarArguments(UsesArguments):
    """Finds the uses of a word in texts that are nearest to its use in a sentence.

    Columns: context is the cosine of the two vectors in context, static the one in
    layer 0, which knows the word and not its sentence, so it is 1 for every use. The
    words nearest to it in layer 0 come last. A line that is the sentence itself is left
    out.
    """

    sentence: Positional[Annotated[str, arg(metavar="SENTENCE")]]
    """One sentence that holds the word; spaces set words apart, also from full stops
    and commas."""
    occurrence: Count | None = None
    """Which of its places is meant, from 1, where the word stands in the sentence more
    than once."""
    nearest: Annotated[Count, arg(aliases=("-k",))] = 10
    """How many neighbours to show."""
    json: common.Json = False


def similar(argv: list[str]) -> None:
    """uses of a word nearest to its use in a sentence, with and without context"""
    asked = common.parse(SimilarArguments, "similar", argv)
    given = use_in(words_of(asked.sentence), asked.word, asked.occurrence)
    found = asked.find()

    from elmojax.embedding.neighbours import (
        cosines,
        nearest,
        use_vectors,
        word_vectors,
    )

    uses = [use for use in found.uses if use.words != given.words]
    if not uses:
        raise InputError(
            f"The texts have {asked.word!r:.80} only in this very sentence; give "
            "--among texts with other uses of it."
        )
    vectors = use_vectors(found.embedder, [given, *uses], asked.layer)
    static = cosines(vectors.static[0], vectors.static[1:])
    close = [
        (uses[index], cosine, float(static[index]))
        for index, cosine in nearest(
            vectors.context[0], vectors.context[1:], asked.nearest
        )
    ]
    words: list[Neighbour] = []
    if found.others:
        of_words = word_vectors(found.embedder, found.others)
        words = nearest(vectors.static[0], of_words, asked.nearest)
    report = {
        "word": asked.word,
        "sentence": given.words,
        "position": given.position,
        "model": asked.model,
        "layer": asked.layer,
        "texts": found.paths,
        "uses": len(uses),
        "nearest": [
            {
                "context": context,
                "static": same,
                "text": found.paths[use.text],
                "line": use.line,
                "position": use.position,
                "sentence": use.words,
            }
            for use, context, same in close
        ],
        "static_words": [
            {"word": found.others[index], "cosine": cosine} for index, cosine in words
        ],
        "remarks": found.remarks,
    }
    layer = found.layer(asked.layer)
    rows = [("context", "static", "text", "use")]
    for use, context, same in close:
        cells = (found.names[use.text], use.snippet(WIDTH, "[{}]"))
        rows.append((f"{context:.3f}", f"{same:.3f}", *cells))
    lines = [
        f"{given.snippet(WIDTH, '[{}]')}\n",
        f"nearest of {len(uses):,} uses, by {layer} (static: layer 0)\n",
        *common.table(rows, right=(0, 1)),
    ]
    if words:
        told = ", ".join(f"{found.others[n]} {cosine:.2f}" for n, cosine in words)
        lines.append(f"\nnearest words without context: {told}")
    common.show(asked.json, report, "\n".join(lines))
