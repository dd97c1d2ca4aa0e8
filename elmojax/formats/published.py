"""The published form of a biLM: options.json, and names and shapes of weights.hdf5.

Sources: bilm-tf (`bilm/model.py` reads it, `dump_weights` in `bilm/training.py` writes
it) and AllenNLP (`allennlp/modules/elmo.py`, `elmo_lstm.py`). These differ in what they
take for granted when a key of options.json is missing (no clipping, or an error); here
every key must be there, and null means none. Only skip connections may be left out, as
many published files do: bilm-tf then has none.

The LSTM's order of gates, its forget bias and its bias are those of TensorFlow's
LSTMCell and ours too, so arrays go in and out with another shape but the same numbers
in the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from elmojax.arguments import require, shown
from elmojax.config import (
    CharCnnConfig,
    ElmoConfig,
    Filters,
    Limit,
    LstmConfig,
    WordTableConfig,
)
from elmojax.disk import parse_json
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
    encoder = config.encoder
    if isinstance(encoder, CharCnnConfig):
        entries = _character_entries(encoder, config.lstm, found)
    elif isinstance(encoder, WordTableConfig):
        entries = _word_entries(encoder, config.lstm)
    else:
        raise InputError(
            "AllenNLP and bilm-tf read no models with dictionaries of Unicode "
            "characters; keep this one as ELMoForManyLangs has it, or as a run "
            "directory."
        )
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


def _word_entries(table: WordTableConfig, lstm: LstmConfig) -> list[Entry]:
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


N_CHARACTERS = 262
"""n_characters of options.json: the rows of char_embed and one for padding, which the
readers put in front. bilm-tf wants it; rows are always counted in the array."""
MOST = 100
"""Layers of a kind that anybody has; more is a mistake."""


class Options:
    """One level of options.json; every complaint names the file and the key."""

    def __init__(self, values: Any, where: object, path: str = "") -> None:
        self.where, self._path = where, path
        if not isinstance(values, dict):
            what = f"{path.rstrip('.')} in it" if path else "it"
            raise InputError(f"{where}: {what} is not an object of names and values.")
        self._values: dict[str, Any] = values

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def get(self, key: str) -> Any:
        if key not in self._values:
            raise InputError(
                f"{self.where} has no {self._path}{key}; is it the options.json of an "
                "ELMo model? Take the file that belongs to these weights."
            )
        return self._values[key]

    def section(self, key: str) -> Options:
        return Options(self.get(key), self.where, f"{self._path}{key}.")

    def wrong(self, key: str, wanted: str) -> InputError:
        return InputError(
            f"{self.where}: {self._path}{key} is {shown(self.get(key))}; it must be "
            f"{wanted}."
        )

    def whole(self, key: str, least: int = 1, most: int = 1 << 17) -> int:
        value = self.get(key)
        good = isinstance(value, int) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def clip(self, key: str) -> float:
        """A number above 0; null is no clipping."""
        value = self.get(key)
        if value is None:
            return math.inf
        return self._fit(key, Limit, "a number above 0, or null for no clipping")

    def flag(self, key: str) -> bool:
        """Also "true", which files have; bilm-tf takes any other string for true."""
        value = self.get(key)
        if not isinstance(value, bool) and value not in ("true", "True"):
            raise self.wrong(key, "true or false")
        return bool(value)

    def filters(self, key: str) -> tuple[tuple[int, int], ...]:
        return self._fit(key, Filters, "a list of pairs: width, number of filters")

    def _fit(self, key: str, hint: Any, called: str) -> Any:
        value = self.get(key)
        try:
            return require(key, value, hint)
        except InputError as error:
            raise self.wrong(key, called) from error


def read_options(path: Path) -> Options:
    """The content of an options.json.

    Raises:
      InputError: if there is no such file, or it holds no JSON object.
    """
    try:
        return Options(parse_json(path.read_bytes().decode("utf-8-sig")), path)
    except OSError as error:
        raise InputError(
            f"The options {path} cannot be read: {error.strerror}. Give the "
            "options.json of the model."
        ) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not JSON ({error}). Give the options.json of the model first, "
            "then its weights; was it cut short?"
        ) from error


def config_of(options: Options, found: Shapes) -> ElmoConfig:
    """The model that options.json describes.

    What the arrays themselves tell is taken from `found`: the rows of char_embed (261,
    or 262 in some models) and of a word table, and whether there are projections.

    Raises:
      InputError: for a missing key or a value that makes no sense, naming it.
    """
    section, skip = options.section("lstm"), "use_skip_connections"
    lstm = lstm_of(section, skip in section and section.flag(skip))
    if not has_projection(lstm, found):  # TensorFlow clips projections only
        lstm = replace(lstm, projection_clip=math.inf)
    if "char_cnn" in options:
        cnn = _char_cnn(options.section("char_cnn"), lstm, found)
        return ElmoConfig(cnn, lstm)
    return ElmoConfig(_word_table(options, lstm, found), lstm)


def lstm_of(section: Options, skip_connections: bool) -> LstmConfig:
    """The LSTM, under the names that ELMoForManyLangs has, too."""
    return LstmConfig(
        dim=section.whole("dim"),
        projection=section.whole("projection_dim"),
        layers=section.whole("n_layers", most=MOST),
        cell_clip=section.clip("cell_clip"),
        projection_clip=section.clip("proj_clip"),
        skip_connections=skip_connections,
    )


def cnn_of(section: Options) -> dict[str, Any]:
    """Fields of the CNN over characters, under such names."""
    filters = section.filters("filters")
    widest = max(width for width, _ in filters)
    if section.get("activation") not in ("relu", "tanh"):
        raise section.wrong("activation", "'relu' or 'tanh'")
    highways = section.whole("n_highway", 0, MOST) if "n_highway" in section else 0
    longest = section.whole("max_characters_per_token", max(3, widest), 1 << 16)
    return {
        "filters": filters,
        "activation": section.get("activation"),
        "highway_layers": highways,
        "max_characters": longest,
    }


def _char_cnn(section: Options, lstm: LstmConfig, found: Shapes) -> CharCnnConfig:
    cnn = cnn_of(section)
    same = sum(count for _, count in cnn["filters"]) == lstm.projection
    rows = (found.get("char_embed") or (0,))[:1]
    _require_bytes(section, *rows)
    return CharCnnConfig(
        **cnn,
        embedding_dim=section.section("embedding").whole("dim"),
        characters=max(261, *rows),
        project=_projects(section, lstm, found) or not same,
    )


def _projects(section: Options, lstm: LstmConfig, found: Shapes) -> bool:
    """`projection` is our key: false where the CNN has none, though the file may hold
    one. Others have it too, as an object with the width."""
    if "projection" not in section:
        return any(name.startswith("CNN_proj/") for name in found)
    if isinstance(section.get("projection"), dict):
        width = section.section("projection")
        if width.whole("dim") != lstm.projection:
            raise width.wrong("dim", f"lstm.projection_dim, {lstm.projection}")
        return True
    return section.flag("projection")


def _require_bytes(section: Options, rows: int = 0) -> None:
    """`InputError` for a model whose characters are others than the bytes of UTF-8."""
    told = section.get("n_characters") if "n_characters" in section else 0
    if (most := max(rows, told if isinstance(told, int) else 0)) > N_CHARACTERS:
        raise InputError(
            f"{section.where} is of a model with {most} different characters "
            f"(char_embed, n_characters), such as those of Unicode; elmojax reads "
            f"models of UTF-8 bytes, which have {N_CHARACTERS - 1} or {N_CHARACTERS}."
        )


def _word_table(options: Options, lstm: LstmConfig, found: Shapes) -> WordTableConfig:
    """A model over words; only elmojax writes the key and the group `word_table`."""
    name = "word_table/embedding" if "word_table/embedding" in found else "embedding"
    shape = found.get(name) or ()
    size, dim = shape if len(shape) == 2 and min(shape) > 0 else (1, lstm.projection)
    if name == "embedding":
        dim = lstm.projection
    if "word_table" not in options or name not in found:
        return WordTableConfig(size, dim)
    section, last = options.section("word_table"), max(size, 2) - 1
    rows = (section.whole(key, 0, last) for key in ("begin_row", "end_row"))
    return WordTableConfig(size, dim, *rows)


def options_of(config: ElmoConfig) -> dict[str, Any]:
    """What options.json says of a model, for all three programs."""
    lstm, encoder = config.lstm, config.encoder
    clips = (lstm.cell_clip, lstm.projection_clip)
    cell_clip, proj_clip = (None if math.isinf(clip) else clip for clip in clips)
    options: dict[str, Any] = {
        "lstm": {
            "cell_clip": cell_clip,
            "dim": lstm.dim,
            "n_layers": lstm.layers,
            "proj_clip": proj_clip,
            "projection_dim": lstm.projection,
            "use_skip_connections": lstm.skip_connections,
        }
    }
    if isinstance(encoder, WordTableConfig):
        options["n_tokens_vocab"] = encoder.size
        rows = {"begin_row": encoder.begin_row, "end_row": encoder.end_row}
        return {**options, "word_table": rows}
    assert isinstance(encoder, CharCnnConfig)  # `layout` refuses others
    options["char_cnn"] = {
        "activation": encoder.activation,
        "embedding": {"dim": encoder.embedding_dim},
        "filters": [list(pair) for pair in encoder.filters],
        "max_characters_per_token": encoder.max_characters,
        "n_characters": N_CHARACTERS,
        "n_highway": encoder.highway_layers,
    }
    if not encoder.project:
        options["char_cnn"]["projection"] = False
    return options
