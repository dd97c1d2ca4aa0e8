"""`elmojax similar`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from elmojax.cli.common import Json, arg, parse, print_json
from elmojax.cli.uses import Found, UsesArguments, find
from elmojax.config import Count
from elmojax.errors import InputError
from elmojax.text.files import words_of
from elmojax.text.uses import Use, use_in

if TYPE_CHECKING:
    from elmojax.embedding.neighbours import Neighbour

Sentence = Annotated[
    str,
    tyro.conf.Positional,
    arg(
        metavar="SENTENCE",
        help="One sentence that holds the word; spaces set words apart, also from "
        "full stops and commas.",
    ),
]
Nearest = Annotated[Count, arg(aliases=("-k",), help="How many neighbours to show.")]
WIDTH = 72
"""Characters of a use that are shown."""


@dataclass(frozen=True, kw_only=True)
class SimilarArguments(UsesArguments):
    """Finds the uses of a word in texts that are nearest to its use in a sentence.

    Columns: context is the cosine of the two vectors in context, static that of layer
    0, which knows the word and not its sentence, and is 1 for every use. The words
    nearest to it in layer 0 come last. A line that is the sentence itself is left out.
    """

    sentence: Sentence
    occurrence: Count | None = None
    """Which of its places is meant, from 1, where the word stands in the sentence more
    than once."""
    nearest: Nearest = 10
    json: Json = False


def similar(argv: list[str]) -> None:
    """uses of a word nearest to its use in a sentence, with and without context"""
    asked: SimilarArguments = parse(SimilarArguments, "similar", argv)
    given = use_in(words_of(asked.sentence), asked.word, asked.occurrence)
    found = find(asked)

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
    close = nearest(vectors.context[0], vectors.context[1:], asked.nearest)
    static = cosines(vectors.static[0], vectors.static[1:])
    words: list[Neighbour] = []
    if found.others:
        of_words = word_vectors(found.embedder, found.others)
        words = nearest(vectors.static[0], of_words, asked.nearest)
    if asked.json:
        print_json(
            {
                "word": asked.word,
                "sentence": given.words,
                "position": given.position,
                "model": asked.model,
                "layer": asked.layer,
                "texts": found.paths,
                "uses": len(uses),
                "nearest": [
                    {
                        "context": cosine,
                        "static": float(static[index]),
                        "text": found.paths[uses[index].text],
                        "line": uses[index].line,
                        "position": uses[index].position,
                        "sentence": uses[index].words,
                    }
                    for index, cosine in close
                ],
                "static_words": [
                    {"word": found.others[index], "cosine": cosine}
                    for index, cosine in words
                ],
                "remarks": found.remarks,
            }
        )
        return
    layer = found.layer(asked.layer)
    print(f"{given.snippet(WIDTH, '[{}]')}\n")
    print(f"nearest of {len(uses):,} uses, by {layer} (static: layer 0)\n")
    _print_table(
        found, [(uses[index], cosine, static[index]) for index, cosine in close]
    )
    if words:
        told = ", ".join(f"{found.others[n]} {cosine:.2f}" for n, cosine in words)
        print(f"\nnearest words without context: {told}")


def _print_table(found: Found, rows: list[tuple[Use, float, float]]) -> None:
    names = [found.names[use.text] for use, _, _ in rows]
    width = max(map(len, ["text", *names]))
    print(f"context  static  {'text':{width}}  use")
    for name, (use, context, static) in zip(names, rows, strict=True):
        shown = use.snippet(WIDTH, "[{}]")
        print(f"{context:7.3f}  {static:6.3f}  {name:{width}}  {shown}")
