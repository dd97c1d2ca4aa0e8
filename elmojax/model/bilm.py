"""The bidirectional language model, and `ElmoParams`, the pytree that travels."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from elmojax.arguments import checked, require, shown
from elmojax.config import CharCnnConfig, ElmoConfig, UnicodeCnnConfig
from elmojax.errors import InputError, one_line
from elmojax.model.char_cnn import CharCnn, UnicodeCnn, WordTable
from elmojax.model.lstm import BiLstm, LstmState
from elmojax.model.ops import Dtype, Platform, require_own_process
from elmojax.model.recurrence import Reset
from elmojax.shapes import Inputs, Key, Lengths, Params


class BiLM(nn.Module):
    """Encoder of words and bidirectional LSTM; the softmax stands apart."""

    config: ElmoConfig
    dropout: float = 0.0
    mesh: Mesh | None = None
    directions: int = 2
    """1 with parameters of one direction only (a leading axis of 1)."""
    dtype: Dtype = None
    """Of matrix products; None = that of the weights, which it does not change."""
    platform: Platform = None

    def setup(self) -> None:
        encoder, lstm = self.config.encoder, self.config.lstm
        if isinstance(encoder, CharCnnConfig):
            self.encoder: nn.Module = CharCnn(
                encoder, lstm.projection, self.mesh, self.dtype, self.platform
            )
        elif isinstance(encoder, UnicodeCnnConfig):
            self.encoder = UnicodeCnn(
                encoder, lstm.projection, self.dtype, self.platform
            )
        else:
            self.encoder = WordTable(encoder, lstm.projection, self.mesh, self.dtype)
        self.lstm = BiLstm(
            lstm,
            self.dropout,
            self.mesh,
            self.directions,
            self.dtype,
            self.platform,
        )

    def __call__(self, words: Array, state: LstmState) -> Array:
        """Touches every parameter once, for `init`: words are encoder ids."""
        x = self.encode_words(words)[None, None].repeat(2, axis=1)
        return self.contextualize(x, state)[0]

    def encode_words(self, words: Array | tuple[Array, ...]) -> Array:
        """Ids [words, characters] (or word ids [words]) -> [words, projection].

        Of tables with different numbers of columns, one after the other. On a mesh,
        rows are those of all its devices, in shards along `data`; the vectors of a
        shard lie together, and whole on each of its devices.
        """
        return self.encoder(words)

    def contextualize(
        self,
        inputs: Inputs,
        state: LstmState,
        lengths: Lengths | None = None,
        reset: Reset | None = None,
        row_keys: Array | None = None,
    ) -> tuple[Array, LstmState]:
        """Token vectors in the order each direction reads -> all layers, new state.

        inputs are [time, two, batch, projection]; the result is [layers, time, two,
        batch, projection], still in the order each direction reads.
        """
        return self.lstm(inputs, state, lengths, reset, row_keys)


@flax.struct.dataclass
class ElmoParams:
    """Everything `embed` needs: the arrays of a biLM and its configuration.

    One pytree: the leaves are the parameters, arrays that training may change; the
    initial state and the configuration are static. Replace parts with
    `params.replace(...)`, map over leaves with `jax.tree.map`.
    """

    encoder: Params
    lstm: Params
    initial_state: LstmState = flax.struct.field(pytree_node=False)
    """Where `encode` starts without a state; zeros unless set. It is no parameter but
    a constant, kept as float32 arrays of NumPy whatever it was given as: gradients,
    optimizers, casts and checkpoints of the leaves leave it alone."""
    config: ElmoConfig = flax.struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if not isinstance(self.initial_state, LstmState):
            raise InputError(f"initial_state is no LstmState: {self.initial_state!r}.")
        require("config", self.config, ElmoConfig)
        try:
            constant = self.initial_state.constant()
        except jax.errors.TracerArrayConversionError as error:
            raise InputError(
                "The initial_state of ElmoParams is a constant, and this one is traced "
                "(by jit, grad or vmap); give it to encode as `state=` instead."
            ) from error
        object.__setattr__(self, "initial_state", constant)

    @property
    def tree(self) -> Params:
        """Parameters as `BiLM` has them: `BiLM(config).apply({"params": tree}, x)`."""
        return {"encoder": self.encoder, "lstm": self.lstm}


def init_tree(config: ElmoConfig, key: Array) -> Params:
    """Freshly initialised parameters {"encoder": ..., "lstm": ...}, float32."""
    words = jnp.ones((1, *config.encoder.id_shape), jnp.int32)
    state = LstmState.zeros(config.lstm, 1)
    return BiLM(config).init(key, words, state)["params"]


@cache
def tree_shapes(config: ElmoConfig) -> Params:
    """What `init_tree` makes, as `jax.ShapeDtypeStruct`."""
    shapes = jax.eval_shape(lambda: init_tree(config, jax.random.key(0)))
    # An explicit mesh of the moment is no part of a shape.
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes
    )


@checked
def from_tree(config: ElmoConfig, tree: dict) -> ElmoParams:
    """`ElmoParams` of a tree of parameters, for example as Orbax gives them.

    Args:
      config: of the model that they belong to.
      tree: `{"encoder": {"embedding": ...}, "lstm": {...}}`, or the same with flat
        names, `{"encoder.embedding": ...}`. It may hold more, such as a softmax.

    Raises:
      InputError: if an array is missing, or has another shape than `config` says.
    """
    parts: Params = {}
    require_own_process()
    for part, wanted in tree_shapes(config).items():
        nested = tree.get(part, {})
        require(f"tree[{part!r}]", nested, dict)
        parts[part] = {}
        for name, shape in wanted.items():
            found = nested.get(name, tree.get(f"{part}.{name}"))
            size = None if found is None else getattr(found, "shape", ())
            if size is None or tuple(size) != shape.shape:
                what = "is missing" if size is None else f"has shape {size}"
                raise InputError(
                    f"{part}.{name} {what}, and the configuration calls for "
                    f"{shape.shape}; give arrays and configuration of one model."
                )
            parts[part][name] = found
    shapes = jax.eval_shape(lambda: LstmState.zeros(config.lstm))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return ElmoParams(parts["encoder"], parts["lstm"], zeros, config)


Placement: TypeAlias = Any
"""One `jax.sharding.Sharding` or device for all arrays, a pytree of them like
ElmoParams or a prefix of it, or None = uncommitted."""


def placements(config: ElmoConfig, sharding: Placement) -> Params:
    """What `jax.device_put` takes for each array of `ElmoParams.tree`.

    Raises:
      InputError: if `sharding` has other arrays than the model, or does not divide
        one of them.
    """
    shapes = tree_shapes(config)

    def fitting(leaf: Any, sharding: Any) -> Any:
        if isinstance(sharding, jax.Device):
            return SingleDeviceSharding(sharding)
        if sharding is not None:
            if not isinstance(sharding, Sharding):
                raise ValueError(f"{shown(sharding)} is no sharding")
            sharding.shard_shape(leaf.shape)
        return sharding

    try:
        full = from_tree(config, shapes)
        full = jax.tree.broadcast(sharding, full, is_leaf=lambda leaf: leaf is None)
        return jax.tree.map(fitting, shapes, full.tree)
    except ValueError as error:
        why = one_line(error)
        raise InputError(
            f"sharding does not fit the arrays of the model ({why}); give one "
            "jax.sharding.Sharding or device, or a tree of them like the ElmoParams."
        ) from error


@checked
def init(config: ElmoConfig, key: Key) -> ElmoParams:
    """Untrained parameters of a configuration.

    Args:
      config: for example `ElmoConfig.preset("original")`.
      key: `jax.random.key(seed)`.

    Returns:
      ElmoParams with float32 leaves, initialised as bilm-tf does.

    Raises:
      InputError: if `key` is none.
    """
    try:
        jax.eval_shape(jax.random.bits, key)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"key is {shown(key)}; it must be one of jax.random.key(seed)."
        ) from error
    return from_tree(config, jax.jit(init_tree, static_argnums=0)(config, key))
