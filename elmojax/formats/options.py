"""options.json, the other half of a published biLM: read with care, and written.

bilm-tf and AllenNLP differ in what they take for granted when a key is missing (no
clipping, or an error); here every key must be there, and null means none.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig, WordTableConfig
from elmojax.errors import InputError
from elmojax.formats.published import Shapes, has_projection

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
            f"{self.where}: {self._path}{key} is {self.get(key)!r}; it must be "
            f"{wanted}."
        )

    def whole(self, key: str, least: int = 1, most: int = 1 << 31) -> int:
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
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not value > 0:
            raise self.wrong(key, "a number above 0, or null for no clipping")
        return float(value)

    def flag(self, key: str) -> bool:
        if not isinstance(self.get(key), bool):
            raise self.wrong(key, "true or false")
        return self.get(key)

    def filters(self, key: str) -> tuple[tuple[int, int], ...]:
        value: list[list[int]] = self.get(key)
        good = isinstance(value, list) and 0 < len(value) <= MOST
        for pair in value if good else []:
            pairs = isinstance(pair, list) and [type(n) for n in pair] == [int, int]
            good = good and pairs and all(0 < n < 1 << 31 for n in pair)
        if not good:
            raise self.wrong(key, "a list of pairs: width, number of filters")
        return tuple((width, count) for width, count in value)


def read_options(path: Path) -> Options:
    """The content of an options.json.

    Raises:
      InputError: if there is no such file, or it holds no JSON object.
    """
    try:
        return Options(json.loads(path.read_bytes().decode("utf-8-sig")), path)
    except OSError as error:
        raise InputError(
            f"The options {path} cannot be read: {error.strerror}. Give the "
            "options.json of the model."
        ) from error
    except (ValueError, RecursionError) as error:
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
    section = options.section("lstm")
    lstm = LstmConfig(
        dim=section.whole("dim"),
        projection=section.whole("projection_dim"),
        layers=section.whole("n_layers", most=MOST),
        cell_clip=section.clip("cell_clip"),
        projection_clip=section.clip("proj_clip"),
        skip_connections=section.flag("use_skip_connections"),
    )
    if not has_projection(lstm, found):  # TensorFlow clips projections only
        lstm = replace(lstm, projection_clip=math.inf)
    if "char_cnn" in options:
        cnn = _char_cnn(options.section("char_cnn"), lstm, found)
        return ElmoConfig(cnn, lstm)
    return ElmoConfig(_word_table(options, lstm, found), lstm)


def _char_cnn(section: Options, lstm: LstmConfig, found: Shapes) -> CharCnnConfig:
    filters = section.filters("filters")
    widest = max(width for width, _ in filters)
    activation = section.get("activation")
    if activation not in ("relu", "tanh"):
        raise section.wrong("activation", "'relu' or 'tanh'")
    # `projection` is ours: false where the CNN has none, though the file may hold one.
    same = sum(count for _, count in filters) == lstm.projection
    stored = any(name.startswith("CNN_proj/") for name in found)
    wanted = section.flag("projection") if "projection" in section else stored
    rows = (found.get("char_embed") or (0,))[:1]
    return CharCnnConfig(
        filters=filters,
        embedding_dim=section.section("embedding").whole("dim"),
        highway_layers=(
            section.whole("n_highway", 0, MOST) if "n_highway" in section else 0
        ),
        activation=activation,
        max_characters=section.whole("max_characters_per_token", max(3, widest)),
        characters=max(261, *rows),
        project=wanted or not same,
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
