"""A model as one file that JAX runs without elmojax: StableHLO programs and weights.

The file is a zip without compression:

    config.json         what `write_export` records: model, hash, programs, versions
    embed.jax_export    (weights, tokens, gammas, bias) -> vectors
    layers.jax_export   (weights, tokens) -> all layers
    weights/NAME.npy    the weights, a dict of these names as the programs take it
    words.json          for a model that reads word ids: its words; id = place + 1

`jax.export.deserialize` reads the programs; experiments/load_exported.py shows all of
it. The weights are inputs, not constants of the programs, so they are stored once for
both, whatever their size, and XLA does not fold them for every shape. (With weights
inside, one program of the published model has 374 MB instead of 32 kB, and JAX took
8.5 s and 4.0 GB to compile a shape instead of 1.5 s and 0.9 GB, on two CPU cores.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array

from elmojax.disk import check_out, replacing
from elmojax.embedding.functions import encode
from elmojax.embedding.words import WordIndex
from elmojax.errors import InputError, writing
from elmojax.model.bilm import ElmoParams, from_tree
from elmojax.model.lstm import LstmState
from elmojax.model.mix import mix_layers
from elmojax.model.ops import outside_meshes
from elmojax.text.vocabulary import Vocabulary

FORMAT = "elmojax export 1"
PLATFORMS = ("cpu", "cuda", "tpu")

Weights: TypeAlias = dict[str, Any]
"""Arrays, or what stands for them, by name."""


def named_weights(params: ElmoParams) -> Weights:
    """The arrays of `params` by name ("encoder/embedding", "initial_state/cell"), in
    the order of names."""
    tree = {**params.tree, "initial_state": params.initial_state}
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return dict(sorted(named.items()))


def weights_hash(weights: Weights) -> str:
    """SHA-256 of arrays by name: of the line "NAME DTYPE [SHAPE]" and the bytes of each
    (C order, little endian), in the order of their names; hexadecimal."""
    digest = hashlib.sha256()
    for name, leaf in sorted(weights.items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@outside_meshes
def export_programs(params: ElmoParams) -> dict[str, bytes]:
    """`embed` and all layers of a model as serialized programs, without the weights.

        embed   (weights, tokens, gammas, bias) -> float32 [batch, time, vector]
        layers  (weights, tokens) -> float32 [batch, layers + 1, time, vector]

    weights is a dict as `named_weights` gives it; tokens are int32 [batch, time,
    characters] (word ids [batch, time] for a model with a word table), gammas float32
    [layers + 1], bias float32 []. Batch and time may be any sizes from 1 on (JAX
    compiles each pair of sizes that it meets); characters are fixed. The programs run
    on CPU, CUDA and TPU and have no gradients.

    Returns:
      What `jax.export.deserialize` reads, by the name of the program. Equal for equal
      configurations and versions of JAX.

    Raises:
      InputError: without the package flatbuffers, which JAX writes programs with.
    """

    def run(weights: Weights, tokens: Array, gammas: Array, bias: Array) -> Array:
        return mix_layers(run_layers(weights, tokens), gammas, bias)

    def run_layers(weights: Weights, tokens: Array) -> Array:
        parts: Weights = {"encoder": {}, "lstm": {}, "initial_state": {}}
        for name, array in weights.items():
            part, leaf = name.split("/")
            parts[part][leaf] = array
        state = LstmState(**parts["initial_state"])
        return encode(from_tree(params.config, parts), tokens, state).layers

    columns = params.config.encoder.id_shape
    sizes = (*jax.export.symbolic_shape("batch, time"), *columns)
    tokens = jax.ShapeDtypeStruct(sizes, jnp.int32)
    gammas = jax.ShapeDtypeStruct((params.config.lstm.layers + 1,), jnp.float32)
    bias = jax.ShapeDtypeStruct((), jnp.float32)
    weights = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in named_weights(params).items()
    }
    return {
        "embed": _serialized(run, weights, tokens, gammas, bias),
        "layers": _serialized(run_layers, weights, tokens),
    }


def _serialized(function: Callable[..., Array], *shapes: Any) -> bytes:
    # JAX notes which file and line an operation comes from. Without that, the program
    # does not tell where this package is installed, and equal models give equal bytes,
    # whatever switches of JAX are on.
    with (
        _config("jax_traceback_in_locations_limit", 0),
        jax.enable_x64(False),
        jax.disable_jit(False),
    ):
        program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
        try:
            return bytes(program.serialize())
        except ImportError as error:
            raise InputError(
                "JAX writes programs with the package flatbuffers, which is not "
                "installed; install it with `pip install flatbuffers`."
            ) from error


@contextmanager
def _config(name: str, value: int) -> Iterator[None]:
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def write_export(
    params: ElmoParams,
    out: Path,
    vocabulary: Vocabulary | WordIndex | None = None,
    version: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model with its programs as one file that JAX runs without elmojax.

    The file appears under its name when it is whole, and not before. Equal models give
    equal files with the same versions.

    Args:
      params: from `init`, `restore` or `load`.
      vocabulary: for a model with a word table, the words of its ids.
      version: of elmojax, for the record.

    Returns:
      What config.json holds: `format`, the versions `elmojax` and `jax`, `model` (the
      configuration), `sha256` (`weights_hash`), `platforms`, `programs` (inputs and
      output of each), `weights` (shape and dtype of each).

    Raises:
      InputError: if `out` exists and `overwrite` is not given, or cannot be written.
    """
    check_out(out, overwrite)
    programs, weights = export_programs(params), named_weights(params)
    record = _record(params, weights, version)
    with (
        writing(out, "Choose another --out, or free space."),
        replacing(out) as partial,
        zipfile.ZipFile(partial, "w") as file,
    ):
        _add(file, "config.json", json.dumps(record, indent=2).encode())
        for name, program in programs.items():
            _add(file, f"{name}.jax_export", program)
        if vocabulary is not None and not params.config.encoder.id_shape:
            _add(file, "words.json", json.dumps(vocabulary.words).encode())
        for name, leaf in weights.items():
            _add(file, f"weights/{name}.npy", _plain(np.asarray(leaf)))
    return record


def _record(params: ElmoParams, weights: Weights, version: str) -> dict[str, Any]:
    config = params.config
    count = config.lstm.layers + 1
    columns = "".join(f", {size}" for size in config.encoder.id_shape)
    inputs = {"weights": "weights/*.npy", "tokens": f"int32 [batch, time{columns}]"}
    mix = {"gammas": f"float32 [{count}]", "bias": "float32 []"}
    vectors = f"float32 [batch, time, {config.dim}]"
    layers = f"float32 [batch, {count}, time, {config.dim}]"
    return {
        "format": FORMAT,
        "elmojax": version,
        "jax": jax.__version__,
        "model": dataclasses.asdict(config),
        "sha256": weights_hash(weights),
        "platforms": PLATFORMS,
        "programs": {
            "embed": {"inputs": inputs | mix, "output": vectors},
            "layers": {"inputs": inputs, "output": layers},
        },
        "weights": {
            name: {"shape": leaf.shape, "dtype": str(leaf.dtype)}
            for name, leaf in weights.items()
        },
    }


def _add(file: zipfile.ZipFile, name: str, data: bytes | np.ndarray) -> None:
    # A ZipInfo of its own has a fixed date, so that equal models give equal files.
    with file.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
        if isinstance(data, bytes):
            member.write(data)
        else:
            np.lib.format.write_array(member, data)


def _plain(array: np.ndarray) -> np.ndarray:
    """Numbers that NumPy lacks (bfloat16) as unsigned integers of the same bits."""
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
