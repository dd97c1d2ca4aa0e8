"""Whether a model in HDF5 is whole, who can read it, and whether its vectors agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig
from elmojax.embedding.functions import encode
from elmojax.embedding.words import WordIndex
from elmojax.errors import InputError
from elmojax.formats.hdf5 import PathLike, open_hdf5
from elmojax.formats.published import (
    N_CHARACTERS,
    Entry,
    Options,
    Shape,
    config_of,
    layout,
    read_options,
)
from elmojax.model.bilm import ElmoParams
from elmojax.text.characters import encoder_ids, padded_ids
from elmojax.text.vocabulary import Vocabulary


class ArrayReport(NamedTuple):
    """One line of the table of `check_hdf5`."""

    name: str
    wanted: Shape | None
    """The shape that options.json calls for; None: no such array is expected."""
    found: Shape | None
    state: str
    """ok | missing | superfluous | wrong shape | not finite | not floating point."""


class Report(NamedTuple):
    """What `check_hdf5` found."""

    config: ElmoConfig
    arrays: tuple[ArrayReport, ...]
    """Expected arrays in reading order, then superfluous ones."""
    notes: tuple[str, ...]
    """Which other programs do not read this model, or read it otherwise; no faults."""

    @property
    def good(self) -> bool:
        """Whether every array is as expected and there is no other."""
        return all(array.state == "ok" for array in self.arrays)


def check_hdf5(options_file: PathLike, weights_file: PathLike) -> Report:
    """Compares every array of a weights file with what its options call for.

    Args:
      options_file: options.json.
      weights_file: weights.hdf5.

    Returns:
      Report. A fault of an array is a line of it and raises nothing.

    Raises:
      InputError: if a file cannot be read as JSON or HDF5 at all, or the options
        describe no model.
    """
    options = read_options(Path(options_file))
    with open_hdf5(Path(weights_file)) as file:
        found = file.shapes
        config = config_of(options, found)
        entries = layout(config, found)

        def state(entry: Entry) -> str:
            if entry.name not in found:
                return "missing"
            if found[entry.name] is None:
                return "not floating point"
            if found[entry.name] != entry.shape:
                return "wrong shape"
            try:
                file.take(entry.name, entry.shape)
            except InputError:
                return "not finite"
            return "ok"

        arrays = [
            ArrayReport(entry.name, entry.shape, found.get(entry.name), state(entry))
            for entry in entries
        ]
    known = {entry.name for entry in entries}
    arrays += [
        ArrayReport(name, None, shape, "superfluous")
        for name, shape in found.items()
        if name not in known
    ]
    return Report(config, tuple(arrays), tuple(_notes(config, options)))


def _notes(config: ElmoConfig, options: Options) -> Iterable[str]:
    encoder, lstm = config.encoder, config.lstm
    if not lstm.skip_connections:
        yield "AllenNLP refuses models without skip connections."
    if lstm.layers > 8:
        yield "bilm-tf reads at most 8 layers."
    if lstm.dim < lstm.projection:
        yield "bilm-tf cannot run an LSTM whose dim is less than its projection_dim."
    if lstm.dim == lstm.projection:
        yield "bilm-tf leaves W_P_0 out, as dim equals projection_dim."
    if not isinstance(encoder, CharCnnConfig):
        yield "AllenNLP reads no models over words; bilm-tf needs their vocabulary."
        return
    if encoder.filter_count < lstm.projection:
        yield "bilm-tf refuses fewer filters than projection_dim."
    if encoder.filter_count == lstm.projection and encoder.project:
        yield "bilm-tf leaves CNN_proj out, as there are projection_dim filters."
    if encoder.characters != N_CHARACTERS - 1:
        yield f"bilm-tf refuses char_embed with {encoder.characters} rows."
    if encoder.max_characters != 50:
        yield "AllenNLP makes character ids for max_characters_per_token 50 only."
    section = options.section("char_cnn")
    if "n_characters" not in section or section.get("n_characters") != N_CHARACTERS:
        yield f"bilm-tf wants n_characters to be {N_CHARACTERS}."


class LayerDifference(NamedTuple):
    """One line of the table of `compare_embeddings`."""

    layer: int
    """0 = token layer."""
    largest: float
    """Largest absolute difference of any number."""
    sentence: int
    """Where it is: number of the sentence, from 0."""
    word: int
    """Place of the word in it, from 0."""


def compare_embeddings(
    params: ElmoParams,
    sentences: Iterable[Sequence[str]],
    embedding_file: PathLike,
    carry: bool = True,
    vocabulary: Vocabulary | WordIndex | None = None,
) -> tuple[LayerDifference, ...]:
    """The largest difference of each layer from vectors that somebody else computed.

    Args:
      params: any model.
      sentences: the text, in order: lists of words.
      embedding_file: HDF5; data set "i" has the vectors of sentence i from 0: all
        layers, [layers + 1, words, 2 * projection], as bilm-tf's dump_bilm_embeddings
        and `elmojax embed` write them; or the top layer alone, [words, 2 * projection]
        or, forward and backward apart, [2, words, projection].
      carry: each sentence starts from the state the last one ended with, as bilm-tf
        and AllenNLP have it; False: all from `params.initial_state`.
      vocabulary: of a model that reads word ids.

    Returns:
      One LayerDifference for each layer that the file holds.

    Raises:
      InputError: if the file is none, or does not fit the sentences or the model.
    """
    encoder = params.config.encoder
    ids_of = partial(encoder_ids, encoder, vocabulary=vocabulary)
    ids_of([])
    run = jax.jit(encode)
    state = params.initial_state.for_batch(1)
    worst: dict[int, LayerDifference] = {}
    with open_hdf5(Path(embedding_file)) as file:
        number = -1
        for number, sentence in enumerate(sentences):
            ids = _padded(padded_ids([sentence], ids_of))
            layers, _, after = run(params, ids, state)
            state = after if carry else state
            ours = np.asarray(layers[0, :, : len(sentence)])
            shape = file.shapes.get(str(number))
            if shape is None:
                raise InputError(f"{embedding_file} has no vectors of line {number}.")
            theirs = file.take(str(number), shape)
            pairs = _aligned(theirs, ours, f"{embedding_file}: line {number}")
            for layer, difference in pairs:
                word = int(difference.argmax()) if difference.size else 0
                largest = float(difference[word]) if difference.size else 0.0
                if layer not in worst or largest > worst[layer].largest:
                    worst[layer] = LayerDifference(layer, largest, number, word)
        if str(number + 1) in file.shapes:
            raise InputError(
                f"{embedding_file} has vectors of more lines than the {number + 1} of "
                "the text; is it of this text?"
            )
    return tuple(worst[layer] for layer in sorted(worst))


def _padded(ids: np.ndarray) -> np.ndarray:
    """Ids of a sentence [1, time, ...] in few lengths, so few programs."""
    words = ids.shape[1]
    after = (1 << max(3, (words - 1).bit_length())) - words
    return np.pad(ids, ((0, 0), (0, after)) + ((0, 0),) * (ids.ndim - 2))


def _aligned(
    theirs: np.ndarray, ours: np.ndarray, where: str
) -> list[tuple[int, np.ndarray]]:
    """(layer, largest difference of each word) for the layers that the file has."""
    count, words, width = ours.shape
    top = count - 1
    if theirs.shape == ours.shape:
        pairs = list(enumerate(theirs))
    elif theirs.shape == (words, width):
        pairs = [(top, theirs)]
    elif theirs.shape == (2, words, width // 2):
        pairs = [(top, np.concatenate(list(theirs), axis=-1))]
    else:
        raise InputError(
            f"{where} has vectors of shape {list(theirs.shape)}; this model gives "
            f"{list(ours.shape)}. Is it the same text and model?"
        )
    return [(layer, np.abs(ours[layer] - x).max(axis=-1)) for layer, x in pairs]
