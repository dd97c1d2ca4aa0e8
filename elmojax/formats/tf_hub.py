"""A module of TF-Hub, such as https://tfhub.dev/google/elmo/3, read without TensorFlow.

A directory (a hub module or a SavedModel) with the variables of bilm-tf's graph in
variables/variables.index and .data-*, under these names, in TensorFlow's checkpoint
format (`tf_bundle`):

    bilm/char_embed  bilm/CNN/{W,b}_cnn_K  bilm/CNN_high_K/{W,b}_{carry,transform}
    bilm/CNN_proj/{W,b}_proj
    bilm/RNN_D/RNN/MultiRNNCell/CellK/rnn/lstm_cell/{kernel, bias, projection/kernel}
    aggregation/weights [layers + 1]   logits of the mix of layers
    aggregation/scaling []             its scale

D is the direction, 0 = forward. bilm-tf's graph puts a row for padding before the 261
rows of char_embed. A module has no options.json: shapes tell its sizes, and the rest is
as in the published model (ReLU, 50 characters a word, clips of 3, skip connections),
unless there is an options.json beside `variables`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from elmojax.errors import InputError
from elmojax.formats.assembly import assemble, require_finite
from elmojax.formats.published import GATES, Options, read_options
from elmojax.formats.tf_bundle import Bundle
from elmojax.formats.tf_checkpoint import CELL_NAMES
from elmojax.model.bilm import ElmoParams, Placement
from elmojax.model.mix import mix_weights
from elmojax.text.characters import CHARACTERS

VARIABLES = Path("variables", "variables")
SCOPE = "bilm/"
LOGITS, SCALE = "aggregation/weights", "aggregation/scaling"


def load_hub_module(
    directory: str | Path, *, sharding: Placement = None
) -> tuple[ElmoParams, np.ndarray | None]:
    """The model of a module, and its mix of layers.

    Args:
      directory: of the module.
      sharding: where the arrays go, as for `restore`; None = uncommitted.

    Returns:
      ElmoParams, and the weights of the layers float32 [layers + 1] as `embed` takes
      them, softmax(aggregation/weights) * aggregation/scaling; None where the module
      has no such variables.

    Raises:
      InputError: for files that are missing, cut short or damaged, and for variables
        that are those of another model, missing, of other shapes or not finite.
    """
    directory = Path(directory)
    bundle = Bundle(directory / VARIABLES)
    ours = {name for name in bundle.variables if f"/{SCOPE}" in f"/{name}"}
    if not ours:
        example = next(iter(bundle.variables), "none")
        raise InputError(
            f"{directory} is a TensorFlow SavedModel of something else than ELMo: none "
            f"of its variables ({example!r} ...) is under {SCOPE}."
        )
    prefix = min(ours).partition(SCOPE)[0]  # such as module/
    stored = bundle.read(
        lambda name: name in ours or name in (prefix + LOGITS, prefix + SCALE)
    )
    arrays = {
        _published(name.removeprefix(prefix + SCOPE)): array
        for name, array in stored.items()
        if name in ours
    }
    table = arrays.get("char_embed")
    if table is not None and table.ndim == 2 and len(table) == CHARACTERS + 1:
        arrays["char_embed"] = table[1:]

    def read(name: str, into: np.ndarray) -> None:
        into[...] = arrays[name]
        require_finite(into, name, directory)

    shapes = {
        name: array.shape if jnp.issubdtype(array.dtype, jnp.floating) else None
        for name, array in arrays.items()
    }
    file = directory / "options.json"
    options = read_options(file) if file.exists() else _options(arrays, directory)
    params = assemble(options, shapes, read, directory, sharding)
    return params, _mix(stored, prefix, params.config.lstm.layers + 1, directory)


def _published(name: str) -> str:
    """A variable's name in weights.hdf5."""
    if not name.startswith("RNN_"):
        return name
    name = name.replace("/rnn/lstm_cell/", "/lstm_cell/")
    for theirs, published in CELL_NAMES:
        name = name.replace(theirs, published)
    return name


def _options(arrays: dict[str, np.ndarray], directory: Path) -> Options:
    """What options.json would say of a model of these arrays."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim != axes:
            raise InputError(
                f"{directory} has no variable {SCOPE}{name} with {axes} axes, which a "
                "model of ELMo has; is it a whole one?"
            )
        return arrays[name].shape

    def count(pattern: str) -> int:
        found = (re.fullmatch(pattern, name) for name in arrays)
        return len({match[1] for match in found if match})

    cells = "RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell"
    layers = count(r"RNN_0/RNN/MultiRNNCell/Cell(\d+)/LSTMCell/W_0")
    inputs, gates = shape(f"{cells}/W_0", 2)
    kernels = [shape(f"CNN/W_cnn_{i}", 4) for i in range(count(r"CNN/W_cnn_(\d+)"))]
    values: dict[str, Any] = {
        "lstm": {
            "dim": gates // len(GATES),
            "projection_dim": inputs // 2,
            "n_layers": layers,
            "cell_clip": 3,
            "proj_clip": 3,
            "use_skip_connections": True,
        },
        "char_cnn": {
            "activation": "relu",
            "embedding": {"dim": shape("char_embed", 2)[1]},
            "filters": [[kernel[1], kernel[3]] for kernel in kernels],
            "max_characters_per_token": 50,
            "n_highway": count(r"CNN_high_(\d+)/W_carry"),
        },
    }
    return Options(values, directory)


def _mix(
    stored: dict[str, np.ndarray], prefix: str, layers: int, directory: Path
) -> np.ndarray | None:
    logits, scale = (stored.get(prefix + name) for name in (LOGITS, SCALE))
    if logits is None and scale is None:
        return None
    for name, array, size in ((LOGITS, logits, layers), (SCALE, scale, 1)):
        if array is None or array.size != size:
            found = "missing" if array is None else list(array.shape)
            raise InputError(
                f"{directory}: the variable {name} is {found}; a mix of {layers} "
                f"layers has {size} of it."
            )
        require_finite(array, name, directory)
    assert logits is not None and scale is not None
    mix = mix_weights(np.float32(logits).reshape(-1), np.float32(scale).reshape(()))
    return np.asarray(mix)
