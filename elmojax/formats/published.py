"""The published form of a biLM: the arrays of weights.hdf5, their names and shapes.

Sources: bilm-tf (`bilm/model.py` reads it, `dump_weights` in `bilm/training.py` writes
it) and AllenNLP (`allennlp/modules/elmo.py`, `elmo_lstm.py`).

Three facts about the LSTM, which are those of TensorFlow's LSTMCell and ours too, so
that arrays go in and out with another shape but the same numbers in the same order:
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig, WordTableConfig
from elmojax.errors import InputError

GATES = ("i", "j", "f", "o")  # order of the column blocks of W_0 and of B
FORGET_BIAS = 1.0  # added to f when it is computed, so it is never part of B
CELL = "RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"  # 0 forward, 1 backward

LONE_CELL = "RNN_{direction}/RNN/LSTMCell"
"""How bilm-tf's dump_weights names the cell of a one-layer model. It is read; CELL, the
name that bilm-tf and AllenNLP look for, is written."""
MODEL_PART = re.compile(r"char_embed$|(CNN|CNN_proj|CNN_high_\d+|RNN_\d+)/")
"""Names that, where there are too many of them, tell the weights of another model."""

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape | None]
"""Data sets of a file and their shapes (None: something that is no array)."""


class Entry(NamedTuple):
    """One data set, and the leaf of our parameters that it is, or is half of."""

    name: str
    shape: Shape
    leaf: tuple[str, str] | None
    """("encoder" | "lstm" | "state", name); None: for other programs, not ours."""
    direction: int | None = None
    """Which half of the leaf; None: all of it."""


def layout(config: ElmoConfig, found: Collection[str] | None = None) -> list[Entry]:
    """The data sets of weights.hdf5 for a model, in reading order.

    `found` are those of a file that is there: where there are several forms, the one
    that the file has. None lists what we write.
    """
    if isinstance(config.encoder, CharCnnConfig):
        entries = _character_entries(config.encoder, config.lstm, found)
    else:
        entries = _word_entries(config.encoder, config.lstm, found)
    for direction in range(2):
        for layer in range(config.lstm.layers):
            entries += _cell_entries(config.lstm, direction, layer, found)
    lstm = config.lstm
    state = [
        Entry("initial_state/cell", (lstm.layers, 2, lstm.dim), ("state", "cell")),
        Entry(
            "initial_state/hidden",
            (lstm.layers, 2, lstm.projection),
            ("state", "hidden"),
        ),
    ]
    return entries + [entry for entry in state if found and entry.name in found]


def _character_entries(
    cnn: CharCnnConfig, lstm: LstmConfig, found: Collection[str] | None
) -> list[Entry]:
    def encoder(name: str, shape: Shape, leaf: str) -> Entry:
        return Entry(name, shape, ("encoder", leaf))

    table = (cnn.characters, cnn.embedding_dim)
    entries = [encoder("char_embed", table, "embedding")]
    for i, (width, count) in enumerate(cnn.filters):
        kernel, bias = f"convolution_{i}_kernel", f"convolution_{i}_bias"
        shape = (1, width, cnn.embedding_dim, count)
        entries.append(encoder(f"CNN/W_cnn_{i}", shape, kernel))
        entries.append(encoder(f"CNN/b_cnn_{i}", (count,), bias))
    width = cnn.filter_count
    for i in range(cnn.highway_layers):
        for gate in ("carry", "transform"):
            kernel, bias = f"highway_{i}_{gate}_kernel", f"highway_{i}_{gate}_bias"
            entries.append(encoder(f"CNN_high_{i}/W_{gate}", (width, width), kernel))
            entries.append(encoder(f"CNN_high_{i}/b_{gate}", (width,), bias))
    projection = [
        encoder("CNN_proj/W_proj", (width, lstm.projection), "projection_kernel"),
        encoder("CNN_proj/b_proj", (lstm.projection,), "projection_bias"),
    ]
    if cnn.project:
        return entries + projection
    # AllenNLP asks for it even so: it gets the identity, which bilm-tf does not read.
    spare = [entry._replace(leaf=None) for entry in projection]
    return entries + [e for e in spare if found is None or e.name in found]


def _word_entries(
    table: WordTableConfig, lstm: LstmConfig, found: Collection[str] | None
) -> list[Entry]:
    ours = ("encoder", "embedding")
    if table.dim == lstm.projection:
        return [Entry("embedding", (table.size, lstm.projection), ours)]
    # The other programs know no projection of words: they get the projected table.
    return [
        Entry("embedding", (table.size, lstm.projection), None),
        Entry("word_table/embedding", (table.size, table.dim), ours),
        Entry(
            "word_table/projection",
            (table.dim, lstm.projection),
            ("encoder", "projection_kernel"),
        ),
    ]


def _cell_entries(
    lstm: LstmConfig, direction: int, layer: int, found: Collection[str] | None
) -> list[Entry]:
    names = {"direction": direction, "layer": layer}
    cell, lone = CELL.format(**names), LONE_CELL.format(**names)
    if found and lstm.layers == 1 and f"{lone}/W_0" in found:
        cell = lone
    inputs, gates = 2 * lstm.projection, len(GATES) * lstm.dim
    entries = [
        Entry(f"{cell}/W_0", (inputs, gates), ("lstm", f"kernel_{layer}"), direction),
        Entry(f"{cell}/B", (gates,), ("lstm", f"bias_{layer}"), direction),
    ]
    leaf = ("lstm", f"projection_{layer}")
    shape = (lstm.dim, lstm.projection)
    projection = Entry(f"{cell}/W_P_0", shape, leaf, direction)
    if has_projection(lstm, found) or found is None:
        entries.append(projection)
    return entries


def has_projection(lstm: LstmConfig, found: Collection[str] | None) -> bool:
    """Whether outputs of the LSTM are projected: in bilm-tf not where dim is equal."""
    stored = any(name.endswith("/W_P_0") for name in found or ())
    return stored or lstm.dim != lstm.projection


def check_shapes(
    entries: list[Entry], found: Shapes, weights: object, options: object
) -> None:
    """`InputError` for the first data set that is missing, misshapen or too many.

    `weights` and `options` name the file and what it is compared with.
    """
    doubt = "Do the two belong to the same model?"
    for name, shape in ((entry.name, entry.shape) for entry in entries):
        if name not in found:
            raise InputError(
                f"{weights} has no data set {name} {list(shape)}, which {options} "
                f"calls for. {doubt}"
            )
        there = found[name]
        if there is None:
            raise InputError(f"{weights}: {name} does not hold floating-point numbers.")
        if there != shape:
            raise InputError(
                f"{weights}: {name} is {list(there)}, but {options} calls for "
                f"{list(shape)}. {doubt}"
            )
    known = {entry.name for entry in entries}
    more = [name for name in found if name not in known and MODEL_PART.match(name)]
    if more:
        raise InputError(
            f"{weights} holds {more[0]}, but the model of {options} has no such part. "
            f"{doubt}"
        )
