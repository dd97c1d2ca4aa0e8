"""Models in TensorFlow's checkpoint format (`tf_bundle`), without TensorFlow.

bilm-tf (`bin/train_elmo.py`) saves options.json, `checkpoint`, which names the newest
step, and that step's variables. Those of the model are

    lm/char_embed  lm/CNN/{W,b}_cnn_K  lm/CNN_high_K/{W,b}_{carry,transform}
    lm/CNN_proj/{W,b}_proj             or, for words, lm/embedding
    lm/RNN_D/rnn/multi_rnn_cell/cell_K/lstm_cell/{kernel, bias, projection/kernel}
    lm/softmax/{W, b}                  W is lm/embedding where both share it

with direction D, 0 = forward, and without `multi_rnn_cell/cell_K/` where there is only
one layer. But for their names they are the data sets of weights.hdf5, see `published`.

A module of TF-Hub, such as https://tfhub.dev/google/elmo/3, is a directory with such
variables in variables/variables.index and .data-*; `lm` is called `bilm` there, an LSTM

    bilm/RNN_D/RNN/MultiRNNCell/CellK/rnn/lstm_cell/{kernel, bias, projection/kernel}

and there are, too,

    aggregation/weights [layers + 1]   logits of the mix of layers
    aggregation/scaling []             its scale

It puts a row for padding before the 261 rows of char_embed. A module has no
options.json: shapes tell its sizes, and the rest is as in the published model (ReLU, 50
characters a word, clips of 3, skip connections), unless there is an options.json beside
`variables`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from elmojax.errors import InputError
from elmojax.formats.assembly import HEAD_NAMES, Arrays, assemble, to_jax
from elmojax.formats.published import GATES, Options, Shape, read_options
from elmojax.formats.tf_bundle import Bundle, checkpoint_prefix
from elmojax.model.bilm import ElmoParams, Placement
from elmojax.model.mix import mix_weights
from elmojax.text.characters import CHARACTERS

SCOPE, HUB_SCOPE = "lm/", "bilm/"
CELL_NAMES = (
    ("/rnn/", "/RNN/"),
    ("/multi_rnn_cell/cell_", "/MultiRNNCell/Cell"),
    ("/lstm_cell/", "/LSTMCell/"),
    ("/projection/kernel", "/W_P_0"),
    ("/kernel", "/W_0"),
    ("/bias", "/B"),
)
"""Of variables under RNN_0 and RNN_1: here, and in weights.hdf5 (in this order)."""
VARIABLES = Path("variables", "variables")
LOGITS, SCALE = "aggregation/weights", "aggregation/scaling"
ABSENT = {
    "n_layers": 1,
    "cell_clip": None,
    "proj_clip": None,
    "use_skip_connections": False,
}
"""What bilm-tf trains with where the `lstm` of options.json does not say."""


# --- a training checkpoint -----------------------------------------------------------


def load_tf_checkpoint(
    path: str | os.PathLike[str],
    options_file: str | os.PathLike[str] | None = None,
    *,
    head: bool = True,
    sharding: Placement = None,
) -> tuple[ElmoParams, dict[str, Array] | None]:
    """The model of a checkpoint that bilm-tf trained, and its softmax.

    Args:
      path: the prefix (`runs/a/model.ckpt-40`), one of the files themselves, or a
        directory whose file `checkpoint` names the newest.
      options_file: options.json of the training run; by default the one beside the
        checkpoint.
      head: whether to read the softmax.
      sharding: where the arrays of the biLM go, as for `restore`; None = uncommitted.

    Returns:
      ElmoParams (float32, initial state zero), and the full softmax of `model.softmax`,
      {"kernel": [vocabulary, projection], "bias": [vocabulary]}, its words numbered as
      in the vocabulary file of the run; None where the checkpoint holds none, or
      without `head`. What the optimizer keeps is left out. An LSTM without projection
      gets the identity.

    Raises:
      InputError: for files that are missing, cut short, damaged or no checkpoint; for
        options that are missing, no JSON or not those of a bidirectional model; and for
        variables that are missing, superfluous, of another shape than the options say,
        or not finite.
    """
    prefix = checkpoint_prefix(path)
    file = Path(options_file) if options_file else prefix.parent / "options.json"
    options = _training_options(file)
    bundle = Bundle(prefix)
    weights = _weights(bundle.variables.keys())
    if not head:
        weights = {name for name in weights if not name.startswith(f"{SCOPE}softmax/")}
    arrays = _arrays(bundle.read(weights.__contains__), SCOPE, prefix, file)
    params = assemble(options, arrays, sharding)
    softmax = _head(options, arrays, params)
    arrays.end()
    return params, softmax


def _training_options(file: Path) -> Options:
    """options.json with what bilm-tf assumes where it is silent."""
    options = read_options(file)
    if "bidirectional" in options and not options.flag("bidirectional"):
        raise InputError(
            f"{file}: bidirectional is false; elmojax has no models of one direction."
        )
    lstm = options.get("lstm")
    if isinstance(lstm, dict):
        lstm.update({**ABSENT, **lstm})
    return options


def _weights(names: Set[str]) -> Set[str]:
    """The model's own variables: `lm/softmax/W/Adagrad` is the optimizer's, because
    there is an `lm/softmax/W`."""

    def parents(name: str) -> Iterable[str]:
        parts = name.split("/")
        return ("/".join(parts[:end]) for end in range(1, len(parts)))

    ours = {name for name in names if name.startswith(SCOPE)}
    return {name for name in ours if ours.isdisjoint(parents(name))}


def _arrays(
    variables: dict[str, np.ndarray], scope: str, where: Path, options: object
) -> Arrays:
    """Variables under their names in weights.hdf5."""
    named = {}
    for name, array in variables.items():
        name = name.partition(scope)[2]
        name = re.sub(r"(/Cell\d+)/rnn/", r"\1/", name)
        if name.startswith("RNN_"):
            for theirs, published in CELL_NAMES:
                name = name.replace(theirs, published)
        named[name] = array
    return Arrays.of(named, where, options)


def _head(
    options: Options, arrays: Arrays, params: ElmoParams
) -> dict[str, Array] | None:
    """The full softmax; a sampled one trains the same variables."""
    kernel, bias = HEAD_NAMES["kernel"], HEAD_NAMES["bias"]
    if bias not in arrays.shapes:
        return None
    # Options as they were published, for use and not for training, do not count words.
    words = max(arrays.shapes[bias] or (0,), default=0)
    if "n_tokens_vocab" in options:
        words = options.whole("n_tokens_vocab")
    # Copies: an array must not change with the file.
    head = {"bias": np.array(arrays.take(bias, (words,)))}
    shared = "share_embedding_softmax"
    if shared in options and options.flag(shared):
        return {"kernel": params.encoder["embedding"], **to_jax(head)}
    width = params.config.lstm.projection
    head["kernel"] = np.array(arrays.take(kernel, (words, width)))
    return to_jax(head)


# --- a module of TF-Hub --------------------------------------------------------------


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
    ours = {name for name in bundle.variables if f"/{HUB_SCOPE}" in f"/{name}"}
    if not ours:
        example = next(iter(bundle.variables), "none")
        raise InputError(
            f"{directory} is a TensorFlow SavedModel of something else than ELMo: none "
            f"of its variables ({example!r} ...) is under {HUB_SCOPE}."
        )
    prefix = min(ours).partition(HUB_SCOPE)[0]  # such as module/
    variables = bundle.read(ours.__contains__)
    table = f"{prefix}{HUB_SCOPE}char_embed"
    if len(variables.get(table, ())) == CHARACTERS + 1:
        variables[table] = variables[table][1:]
    file = directory / "options.json"
    where = file if file.exists() else "such a model"
    arrays = _arrays(variables, HUB_SCOPE, directory, where)
    options = read_options(file) if file.exists() else _options(arrays)
    params = assemble(options, arrays, sharding)
    mix = bundle.read(lambda name: name in (prefix + LOGITS, prefix + SCALE))
    return params, _mix(
        {name.removeprefix(prefix): array for name, array in mix.items()},
        params.config.lstm.layers + 1,
        directory,
    )


def _options(arrays: Arrays) -> Options:
    """What options.json would say of a model of these arrays."""

    def shape(name: str, axes: int) -> Shape:
        found = arrays.shapes.get(name) or ()
        if len(found) != axes:
            raise InputError(
                f"{arrays.where} has no variable {HUB_SCOPE}{name} of floating-point "
                f"numbers with {axes} axes, which a model of ELMo has; is it a whole "
                "one?"
            )
        return found

    def count(pattern: str) -> int:
        found = (re.fullmatch(pattern, name) for name in arrays.shapes)
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
    return Options(values, arrays.where)


def _mix(
    variables: dict[str, np.ndarray], layers: int, directory: Path
) -> np.ndarray | None:
    if not variables:
        return None
    mix = Arrays.of(variables, directory, f"a mix of {layers} layers")
    return np.asarray(mix_weights(mix.take(LOGITS, (layers,)), mix.take(SCALE, ())))
