"""Models of ELMoForManyLangs (Che et al. 2018, 44 languages) to `ElmoParams`.

    config.json         names, in `config_path`, the JSON file with the model's shape
    token_embedder.pkl  {word, char}_emb_layer.embedding.weight
                        convolutions.K.{weight, bias}
                        highways._layers.K.{weight, bias}
                        projection.{weight, bias}
    encoder.pkl         {forward, backward}_layer_K.input_linearity.weight,
                        .state_linearity.{weight, bias}, .state_projection.weight
    char.dic, word.dic  a character or word, a tab, its row

Source: elmoformanylangs (`modules/`, `elmo.py`). Its arrays are those of torch, [out,
in]. Where its formulas differ from ours the numbers are turned over here: gates are i,
f, g, o there, and nothing is added to f; a highway has the inputs and then the gate of
what stays, ours that of what changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from elmojax.config import (
    CHARACTER_MARKS,
    WORD_MARKS,
    ElmoConfig,
    LstmConfig,
    PublishedFilters,
    UnicodeCnnConfig,
)
from elmojax.errors import InputError
from elmojax.formats.assembly import Arrays, to_jax
from elmojax.formats.published import (
    FORGET_BIAS,
    Options,
    cnn_of,
    lstm_of,
    read_options,
)
from elmojax.formats.torch_file import read_torch
from elmojax.model.bilm import ElmoParams, Placement, from_tree, placements
from elmojax.shapes import Params

CONFIG, WORDS, CHARACTERS = "config.json", "word.dic", "char.dic"
EMBEDDER, ENCODER = "token_embedder.pkl", "encoder.pkl"
FILES = (CONFIG, EMBEDDER, ENCODER, WORDS, CHARACTERS)
SHAPE = "cnn_50_100_512_4096_sample.json"
"""The shape of all published models, which do not have its file with them."""
PUBLISHED = {
    "encoder": {
        "name": "elmo",
        "projection_dim": 512,
        "cell_clip": 3,
        "proj_clip": 3,
        "dim": 4096,
        "n_layers": 2,
    },
    "token_embedder": {
        "name": "cnn",
        "activation": "relu",
        "filters": PublishedFilters,
        "n_highway": 2,
        "word_dim": 100,
        "char_dim": 50,
        "max_characters_per_token": 50,
    },
}
GATES = (0, 2, 1, 3)
"""Of i, f, g, o, in our order i, g, f, o."""


def is_manylangs(path: Path) -> bool:
    """Whether it is a directory with files as ELMoForManyLangs alone names them."""
    return any((path / name).is_file() for name in FILES if name != CONFIG)


def load_manylangs(path: Path, *, sharding: Placement = None) -> ElmoParams:
    """The model in a directory of ELMoForManyLangs.

    The file that `config_path` names is looked for by its name alone, beside the model
    and in `configs`, and in the two directories above; that of the published models
    need not be there. Its dictionaries are `params.config.encoder.words` and
    `.alphabet`; `unicode_ids` uses them.

    Args:
      path: directory.
      sharding: where the arrays go, as for `restore`; None = uncommitted.

    Raises:
      InputError: if a file is missing or damaged, does not fit the others, or describes
        a model of another kind. Nothing in the files is run.
    """
    if missing := [name for name in FILES if not (path / name).is_file()]:
        raise InputError(
            f"{path} has no {' and no '.join(missing)}, which a model of "
            "ELMoForManyLangs has; unpack all of its files there."
        )
    options = _shape(path)
    words = _entries(path / WORDS, WORD_MARKS)
    config = _config(options, words, _entries(path / CHARACTERS, CHARACTER_MARKS))
    shardings = placements(config, sharding)
    needs = f"{options.where}, with the dictionaries,"
    embedder, encoder = (
        Arrays.of(read_torch(path / name), path / name, needs)
        for name in (EMBEDDER, ENCODER)
    )
    tree = {"encoder": _encoder(embedder, config), "lstm": _lstm(encoder, config.lstm)}
    placed = {part: to_jax(leaves, shardings[part]) for part, leaves in tree.items()}
    return from_tree(config, placed)


def _shape(path: Path) -> Options:
    """The file that says what the model looks like."""
    config = read_options(path / CONFIG)
    named = config.get("config_path")
    name = PureWindowsPath(named).name if isinstance(named, str) else ""
    if not name:
        raise config.wrong("config_path", f"the name of a file such as {SHAPE}")
    here = path.resolve()
    folders = [
        directory / below
        for directory in (here, here.parent, here.parent.parent)
        for below in ("", "configs")
    ]
    for folder in folders:
        if (folder / name).is_file():
            return read_options(folder / name)
    if name == SHAPE:
        return Options(PUBLISHED, f"{SHAPE} as published")
    raise InputError(
        f"{path / CONFIG} names the file {name}, which says how large the model is and "
        f"is not there; put it into {path} (the program that trained the model has it)."
    )


def _config(
    options: Options, words: tuple[str, ...], alphabet: tuple[str, ...]
) -> ElmoConfig:
    cnn, lstm = options.section("token_embedder"), options.section("encoder")
    for section, wanted in ((cnn, "cnn"), (lstm, "elmo")):
        name = section.get("name")
        if not isinstance(name, str) or name.lower() != wanted:
            raise section.wrong(
                "name", f"{wanted!r}; models of other kinds are not read"
            )
    encoder = UnicodeCnnConfig(
        **cnn_of(cnn),
        words=words,
        alphabet=alphabet,
        word_dim=cnn.whole("word_dim"),
        embedding_dim=cnn.whole("char_dim"),
    )
    return ElmoConfig(encoder, lstm_of(lstm, skip_connections=True))


def _entries(path: Path, marks: Sequence[str]) -> tuple[str, ...]:
    """The entries of a dictionary, by row. Blanks around a line are no part of it; one
    that has then no entry is that of U+3000, the ideographic space."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as UTF-8 ({error}); get it again, whole."
        ) from error
    if not lines[-1]:
        lines.pop()
    rows: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        *entry, row = line.strip().split("\t")
        good = row.isascii() and row.isdecimal() and len(row) < 10
        if len(entry) > 1 or not good:
            raise InputError(
                f"{path}: line {number} is no entry, tab and row number; get the file "
                "again, whole."
            )
        rows[int(row)] = entry[0] if entry else "\u3000"
    entries = tuple(rows[row] for row in sorted(rows))
    if sorted(rows) != list(range(len(lines))) or len(set(entries)) != len(lines):
        raise InputError(
            f"{path} does not give each of its {len(lines):,} entries a row of its "
            "own, from 0; get the file again, whole."
        )
    if missing := [mark for mark in marks if mark not in entries]:
        raise InputError(
            f"{path} has no entry {' and no '.join(missing)}, which models of "
            "ELMoForManyLangs have; get the file again, whole."
        )
    return entries


def _encoder(arrays: Arrays, config: ElmoConfig) -> Params:
    cnn, out = config.encoder, config.lstm.projection
    assert isinstance(cnn, UnicodeCnnConfig)
    dim = cnn.embedding_dim

    def take(name: str, *shape: int) -> np.ndarray:
        return arrays.take(name, shape)

    shape = (len(cnn.words), cnn.word_dim)
    tree = {
        "word_embedding": take("word_emb_layer.embedding.weight", *shape),
        "embedding": take("char_emb_layer.embedding.weight", len(cnn.alphabet), dim),
    }
    for n, (width, count) in enumerate(cnn.filters):
        kernel = take(f"convolutions.{n}.weight", count, dim, width)
        tree[f"convolution_{n}_kernel"] = kernel.transpose(2, 1, 0)
        tree[f"convolution_{n}_bias"] = take(f"convolutions.{n}.bias", count)
    size = sum(count for _, count in cnn.filters)
    for n in range(cnn.highway_layers):
        weight = take(f"highways._layers.{n}.weight", 2 * size, size).T
        bias = take(f"highways._layers.{n}.bias", 2 * size)
        tree[f"highway_{n}_transform_kernel"] = weight[:, :size]
        tree[f"highway_{n}_transform_bias"] = bias[:size]
        tree[f"highway_{n}_carry_kernel"] = -weight[:, size:]
        tree[f"highway_{n}_carry_bias"] = -bias[size:]
    weight = take("projection.weight", out, cnn.word_dim + size).T
    tree["word_projection_kernel"] = weight[: cnn.word_dim]
    tree["projection_kernel"] = weight[cnn.word_dim :]
    tree["projection_bias"] = take("projection.bias", out)
    arrays.end()
    return tree


def _lstm(arrays: Arrays, lstm: LstmConfig) -> Params:
    dim, size = lstm.dim, lstm.projection
    tree: dict[str, Any] = {}
    for layer in range(lstm.layers):
        both = []
        for direction in ("forward", "backward"):
            name = f"{direction}_layer_{layer}"
            inputs = arrays.take(f"{name}.input_linearity.weight", (4 * dim, size))
            state = arrays.take(f"{name}.state_linearity.weight", (4 * dim, size))
            bias = arrays.take(f"{name}.state_linearity.bias", (4 * dim,))
            down = arrays.take(f"{name}.state_projection.weight", (size, dim))
            kernel = np.concatenate([inputs, state], axis=1).T
            kernel = kernel.reshape(2 * size, 4, dim)[:, GATES]
            bias = bias.reshape(4, dim)[list(GATES)]
            bias[2] -= FORGET_BIAS
            both.append((kernel, bias, down.T))
        for leaf, halves in zip(
            ("kernel", "bias", "projection"), zip(*both, strict=True), strict=True
        ):
            tree[f"{leaf}_{layer}"] = np.stack(halves)
    arrays.end()
    return tree
