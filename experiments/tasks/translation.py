"""Translation with attention, whose encoder reads the vectors: BLEU by sacrebleu.

    python experiments/tasks/translation.py --train train.tsv --dev dev.tsv \\
        --test test.tsv
    python experiments/tasks/translation.py --train train --test test \\
        --languages en de

Files have a source sentence, a tab and its translation in a line; with --languages en
de, the sentences are in train.en and train.de. Blanks set words apart on both sides.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from batching import padded_length
from features import parameters
from fitting import Params
from jax import Array
from parts import Part, PartOptions, Scores, read_parts, train_seeds
from task_files import read_lines, split_fields
from task_options import command
from task_report import Report, summary, write_text
from texts import (
    Text,
    TextOptions,
    Texts,
    Tokens,
    features_of,
    make_texts,
    read_text,
)

from elmojax import InputError
from elmojax.config import Count, Width
from elmojax.text.formats import split

END, UNKNOWN, FIRST = 0, 1, 2
"""Numbers of the end of a translation, which begins it too, of a word that is not
known, and of the first known word."""
GREEDY = -1
"""In place of a word: the one that the decoder likes best."""


@dataclass(frozen=True, kw_only=True)
class TranslationOptions(PartOptions, TextOptions):
    """Trains a translator whose encoder reads vectors of words, and scores it."""

    languages: tuple[str, str] | None = None
    """Endings of the names of two files with a sentence a line, instead of one file
    with a tab in each."""
    hidden: Width = 200
    """Of each direction of the encoder, and of the decoder."""
    target_width: Width = 100
    """Of the learned vectors of the target's words."""
    target_words: Count = 20_000
    """Words of the target that are known: the most frequent of the training file."""
    translations: Path | None = None
    """Where to write the translations of test with the last seed, one a line."""


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: Tokens
    target: Tokens


class Batch(NamedTuple):
    """Arrays of one step."""

    source: Text
    target: Any
    """int32 [batch, time]: words, END, then -1."""


def read_pairs(path: Path, languages: tuple[str, str] | None) -> list[Pair]:
    """Sentences and their translations.

    Args:
      path: of one file with a tab in each line; with `languages`, the beginning of the
        names of two.
      languages: their endings.

    Raises:
      InputError: for a file that cannot be read or has another format, an empty
        sentence, and files of different lengths.
    """
    if languages is None:
        rows = split_fields(path, read_lines(path), ("source", "translation"))
        return [Pair(*(tuple(split(text)) for text in row)) for _, row in rows]
    paths = [path.with_name(f"{path.name}.{ending}") for ending in languages]
    sides = []
    for side in paths:
        lines = read_lines(side)
        sides.append(lines[:-1] if not lines[-1] else lines)
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise InputError(
            f"{paths[0]} has {len(sides[0])} lines and {paths[1]} {len(sides[1])}; "
            "each line must have its translation."
        )
    pairs = []
    for number, lines in enumerate(zip(*sides, strict=True), start=1):
        pair = Pair(*(tuple(split(text)) for text in lines))
        for side, words in zip(paths, pair, strict=True):
            if not words:
                raise InputError(f"{side}, line {number} has no words.")
        pairs.append(pair)
    return pairs


class Decoder(nn.Module):
    """One step of the translation: an LSTM that attends to the source."""

    words: int
    options: TranslationOptions

    @nn.compact
    def __call__(
        self, carry: tuple[Any, Array], given: Array, memory: Array, mask: Array
    ) -> tuple[tuple[Any, Array], Array]:
        """The next word.

        Args:
          carry: state of the LSTM; int32 [batch], the word before, as it was chosen.
          given: int32 [batch], the word before as it should have been, or GREEDY.
          memory: [batch, time, width], of the source.
          mask: bool [batch, time], its words.

        Returns:
          The next carry, and scores [batch, words].
        """
        options, (state, chosen) = self.options, carry
        before = jnp.where(given == GREEDY, chosen, given)
        x = nn.Embed(self.words, options.target_width)(before)
        state, h = nn.OptimizedLSTMCell(options.hidden)(state, x)
        query = nn.Dense(memory.shape[-1], use_bias=False)(h)
        likeness = jnp.einsum("bk,btk->bt", query, memory)
        weights = nn.softmax(jnp.where(mask, likeness, -1e9), axis=-1)
        seen = jnp.einsum("bt,btk->bk", weights, memory)
        joined = nn.Dense(options.hidden)(jnp.concatenate([h, seen], axis=-1))
        scores = nn.Dense(self.words)(jnp.tanh(joined))
        return (state, scores.argmax(axis=-1).astype(jnp.int32)), scores


class TranslationNetwork(nn.Module):
    """A BiLSTM over the source, a decoder with attention (Luong et al. 2015)."""

    source_words: int
    target_words: int
    options: TranslationOptions

    @nn.compact
    def __call__(self, source: Text, given: Array, deterministic: bool) -> Array:
        """Scores of the words of the translation.

        Args:
          source: to translate.
          given: int32 [batch, time], the word before each word, or GREEDY.
          deterministic: False while training.

        Returns:
          [batch, time, words].
        """
        options, mask = self.options, source.mask
        read = (source, options, options.hidden, deterministic)
        memory = read_text(self.source_words, *read)
        memory = nn.Dropout(options.dropout)(memory, deterministic=deterministic)
        whole = jnp.where(mask[..., None], memory, 0.0).sum(axis=1)
        whole /= jnp.maximum(mask.sum(axis=1), 1).astype(whole.dtype)[:, None]
        state = tuple(jnp.tanh(nn.Dense(options.hidden)(whole)) for _ in range(2))
        steps = nn.scan(
            Decoder,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(1, nn.broadcast, nn.broadcast),
            out_axes=1,
        )
        carry = state, jnp.full(len(whole), END, jnp.int32)
        decoder = steps(self.target_words, options)
        return decoder(carry, given, memory, mask)[1]


@dataclass(frozen=True)
class Target:
    """The known words of the target by number, from FIRST."""

    words: Sequence[str]

    @classmethod
    def of(cls, sentences: Sequence[Tokens], most: int) -> Target:
        count = Counter(word for words in sentences for word in words)
        return cls(sorted(count, key=lambda word: (-count[word], word))[:most])

    @property
    def size(self) -> int:
        return FIRST + len(self.words)

    def ids(self, sentences: Sequence[Tokens], rows: int) -> np.ndarray:
        """int32 [rows, time]: words, END, then -1."""
        place = {word: number for number, word in enumerate(self.words, FIRST)}
        ids = np.full((rows, padded_length(1 + max(map(len, sentences)))), -1, np.int32)
        for row, words in zip(ids, sentences, strict=False):
            row[: len(words)] = [place.get(word, UNKNOWN) for word in words]
            row[len(words)] = END
        return ids

    def read(self, ids: np.ndarray) -> str:
        """The words before END."""
        ends = np.flatnonzero(ids == END)
        kept = ids[: ends[0]] if len(ends) else ids
        names = ("<UNK>" if n == UNKNOWN else self.words[n - FIRST] for n in kept)
        return " ".join(names)


def make_part(
    pairs: Sequence[Pair], texts: Texts, target: Target, rows: int
) -> Part[Pair]:
    """Pairs with their batches."""

    def make(some: Sequence[Pair]) -> Batch:
        source = texts.batch([pair.source for pair in some], rows)
        return Batch(source, target.ids([pair.target for pair in some], rows))

    return Part(pairs, [max(map(len, pair)) for pair in pairs], make, rows)


def make_loss(network: TranslationNetwork) -> Callable[[Params, Batch, Array], Array]:
    """The mean negative logarithm of the probability of each word, END too."""

    def loss(params: Params, batch: Batch, key: Array) -> Array:
        given, rngs = {"params": params}, {"dropout": key}
        here = batch.target >= 0
        words = jnp.where(here, batch.target, END)
        before = jnp.pad(words[:, :-1], ((0, 0), (1, 0)), constant_values=END)
        scores = network.apply(given, batch.source, before, False, rngs=rngs)
        each = optax.softmax_cross_entropy_with_integer_labels(scores, words)
        return each.mean(where=here)

    return loss


def translator(
    network: TranslationNetwork, target: Target
) -> Callable[[Params, Part[Pair]], list[str]]:
    """A function that translates all sentences of a part, word for word the best.

    A translation has at most twice as many positions as its source.
    """

    @jax.jit
    def best(params: Params, source: Text) -> Array:
        rows, time = source.words.shape
        greedy = jnp.full((rows, 2 * time), GREEDY, jnp.int32)
        scores = network.apply({"params": params}, source, greedy, True)
        return scores.argmax(axis=-1)

    def translate(params: Params, part: Part[Pair]) -> list[str]:
        return list(map(target.read, part.outputs(lambda b: best(params, b.source))))

    return translate


def bleu(found: Sequence[str], pairs: Sequence[Pair]) -> float:
    """BLEU of a corpus of words that blanks set apart, from 0 to 100; case counts."""
    import sacrebleu  # an extra: only translation needs it

    wanted = [" ".join(pair.target) for pair in pairs]
    return sacrebleu.corpus_bleu(found, [wanted], tokenize="none", force=True).score


def run(options: TranslationOptions) -> Report:
    """Trains with every seed; the report.

    Raises:
      InputError: for files and models that do not fit, and without sacrebleu.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise InputError("BLEU needs sacrebleu: pip install sacrebleu.")
    pairs = read_parts(options, partial(read_pairs, languages=options.languages))
    texts = make_texts(options, [[pair.source for pair in part] for part in pairs])
    target = Target.of([pair.target for pair in pairs[0]], options.target_words)
    parts = [
        make_part(part, of_part, target, options.rows)
        for part, of_part in zip(pairs, texts, strict=True)
    ]
    network = TranslationNetwork(texts[0].words.size, target.size, options)
    translate = translator(network, target)

    def score(params: Params, part: Part[Pair]) -> Scores:
        return {"BLEU": bleu(translate(params, part), part.examples)}

    def init(key: Array, batch: Batch) -> Params:
        return network.init(key, *batch, True)["params"]

    outcomes = train_seeds(parts, init, make_loss(network), score, options)
    if options.translations is not None:
        found = translate(outcomes[-1].fitted.params, parts[2])
        write_text(options.translations, "\n".join(found) + "\n")
    return summary(
        *("translation", "BLEU", options, features_of(texts), outcomes),
        target_words=target.size,
        parameters=parameters(outcomes[0].fitted.params),
        examples=[len(part) for part in pairs],
    )


def main(argv: Sequence[str] | None = None) -> None:
    command("translation", TranslationOptions, run, argv)


if __name__ == "__main__":
    main()
