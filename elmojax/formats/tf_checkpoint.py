"""bilm-tf's training checkpoint to `ElmoParams` and the softmax, without TensorFlow.

bilm-tf (`bin/train_elmo.py`) saves options.json, `checkpoint`, which names the newest
step, and that step's variables (`tf_bundle` reads them). Those of the model are

    lm/char_embed  lm/CNN/{W,b}_cnn_K  lm/CNN_high_K/{W,b}_{carry,transform}
    lm/CNN_proj/{W,b}_proj             or, for words, lm/embedding
    lm/RNN_D/rnn/multi_rnn_cell/cell_K/lstm_cell/{kernel, bias, projection/kernel}
    lm/softmax/{W, b}                  W is lm/embedding where both share it

with direction D, 0 = forward, and without `multi_rnn_cell/cell_K/` where there is only
one layer. But for their names they are the data sets of weights.hdf5, see `published`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Set
from pathlib import Path

import jax
import numpy as np
from jax import Array

from elmojax.config import ElmoConfig
from elmojax.errors import InputError
from elmojax.formats.assembly import to_jax
from elmojax.formats.published import Options, Shape, config_of, layout, read_options
from elmojax.formats.tf_bundle import Bundle, checkpoint_prefix
from elmojax.model.bilm import (
    ElmoParams,
    Placement,
    from_tree,
    placements,
    tree_shapes,
)
from elmojax.shapes import Params

SCOPE = "lm/"
CELL_NAMES = (
    ("/rnn/", "/RNN/"),
    ("/multi_rnn_cell/cell_", "/MultiRNNCell/Cell"),
    ("/lstm_cell/", "/LSTMCell/"),
    ("/projection/kernel", "/W_P_0"),
    ("/kernel", "/W_0"),
    ("/bias", "/B"),
)
"""Of variables under RNN_0 and RNN_1: here, and in weights.hdf5 (in this order)."""
SOFTMAX = {"kernel": "softmax/W", "bias": "softmax/b"}
ABSENT = {
    "n_layers": 1,
    "cell_clip": None,
    "proj_clip": None,
    "use_skip_connections": False,
}
"""What bilm-tf trains with where the `lstm` of options.json does not say."""


def read_tf_checkpoint(
    path: str | os.PathLike[str], keep: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    """All variables of a TensorFlow checkpoint (V2), in the order of their names.

    Args:
      path: the prefix (`runs/a/model.ckpt-40`), one of the files themselves, or a
        directory whose file `checkpoint` names the newest.
      keep: which variables to read, by name.

    Returns:
      Read-only arrays as they were stored, mapped from the files (partitioned variables
      are put together in memory). Checksums of all that is read are verified, which
      takes a second or two a gigabyte.

    Raises:
      InputError: for files that are missing, cut short, damaged or no checkpoint, and
        for variables that are no arrays of numbers.
    """
    return Bundle(checkpoint_prefix(path)).read(keep)


def load_tf_checkpoint(
    path: str | os.PathLike[str],
    options_file: str | os.PathLike[str] | None = None,
    *,
    head: bool = True,
    sharding: Placement = None,
) -> tuple[ElmoParams, dict[str, Array] | None]:
    """The model of a checkpoint that bilm-tf trained, and its softmax.

    Args:
      path: as for `read_tf_checkpoint`.
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
      InputError: as `read_tf_checkpoint`; for options that are missing, no JSON or not
        those of a bidirectional model; and for variables that are missing, superfluous,
        of another shape than the options say, or not finite.
    """
    prefix = checkpoint_prefix(path)
    file = Path(options_file) if options_file else prefix.parent / "options.json"
    options = _training_options(file)
    bundle = Bundle(prefix)
    weights = _weights(bundle.variables.keys())
    if not head:
        weights = {name for name in weights if not name.startswith(f"{SCOPE}softmax/")}
    variables = Variables(bundle.read(lambda name: name in weights), prefix, file)
    config = config_of(options, variables.shapes)
    tree = _tree(config, variables, placements(config, sharding))
    softmax = _head(options, variables, config.lstm.projection, tree["encoder"])
    variables.check_all_taken()
    return from_tree(config, tree), softmax


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


class Variables:
    """A model's variables under their names in weights.hdf5, taken one by one."""

    def __init__(
        self, arrays: dict[str, np.ndarray], prefix: Path, options: Path
    ) -> None:
        self.prefix, self.options = prefix, options
        self._left = {_published_name(name): array for name, array in arrays.items()}
        self.shapes: dict[str, Shape] = {n: a.shape for n, a in self._left.items()}

    def take(self, name: str, shape: Shape) -> np.ndarray:
        """A variable of this shape, finite."""
        there = f"{self.prefix}: {_tensorflow_name(name)}"
        again = "give checkpoint and options of one run"
        if name not in self.shapes:
            raise InputError(
                f"{there} {list(shape)} is missing, which {self.options} calls for; "
                f"{again}."
            )
        array = self._left.pop(name)
        if array.shape != shape:
            raise InputError(
                f"{there} is {list(array.shape)}, but {self.options} calls for "
                f"{list(shape)}; {again}."
            )
        if array.dtype.kind == "c" or not np.isfinite(array).all():
            raise InputError(
                f"{there} has values that are not finite (NaN or infinite) or complex; "
                "the model had diverged, so take an earlier checkpoint."
            )
        return array

    def check_all_taken(self) -> None:
        if self._left:
            raise InputError(
                f"{self.prefix} holds {_tensorflow_name(min(self._left))}, which the "
                f"model of {self.options} does not have; give checkpoint and options "
                "of one run."
            )


def _published_name(name: str) -> str:
    name = name.removeprefix(SCOPE)
    if name.startswith("RNN_"):
        for theirs, published in CELL_NAMES:
            name = name.replace(theirs, published)
    return name


def _tensorflow_name(name: str) -> str:
    if name.startswith("RNN_"):
        for theirs, published in CELL_NAMES:
            name = name.replace(published, theirs)
    return SCOPE + name


def _tree(
    config: ElmoConfig, variables: Variables, places: Params
) -> dict[str, dict[str, Array]]:
    """Encoder and LSTM, float32."""
    shapes = tree_shapes(config)
    tree = {
        part: {name: np.zeros(leaf.shape, np.float32) for name, leaf in leaves.items()}
        for part, leaves in shapes.items()
    }
    if config.lstm.dim == config.lstm.projection:  # no projection, unless one follows
        for layer in range(config.lstm.layers):
            tree["lstm"][f"projection_{layer}"][:] = np.eye(config.lstm.dim)
    for entry in layout(config, variables.shapes):
        array = variables.take(entry.name, entry.shape)
        if entry.leaf is not None:
            part, name = entry.leaf
            target = tree[part][name]
            if entry.direction is not None:
                target = target[entry.direction]
            target[...] = array.reshape(target.shape)
    return {part: to_jax(leaves, places[part]) for part, leaves in tree.items()}


def _head(
    options: Options, variables: Variables, width: int, encoder: dict[str, Array]
) -> dict[str, Array] | None:
    """The full softmax; a sampled one trains the same variables."""
    if SOFTMAX["bias"] not in variables.shapes:
        return None
    # Options as they were published, for use and not for training, do not count words.
    words = max(variables.shapes[SOFTMAX["bias"]], default=0)
    if "n_tokens_vocab" in options:
        words = options.whole("n_tokens_vocab")
    bias = variables.take(SOFTMAX["bias"], (words,))
    shared = "share_embedding_softmax"
    if shared in options and options.flag(shared):
        kernel = encoder["embedding"]
    else:
        # A copy: an array must not change with the file.
        found = variables.take(SOFTMAX["kernel"], (words, width))
        kernel = jax.device_put(np.array(found, np.float32))
    return {"kernel": kernel, "bias": jax.device_put(np.array(bias, np.float32))}
