"""TensorFlow checkpoints: those of real bilm-tf and TensorFlow, and hand-made ones.

`data/bilm_tf_checkpoint` comes from experiments/peers/make_bilm_checkpoint.py: what
bilm-tf on TensorFlow 1.15 trained and saved, and what it computes with it.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.embedding.functions import encode
from elmojax.errors import InputError
from elmojax.formats.tf_bundle import (
    DTYPES,
    MAGIC,
    Bundle,
    checkpoint_prefix,
    masked_crc32c,
)
from elmojax.formats.tf_checkpoint import load_tf_checkpoint
from elmojax.model.bilm import BiLM, ElmoParams
from elmojax.model.lstm import LstmState
from elmojax.model.softmax import log_prob_all
from elmojax.text.characters import batch_to_ids, character_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parents[1] / "data" / "bilm_tf_checkpoint"
MODELS = ("characters", "plain", "words")


def read_tf_checkpoint(
    path: Path, keep: Callable[[str], bool] = lambda name: True
) -> dict[str, np.ndarray]:
    return Bundle(checkpoint_prefix(path)).read(keep)


def expected(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / name / "expected.npz") as arrays:
        return dict(arrays)


def sentences() -> list[list[str]]:
    text = (DATA / "heldout.txt").read_text("utf-8")
    return [line.split() for line in text.splitlines()]


# What TensorFlow and bilm-tf say


@pytest.mark.parametrize("name", MODELS)
def test_variables_are_those_tensorflow_reads(name: str) -> None:
    arrays = read_tf_checkpoint(DATA / name)
    wanted = {
        key.removeprefix("variables/"): value
        for key, value in expected(name).items()
        if key.startswith("variables/")
    }
    assert list(arrays) == sorted(wanted)
    for key, value in wanted.items():
        assert arrays[key].dtype == value.dtype
        np.testing.assert_array_equal(arrays[key], value)
        assert not arrays[key].flags.writeable


def test_all_kinds_of_variables() -> None:
    """Thirteen dtypes, scalar, empty, three slices in two data files."""
    arrays = read_tf_checkpoint(DATA / "kinds", lambda name: name != "string")
    wanted = expected("kinds")
    assert list(arrays) == sorted(wanted)
    for key, value in wanted.items():
        dtype = jnp.bfloat16 if key == "bfloat16" else value.dtype
        assert arrays[key].dtype == dtype
        assert arrays[key].shape == value.shape
        np.testing.assert_array_equal(arrays[key].astype(value.dtype), value)


def test_text_is_no_array() -> None:
    with pytest.raises(InputError, match="'string' has TensorFlow's dtype number 7"):
        read_tf_checkpoint(DATA / "kinds")


def test_layers_are_bilm_tfs() -> None:
    params, _ = load_tf_checkpoint(DATA / "characters")
    tokens = jnp.asarray(batch_to_ids(sentences(), max_characters=20))
    encoded = encode(params, tokens)
    wanted = np.where(
        encoded.mask[:, None, :, None], expected("characters")["layers"], 0
    )
    np.testing.assert_allclose(encoded.layers, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_losses_are_bilm_tfs(name: str) -> None:
    """-log p of every word of a text in both directions, as bilm-tf tests models."""
    params, head = load_tf_checkpoint(DATA / name)
    losses = stream_losses(params, head)
    np.testing.assert_allclose(losses, expected(name)["losses"], rtol=0, atol=5e-6)


def stream_losses(params: ElmoParams, head: Any) -> np.ndarray:
    """[two, positions]: sentences one after the other, state carried."""
    vocabulary = (DATA / "vocabulary.txt").read_text("utf-8").split()
    rows = {word: row for row, word in enumerate(vocabulary)}
    streams: tuple[list[str], list[str]] = ([], [])
    targets: tuple[list[int], list[int]] = ([], [])
    for sentence in sentences():
        whole = ["<S>", *sentence, "</S>"]
        for direction, words in enumerate((whole, whole[::-1])):
            streams[direction].extend(words[:-1])
            targets[direction].extend(rows.get(w, rows["<UNK>"]) for w in words[1:])
    config, tree = params.config, {"params": params.tree}
    apply = BiLM(config).apply

    def ids(words: list[str]) -> np.ndarray:
        if isinstance(config.encoder, CharCnnConfig):
            return character_ids(words, config.encoder.max_characters)
        return np.array([1 + rows.get(w, rows["<UNK>"]) for w in words], np.int32)

    vectors = [
        apply(tree, jnp.asarray(ids(words)), method="encode_words") for words in streams
    ]
    inputs = jnp.stack(vectors, axis=1)[:, :, None]  # time, two, batch of one
    start = LstmState.zeros(config.lstm, 1)
    outputs, _ = apply(tree, inputs, start, method="contextualize")
    losses = []
    for direction in range(2):
        log_probs = log_prob_all(head, outputs[-1, :, direction, 0])
        losses.append(-log_probs[np.arange(len(log_probs)), targets[direction]])
    return np.stack(losses)


def test_configuration_is_that_of_the_options() -> None:
    params, head = load_tf_checkpoint(DATA / "characters")
    config = params.config
    encoder = CharCnnConfig(((1, 4), (2, 4), (3, 6)), 4, 2, "relu", 20, 261)
    assert config.encoder == encoder
    assert (config.lstm.dim, config.lstm.projection, config.lstm.layers) == (16, 8, 2)
    assert (config.lstm.cell_clip, config.lstm.projection_clip) == (0.5, 0.3)
    assert config.lstm.skip_connections
    assert head is not None
    assert {name: leaf.shape for name, leaf in head.items()} == {
        "kernel": (44, 8),
        "bias": (44,),
    }


def test_what_a_model_does_without() -> None:
    params, _ = load_tf_checkpoint(DATA / "plain")
    lstm = params.config.lstm
    assert lstm.cell_clip == lstm.projection_clip == math.inf
    assert isinstance(params.config.encoder, CharCnnConfig)
    assert not params.config.encoder.project
    np.testing.assert_array_equal(params.lstm["projection_0"][1], np.eye(8))


def test_words_share_table_and_softmax() -> None:
    params, head = load_tf_checkpoint(DATA / "words" / "model.ckpt-40")
    assert params.config.encoder == WordTableConfig(44, 6)
    assert head is not None
    np.testing.assert_array_equal(params.encoder["embedding"], head["kernel"])


# A writer of bundles, to make what TensorFlow would not


def varint(number: int) -> bytes:
    code = b""
    while number > 127:
        code += bytes([number & 127 | 128])
        number >>= 7
    return code + bytes([number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Protobuf: integers as varints, but field 6, a checksum, as four bytes."""
    code = b""
    for number, value in fields:
        if isinstance(value, bytes):
            code += varint(number << 3 | 2) + varint(len(value)) + value
        elif number == 6:
            code += varint(number << 3 | 5) + struct.pack("<I", value)
        else:
            code += varint(number << 3) + varint(value & (1 << 64) - 1)
    return code


def entry(array: np.ndarray, offset: int, shard: int = 0, **changes: int) -> bytes:
    kinds = {np.dtype(dtype): number for number, dtype in DTYPES.items()}
    data = np.frombuffer(array.tobytes(), np.uint8)
    shape = b"".join(message((2, message((1, size)))) for size in array.shape)
    values = {
        "dtype": kinds[array.dtype],
        "size": len(data),
        "checksum": masked_crc32c(data),
        **changes,
    }
    return message(
        (1, values["dtype"]),
        (2, shape),
        (3, shard),
        (4, offset),
        (5, values["size"]),
        (6, values["checksum"]),
    )


def block(records: Mapping[bytes, bytes], every: int = 16) -> bytes:
    """A block whose names are written in full at every `every`th entry."""
    code, restarts, last = b"", [], b""
    for place, (name, value) in enumerate(sorted(records.items())):
        shared = 0
        if place % every == 0:
            restarts.append(len(code))
        else:
            pairs = zip(name, last, strict=False)
            differ = (i for i, (a, b) in enumerate(pairs) if a != b)
            shared = next(differ, min(len(name), len(last)))
        lengths = (shared, len(name) - shared, len(value))
        code += b"".join(map(varint, lengths)) + name[shared:] + value
        last = name
    return code + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(records: Mapping[bytes, bytes], per_block: int = 5, kind: int = 0) -> bytes:
    """A LevelDB table; `kind` is the compression that it claims."""
    code, index = b"", {}

    def add(content: bytes) -> bytes:
        nonlocal code
        covered = content + bytes([kind])
        handle = varint(len(code)) + varint(len(content))
        checksum = masked_crc32c(np.frombuffer(covered, np.uint8))
        code += covered + struct.pack("<I", checksum)
        return handle

    names = sorted(records)
    for start in range(0, len(names), per_block):
        chosen = names[start : start + per_block]
        index[chosen[-1]] = add(block({name: records[name] for name in chosen}, 3))
    footer = add(block({})) + add(block(index, 1))
    return code + footer.ljust(40, b"\0") + struct.pack("<Q", MAGIC)


HEADER = message((1, 1), (3, message((1, 1))))


def write_bundle(
    prefix: Path, arrays: Mapping[str, np.ndarray], shards: int = 1, per_block: int = 5
) -> Path:
    data = [bytearray() for _ in range(shards)]
    records = {b"": message((1, shards), (3, message((1, 1))))}
    for place, (name, array) in enumerate(arrays.items()):
        shard = data[place % shards]
        records[name.encode()] = entry(array, len(shard), place % shards)
        shard += array.tobytes()
    for number, content in enumerate(data):
        Path(f"{prefix}.data-{number:05d}-of-{shards:05d}").write_bytes(content)
    Path(f"{prefix}.index").write_bytes(table(records, per_block))
    return prefix


NAMES = st.text("abc/é", min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
KINDS = st.sampled_from(list(DTYPES.values()))


@settings(max_examples=25)
@given(
    kinds=st.dictionaries(NAMES, st.tuples(SHAPES, KINDS), max_size=12),
    shards=st.integers(1, 3),
    per_block=st.integers(1, 20),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: dict[str, tuple[tuple[int, ...], Any]],
    shards: int,
    per_block: int,
) -> None:
    random = np.random.default_rng(0)
    arrays = {
        name: random.integers(0, 2, shape).astype(kind)
        for name, (shape, kind) in kinds.items()
    }
    prefix = tmp_path_factory.mktemp("bundle") / "model.ckpt-7"
    read = read_tf_checkpoint(write_bundle(prefix, arrays, shards, per_block))
    assert list(read) == sorted(arrays, key=str.encode)
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


def write_slices(prefix: Path, extents: list[bytes], keys: list[bytes]) -> Path:
    """A variable `v` float32 [2, 3] as two rows."""
    rows = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    slices = b"".join(message((7, extent)) for extent in extents)
    shape = message((2, message((1, 2)))) + message((2, message((1, 3))))
    records = {b"": HEADER, b"v": message((1, 1), (2, shape)) + slices}
    for number, key in enumerate(keys):
        records[b"\0v\0\1\1\2" + key] = entry(rows[number], 12 * number)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(rows.tobytes())
    Path(f"{prefix}.index").write_bytes(table(records))
    return prefix


def test_slices_that_span_an_axis(tmp_path: Path) -> None:
    """An extent without a length is the whole axis; its name has -1 there (7f)."""
    extents = [message((1, message((1, row), (2, 1))), (1, b"")) for row in range(2)]
    keys = [bytes([0x80 + row, 0x81, 0x80, 0x7F]) for row in range(2)]
    read = read_tf_checkpoint(write_slices(tmp_path / "a", extents, keys))
    np.testing.assert_array_equal(read["v"], np.arange(6).reshape(2, 3))

    with pytest.raises(InputError, match="do not make up its shape"):
        read_tf_checkpoint(write_slices(tmp_path / "b", extents[:1], keys))
    with pytest.raises(InputError, match=r"slice .* of 'v' is not there"):
        read_tf_checkpoint(write_slices(tmp_path / "c", extents, keys[:1]))


# Finding a checkpoint


def test_every_name_of_a_checkpoint(tmp_path: Path) -> None:
    prefix = write_bundle(tmp_path / "model.ckpt-7", {"a": np.ones(3, np.float32)})
    names = ("", ".index", ".meta", ".data-00000-of-00001")
    for path in [Path(f"{prefix}{suffix}") for suffix in names]:
        assert list(read_tf_checkpoint(path)) == ["a"]
    write_bundle(tmp_path / "model.ckpt-14", {"b": np.ones(3, np.float32)})
    state = tmp_path / "checkpoint"
    for name, variable in (
        ("model.ckpt-7", "a"),
        ("/elsewhere/run/model.ckpt-14", "b"),  # a directory that was moved
    ):
        state.write_text(f'model_checkpoint_path: "{name}"\nall_model: "c"\n')
        assert list(read_tf_checkpoint(tmp_path)) == [variable]


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint at all"):
        read_tf_checkpoint(tmp_path)
    write_bundle(tmp_path / "model.ckpt-7", {})
    with pytest.raises(InputError, match=r"name one of its .* \(model.ckpt-7\)"):
        read_tf_checkpoint(tmp_path)
    state = tmp_path / "checkpoint"
    state.write_text("nothing\n")
    with pytest.raises(InputError, match="names no newest checkpoint"):
        read_tf_checkpoint(tmp_path)
    state.write_text('model_checkpoint_path: "model.ckpt-9"\n')
    with pytest.raises(InputError, match=r"model.ckpt-9.index is not there"):
        read_tf_checkpoint(tmp_path)


# Damage


def copied(tmp_path: Path, name: str) -> Path:
    shutil.copytree(DATA / name, tmp_path / name)
    return tmp_path / name


def test_no_damage_of_the_index_passes(tmp_path: Path) -> None:
    """Whatever byte is wrong or wherever it ends: an `InputError`, or all is as it was
    (a few bytes, such as the zeros of the footer, mean nothing)."""
    file = copied(tmp_path, "plain") / "model.ckpt-40.index"
    whole, wanted = file.read_bytes(), read_tf_checkpoint(DATA / "plain")
    refused = 0
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0x41
        for content in (bytes(changed), whole[:place]):
            file.write_bytes(content)
            try:
                read = read_tf_checkpoint(file)
            except InputError as error:
                assert str(file) in str(error)
                refused += 1
            else:
                assert len(content) == len(whole)
                assert list(read) == list(wanted)
                assert all((read[name] == wanted[name]).all() for name in wanted)
    assert refused > 2 * len(range(0, len(whole), 7)) - 12


def test_damage_of_the_data(tmp_path: Path) -> None:
    file = copied(tmp_path, "plain") / "model.ckpt-40.data-00000-of-00001"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data-00000-of-00001 has \d+ bytes, but"):
        read_tf_checkpoint(file)
    file.write_bytes(whole[:900] + b"?" + whole[901:])
    with pytest.raises(InputError, match=r"checksum of variable 'lm/.*' is wrong"):
        read_tf_checkpoint(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="has 0 bytes"):
        read_tf_checkpoint(file)
    file.unlink()
    with pytest.raises(InputError, match=r"of-00001 cannot be read \(No such file"):
        read_tf_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no index"),
        (b"model weights\n" * 9, "is no index"),
        (table({}), "has no header"),
        (table({b"": message((1, 1), (2, 1))}), "big-endian"),
        (table({b"": HEADER}, kind=1), r"compressed \(kind 1\)"),
        (table({b"": HEADER, b"v": b"\x0b"}), "field of kind 3"),
        (table({b"": HEADER, b"v": b"\x80"}), "ends inside a number"),
        (table({b"": HEADER, b"v": b"\x80" * 11}), "number is too long"),
        (table({b"": HEADER, b"v": b"\x35\0"}), "requires a buffer"),
        (table({b"": HEADER, b"v": entry(np.ones(3), 0, size=23)}), "23 bytes, not 24"),
        (table({b"": HEADER, b"v": entry(np.ones(3), -8)}), "below 0"),
        (table({b"": HEADER, b"v": entry(np.ones(3), 0, dtype=21)}), "number 21"),
    ],
)
def test_what_is_no_bundle(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.index").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_tf_checkpoint(tmp_path / "a")
    assert str(tmp_path / "a.index") in str(caught.value)


def test_a_missing_data_file_of_several(tmp_path: Path) -> None:
    arrays = {name: np.ones(3, np.float32) for name in "ab"}
    prefix = write_bundle(tmp_path / "a", arrays, shards=2)
    Path(f"{prefix}.data-00001-of-00002").unlink()
    assert list(read_tf_checkpoint(prefix, lambda name: name == "a")) == ["a"]
    with pytest.raises(InputError, match="00001-of-00002 cannot be read"):
        read_tf_checkpoint(prefix)


# Models that do not fit their options


def changed_options(directory: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file = directory / "options.json"
    options = json.loads(file.read_text())
    change(options)
    file.write_text(json.dumps(options))
    return directory


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o.update(bidirectional=False), "bidirectional is false"),
        (lambda o: o.pop("lstm"), "has no lstm"),
        (lambda o: o["lstm"].pop("dim"), r"has no lstm\.dim"),
        (lambda o: o.update(lstm=3), r"lstm in it is not an object"),
        (lambda o: o["lstm"].update(dim="16"), r"lstm\.dim is '16'"),
        (lambda o: o["lstm"].update(dim=12), r"is \[16, 64\], but .* \[16, 48\]"),
        (
            lambda o: o["lstm"].update(n_layers=3),
            r"has no array RNN_0/.*Cell2/LSTMCell/W_0, which .*options\.json calls for",
        ),
        (lambda o: o["lstm"].update(n_layers=1), r"holds RNN_0/.*/Cell1/LSTMCell"),
        (lambda o: o["lstm"].update(cell_clip=-1), "cell_clip is -1"),
        (lambda o: o["char_cnn"].update(filters=[[1, 4], 3]), "a list of pairs"),
        (lambda o: o["char_cnn"].update(n_highway=1), "holds CNN_high_1/W_carry"),
        (lambda o: o["char_cnn"].update(activation="gelu"), "activation is 'gelu'"),
        (lambda o: o.pop("char_cnn"), "has no array embedding, which"),
        (lambda o: o.update(n_tokens_vocab=45), r"softmax/b is \[44\], but .*45"),
    ],
)
def test_options_of_another_model(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    directory = changed_options(copied(tmp_path, "characters"), change)
    with pytest.raises(InputError, match=words):
        load_tf_checkpoint(directory)


def test_options_as_they_were_published(tmp_path: Path) -> None:
    """They say nothing of training, and count the padding among the characters."""

    def publish(options: dict[str, Any]) -> None:
        for key in set(options) - {"char_cnn", "lstm"}:
            del options[key]
        options["char_cnn"]["n_characters"] = 262

    params, head = load_tf_checkpoint(DATA / "characters")
    directory = changed_options(copied(tmp_path, "characters"), publish)
    params_2, head_2 = load_tf_checkpoint(directory)
    assert params.config == params_2.config
    jax.tree.map(np.testing.assert_array_equal, (params, head), (params_2, head_2))


def test_options_that_cannot_be_read(tmp_path: Path) -> None:
    directory = copied(tmp_path, "words")
    options = directory / "options.json"
    shutil.move(options, tmp_path / "other.json")
    with pytest.raises(InputError, match=r"options.json cannot be read"):
        load_tf_checkpoint(directory)
    load_tf_checkpoint(directory, tmp_path / "other.json")
    for content in (b"{", b"\xff"):
        options.write_bytes(content)
        with pytest.raises(InputError, match=r"options.json is not JSON"):
            load_tf_checkpoint(directory)


def weights_of(name: str) -> dict[str, np.ndarray]:
    """A model's variables without what the optimizer keeps."""
    return read_tf_checkpoint(
        DATA / name, lambda name: name.startswith("lm/") and "Adagrad" not in name
    )


def test_checkpoints_of_other_makes(tmp_path: Path) -> None:
    """No softmax, float64, a row of the character table more."""
    weights = {name: w for name, w in weights_of("plain").items() if "soft" not in name}
    table = np.pad(weights["lm/char_embed"], ((0, 1), (0, 0)))
    weights["lm/char_embed"] = table.astype(np.float64)
    prefix = write_bundle(tmp_path / "model", weights)
    params, head = load_tf_checkpoint(prefix, DATA / "plain" / "options.json")
    assert head is None
    assert isinstance(params.config.encoder, CharCnnConfig)
    assert params.config.encoder.characters == 262
    assert params.encoder["embedding"].dtype == jnp.float32
    np.testing.assert_array_equal(params.encoder["embedding"], table)


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    weights = weights_of("plain")
    bias = weights["lm/softmax/b"].copy()
    bias[7] = np.nan
    prefix = write_bundle(tmp_path / "model", {**weights, "lm/softmax/b": bias})
    with pytest.raises(InputError, match="softmax/b has values that are not finite"):
        load_tf_checkpoint(prefix, DATA / "plain" / "options.json")


def test_variables_nobody_knows(tmp_path: Path) -> None:
    weights = {**weights_of("plain"), "lm/more": np.ones(3, np.float32)}
    prefix = write_bundle(tmp_path / "model", weights)
    with pytest.raises(InputError, match="holds more, but"):
        load_tf_checkpoint(prefix, DATA / "plain" / "options.json")
