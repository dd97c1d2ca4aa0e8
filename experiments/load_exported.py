"""Vectors from a file of `elmojax export`, without elmojax.

    python experiments/load_exported.py FILE "The river bank ." ["Another sentence ."]

Needs JAX, NumPy, and flatbuffers, with which JAX reads its own programs. Sentences are
split at spaces and tabs. Prints the shape of the vectors (the mean of all layers) and
the first numbers of every word. `load`, `word_ids` and `character_ids` are there to be
copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np


class Exported(NamedTuple):
    """The programs take `weights` first; all of it is in `config`."""

    config: dict[str, Any]
    weights: dict[str, jax.Array]
    embed: Any
    """(weights, tokens, gammas, bias) -> float32 [batch, time, vector]."""
    layers: Any
    """(weights, tokens) -> float32 [batch, layers + 1, time, vector]."""
    words: list[str] | None
    """Of a model that reads word ids."""


def load(path: str) -> Exported:
    """Reads a file of `elmojax export`; ends the process if its weights are damaged."""
    digest, weights = hashlib.sha256(), {}
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))
        for name, about in sorted(config["weights"].items()):
            with file.open(f"weights/{name}.npy") as member:
                array = np.load(member).view(jnp.dtype(about["dtype"]))
            digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
            weights[name] = jnp.asarray(array)
        if digest.hexdigest() != config["sha256"]:
            sys.exit(f"{path}: the weights are not those that config.json tells of.")
        programs = [
            jax.jit(jax.export.deserialize(bytearray(file.read(name))).call)
            for name in ("embed.jax_export", "layers.jax_export")
        ]
        known = "words.json" in file.namelist()
        words = json.loads(file.read("words.json")) if known else None
    return Exported(config, weights, *programs, words)


def character_ids(batch: Sequence[Sequence[str]], columns: int) -> np.ndarray:
    """The published mapping of ELMo: int32 [batch, time, columns], 0 = no word.

    UTF-8 bytes between a begin (258) and an end mark (259), padded with 260, all + 1.
    The words `<S>` and `</S>` are the sentence marks 256 and 257.
    """
    marks = {"<S>": [256], "</S>": [257]}
    ids = np.zeros((len(batch), max(map(len, batch)), columns), np.int32)
    for row, sentence in enumerate(batch):
        for column, word in enumerate(sentence):
            letters = list(word.encode("utf-8", "ignore")[: columns - 2])
            letters = [258, *marks.get(word, letters), 259]
            padding = [260] * (columns - len(letters))
            ids[row, column] = np.array(letters + padding) + 1
    return ids


def word_ids(batch: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:
    """Place of each word + 1: int32 [batch, time], 0 = no word. Others are `<UNK>`."""
    place = {word: number for number, word in enumerate(words, 1)}
    ids = np.zeros((len(batch), max(map(len, batch))), np.int32)
    for row, sentence in enumerate(batch):
        for column, word in enumerate(sentence):
            number = place.get(word, place.get("<UNK>"))
            if number is None:
                sys.exit(f"{word!r} is not among the words of the model.")
            ids[row, column] = number
    return ids


def main(path: str, *sentences: str) -> None:
    model = load(path)
    batch = [re.findall("[^ \t]+", sentence) for sentence in sentences]
    encoder = model.config["model"]["encoder"]
    if "max_characters" in encoder:
        tokens = character_ids(batch, encoder["max_characters"])
    elif model.words is None:
        sys.exit(f"{path} has no words.json, so words have no ids here.")
    else:
        tokens = word_ids(batch, model.words)
    if 0 in tokens.shape:
        sys.exit("There is no word; the programs take one word or more.")
    count = model.config["model"]["lstm"]["layers"] + 1
    gammas = np.full(count, 1 / count, np.float32)
    vectors = np.asarray(model.embed(model.weights, tokens, gammas, np.float32(0)))
    print(vectors.shape)
    for words, rows in zip(batch, vectors, strict=True):
        for word, vector in zip(words, rows, strict=False):
            print(word, *(f"{number:.7f}" for number in vector[:5]))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
