"""The streaming embedder: the vectors of `encode`, whatever goes together with what."""

import gzip
import io
import json
import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TINY, tiny_params

import elmojax
import elmojax.embedding.words
from elmojax import Embedder, InputError, batch_to_ids, encode
from elmojax.embedding import embedder as embedder_module
from elmojax.embedding import engine, words
from elmojax.embedding.engine import (
    cut_runs,
    make_plan,
    possible_rows,
    program_shapes,
    word_capacity,
)
from elmojax.model.ops import local_mesh

WORDS = ["the", "bank", "of", "é", "中文", "", "x" * 30, "river", "<S>", "a b", "\x00"]
ROUNDING = 2e-6

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def params():
    """Sentences start from a state that is not zero."""
    made = tiny_params()
    start = jax.tree.map(lambda leaf: leaf + 0.3, made.initial_state)
    return made.replace(initial_state=start)


def of_encode(params, sentences):
    """All layers of each sentence by the pure function, [layers + 1, words, vector]."""
    columns = params.config.encoder.max_characters
    batch = [*sentences, ["word"] * 40]
    batch += [[]] * (-len(batch) % 64)  # one compilation for many tests
    layers = np.asarray(encode(params, batch_to_ids(batch, columns)).layers)
    return [layers[i, :, : len(s)] for i, s in enumerate(sentences)]


def text(seed, count, longest=40):
    draw = random.Random(seed)
    sizes = [draw.choice([0, 1, 2, 5, 11, longest]) for _ in range(count)]
    return [
        [draw.choice(WORDS) + str(draw.randrange(40)) for _ in range(n)] for n in sizes
    ]


def assert_same(got, wanted, atol=ROUNDING):
    for number, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(
            ours, theirs, atol=atol, err_msg=f"sentence {number}"
        )


# --- invariance --------------------------------------------------------------------


@settings(max_examples=12)
@given(
    sentences=st.lists(st.lists(st.sampled_from(WORDS), max_size=30), max_size=25),
    batch_tokens=st.sampled_from([1, 40, 5000]),
    seed=st.integers(0, 99),
)
def test_neither_order_nor_batch_nor_chunk_changes_a_vector(
    sentences, batch_tokens, seed
):
    params = tiny_params()
    params = params.replace(
        initial_state=jax.tree.map(lambda leaf: leaf - 0.2, params.initial_state)
    )
    order = list(range(len(sentences)))
    random.Random(seed).shuffle(order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "CHUNK", 8)
        embedder = Embedder(params, batch_tokens=batch_tokens)
        got = embedder.embed_batch([sentences[i] for i in order])
    assert_same(got, of_encode(params, [sentences[i] for i in order]))


def test_layers_top_mix_and_dtypes(params):
    sentences = text(0, 30)
    wanted = of_encode(params, sentences)
    assert_same(Embedder(params).embed_sentences(sentences), wanted)
    top = Embedder(params, layers="top", batch_tokens=50).embed_batch(sentences)
    assert_same(top, [layers[-1] for layers in wanted])
    gammas = [0.2, -1.5, 3.0]
    mix = Embedder(params, layers="mix", gammas=gammas, batch_tokens=20)
    mixed = [np.einsum("k,ktv->tv", gammas, layers) for layers in wanted]
    assert_same(mix.embed_batch(sentences), mixed, 1e-5)
    for dtype, relative in (("float16", 2**-11), ("bfloat16", 2**-8)):
        for ours, theirs in zip(
            Embedder(params, dtype=dtype).embed_sentences(sentences),
            wanted,
            strict=True,
        ):
            assert ours.dtype.name == dtype
            np.testing.assert_allclose(
                ours.astype(np.float32), theirs, rtol=relative, atol=1e-5
            )


def test_a_model_of_words_and_a_cache(params):
    words = sorted({word for sentence in text(1, 40) for word in sentence})
    cached = elmojax.cache_words(params, words)
    index = elmojax.embedding.words.WordIndex(words)
    got = Embedder(cached, index, batch_tokens=64).embed_sentences(text(1, 40))
    assert_same(got, of_encode(params, text(1, 40)))
    with pytest.raises(InputError, match="'unseen' is not among"):
        Embedder(cached, index).embed_sentence(["unseen"])


def test_the_word_table_empties_itself_and_goes_on(params, monkeypatch):
    monkeypatch.setattr(embedder_module, "CHUNK", 16)
    monkeypatch.setattr(words, "BYTES", (4 * TINY.lstm.projection * 60,) * 2)
    sentences = text(2, 120)
    embedder = Embedder(params, batch_tokens=40)
    wanted = of_encode(params, sentences)
    for _ in range(2):
        assert_same(embedder.embed_sentences(sentences), wanted)
    assert len(embedder._table._rows) <= 60 < len({w for s in sentences for w in s})


def test_words_are_encoded_once(params, monkeypatch):
    seen = []
    real = words.encoder_ids
    monkeypatch.setattr(
        words,
        "encoder_ids",
        lambda encoder, new, vocabulary: seen.extend(new) or real(encoder, new),
    )
    embedder = Embedder(params, batch_tokens=60)
    embedder.embed_batch(text(3, 50))
    embedder.embed_batch(text(3, 50))
    assert len(seen) == len(set(seen))


# --- long documents ----------------------------------------------------------------


@pytest.mark.parametrize("words", [16, 63, 64, 400])
def test_a_document_in_chunks_is_the_document_at_once(params, words, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 32)
    draw = random.Random(words)
    document = [draw.choice(WORDS) for _ in range(words)]
    sentences = [["before"], document, [], ["after", "it"]]
    embedder = Embedder(params, batch_tokens=15)
    blocks = list(embedder.blocks(sentences))
    assert max(len(block.vectors) for block in blocks) <= 32
    assert_same(embedder.embed_sentences(sentences), of_encode(params, sentences), 1e-5)


def test_a_long_document_holds_no_more_memory_than_its_chunks(params):
    """Blocks come one by one, each of one chunk, and none waits for the others."""
    words = [f"w{i % 50}" for i in range(20_000)]
    sizes = [
        (len(block.vectors), block.more)
        for block in Embedder(params, batch_tokens=100).blocks([words])
    ]
    assert sum(size for size, _ in sizes) == 20_000
    assert max(size for size, _ in sizes) <= engine.CHUNK
    assert [more for _, more in sizes] == [True] * (len(sizes) - 1) + [False]


# --- going on where an earlier run stopped -------------------------------------------


@pytest.mark.parametrize("batch_tokens", [30, 200])
def test_after_a_skip_the_same_bits(params, batch_tokens, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 16)
    monkeypatch.setattr(embedder_module, "CHUNK", 16)
    monkeypatch.setattr(words, "BYTES", (4 * TINY.lstm.projection * 100,) * 2)
    sentences = text(4, 150)
    whole = list(Embedder(params, batch_tokens=batch_tokens).blocks(sentences))
    done, stops = 0, []
    for number, block in enumerate(whole):
        done += len(block.sizes) - block.more
        if not block.more:
            stops.append((done, number + 1))
    for done, number in stops[:: max(1, len(stops) // 6)]:
        rest = Embedder(params, batch_tokens=batch_tokens).blocks(sentences, skip=done)
        for ours, theirs in zip(rest, whole[number:], strict=True):
            assert (ours.sizes, ours.more) == (theirs.sizes, theirs.more)
            np.testing.assert_array_equal(ours.vectors, theirs.vectors)


def test_a_skip_inside_a_block_is_refused(params):
    with pytest.raises(InputError, match="No batch of this text ends at sentence 3"):
        list(Embedder(params).blocks(text(5, 9), skip=3))


# --- several devices -----------------------------------------------------------------


def test_devices_change_no_vector_and_no_batch(params, monkeypatch):
    """Short sentences and a document; a run goes on with other devices, and on the same
    ones to the bit, also amid the batches that they read at once."""
    monkeypatch.setattr(engine, "CHUNK", 16)
    monkeypatch.setattr(embedder_module, "CHUNK", 16)
    monkeypatch.setattr(words, "BYTES", (4 * TINY.lstm.projection * 250,) * 2)
    monkeypatch.setattr(engine, "ROW_CHOICES", (4,))  # few programs
    mesh = jax.make_mesh((2, 4), ("model", "data"))
    sentences = [*text(6, 50), ["long"] * 70, *text(7, 7)]
    one = list(Embedder(params, batch_tokens=60).blocks(sentences))
    embedder = Embedder(params, batch_tokens=60, mesh=mesh)
    many = list(embedder.blocks(sentences))
    assert [(b.sizes, b.more) for b in many] == [(b.sizes, b.more) for b in one]
    assert any(block.more for block in one)
    assert_same([b.vectors for b in many], [b.vectors for b in one])
    done = sum(len(block.sizes) for block in one[:5])
    rest = Embedder(params, batch_tokens=60, mesh=mesh).blocks(sentences, skip=done)
    for ours, theirs in zip(rest, many[5:], strict=True):
        np.testing.assert_array_equal(ours.vectors, theirs.vectors)
    blocks = islice(embedder.blocks(sentences, on_device=True), 5)
    places = [block.vectors.devices() for block in blocks]
    assert places == [{device} for device in [*mesh.devices[0], mesh.devices[0, 0]]]
    with pytest.raises(InputError, match="No batch of this text ends at sentence 1"):
        list(embedder.blocks(sentences, skip=1))


def test_devices_share_the_words(params, monkeypatch):
    """And each has all their vectors; a mix is made where the sentences are."""
    monkeypatch.setattr(words, "BLOCKS", (8, 2))
    monkeypatch.setattr(engine, "ROW_CHOICES", (4,))
    mesh = jax.make_mesh((3,), ("data",), devices=jax.devices()[:3])
    chosen = {"layers": "mix", "gammas": [0.5, -1.0, 2.0], "batch_tokens": 60}
    embedder = Embedder(params, **chosen, mesh=mesh)
    sentences = text(8, 40)
    wanted = Embedder(params, **chosen).embed_sentences(sentences)
    assert_same(embedder.embed_sentences(sentences, 7), wanted, 1e-5)
    vectors = embedder._table.encoded()
    copies = [np.asarray(shard.data) for shard in vectors.addressable_shards]
    assert len(copies) == 3 and all(copy.shape == vectors.shape for copy in copies)
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])


def test_the_devices_of_this_machine():
    assert dict(local_mesh().shape) == {"data": 8, "model": 1}
    assert local_mesh(64).size == 8 and local_mesh(6).size == 6
    assert local_mesh(7 * 11).size == 7 and local_mesh(11) is None
    jax.config.update("jax_default_device", jax.devices()[3])
    try:
        assert local_mesh() is None
    finally:
        jax.config.update("jax_default_device", None)


@pytest.mark.parametrize(
    ("limit", "rows"), [(None, 1 << 20), (16 << 30, 1 << 23), (1 << 50, 1 << 24)]
)
def test_the_word_table_is_as_large_as_the_device_allows(limit, rows, monkeypatch):
    """From 64 MB to 1 GB, 1/32 of its memory between: rows of 16 numbers."""
    device = SimpleNamespace(memory_stats=lambda: limit and {"bytes_limit": limit})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert words._table_bytes() // (4 * 16) == rows


# --- few shapes ----------------------------------------------------------------------


def test_more_text_compiles_no_more_programs(params):
    draw = np.random.default_rng(0)

    def sentences(count):
        for size in np.clip(draw.lognormal(3, 0.6, count), 1, 150).astype(int):
            yield [WORDS[i] for i in draw.integers(0, len(WORDS), size)]

    embedder = Embedder(params, batch_tokens=1024, layers="top")
    start = engine.read_steps._cache_size()
    for _ in embedder.blocks(sentences(1000)):
        pass
    before = engine.read_steps._cache_size()
    for _ in embedder.blocks(sentences(2000)):
        pass
    assert before - start <= 6
    assert engine.read_steps._cache_size() - before <= 2  # of a last, shorter batch


def test_any_text_runs_in_the_announced_shapes():
    draw = np.random.default_rng(1)
    announced = set(program_shapes(2048))
    assert len(announced) <= 24
    for _ in range(300):
        count = draw.integers(1, 400)
        sizes = np.clip(draw.lognormal(draw.uniform(0, 4), 1, count), 0, 2000)
        sizes = sizes.astype(int)
        sizes = sizes[: max(1, np.searchsorted(np.cumsum(sizes + 1), 2040))]
        words = draw.integers(2, 99, min(sizes.sum(), 2048))
        if len(words) != sizes.sum():
            continue
        space = word_capacity(len(words), 2048)
        plan = make_plan([words], [sizes], space)
        assert plan.table_rows.shape[2] in possible_rows(space)
        for cut in cut_runs(len(plan.table_rows)):
            assert (cut.stop - cut.start, plan.table_rows.shape[2], space) in announced


def test_a_plan_reads_every_word_once_in_both_directions():
    sizes = np.array([5, 0, 1, 70, 12, 3, 0, 30])
    words = np.arange(2, 2 + sizes.sum())
    plan = make_plan([words], [sizes], 1024)
    for direction, mark in ((0, 0), (1, 1)):
        kept = plan.word_numbers[:, direction] < 1024
        places = plan.word_numbers[:, direction][kept]
        assert sorted(places) == list(range(len(words)))
        assert (plan.table_rows[:, direction][kept] == words[places]).all()
        assert (plan.table_rows[:, direction][plan.begins[:, direction]] == mark).all()
        assert plan.begins[:, direction].sum() == 6


def test_input_is_read_no_further_than_two_batches_ahead(params):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield ["word"] * 9

    list(islice(Embedder(params, batch_tokens=100).embed_sentences(endless()), 5))
    assert read <= 31


# --- AllenNLP's names ----------------------------------------------------------------


@pytest.fixture(scope="module")
def allennlp(goldens):
    """AllenNLP's own model, lines of text, and what it computed for each alone."""
    folder = goldens / "allennlp"
    params = elmojax.load_hdf5(folder / "options.json", folder / "lm_weights.hdf5")
    sentences = json.loads((folder / "golden_sentences.json").read_text())["sentences"]
    data = np.load(folder / "golden_single.npz")
    kept = [
        (words, data[f"s{i}"][:, 1:-1])
        for i, words in enumerate(sentences)
        if len(words) < 30 and words != ["."]
        if words == " ".join(words).encode(errors="replace").decode().split()
    ]
    assert len(kept) > 30
    return Embedder(params), *zip(*kept, strict=True)


def open_text(lines, **more):
    return io.StringIO("".join(f"{line}\n" for line in lines), **more)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_batch_size_changes_no_vector(allennlp, batch_size):
    embedder, sentences, wanted = allennlp
    read = 0

    def stream():
        nonlocal read
        for sentence in sentences:
            read += 1
            yield sentence

    vectors = embedder.embed_sentences(stream(), batch_size)
    assert_same([next(vectors)], wanted[:1])
    assert read <= min(2 * batch_size + 1, len(sentences))
    assert_same(vectors, wanted[1:])


FORMATS = {
    "all": lambda layers: layers,
    "top": lambda layers: layers[-1],
    "average": lambda layers: np.average(layers, axis=0),
}


@pytest.mark.parametrize(
    "flags", [(), ("forget_sentences",), ("use_sentence_keys",)], ids=str
)
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_as_allennlp_writes_it(allennlp, tmp_path, output_format, flags):
    """Names, shapes, types and numbers of every data set, and no other; the embedder's
    own layers do not matter."""
    embedder, sentences, wanted = allennlp
    embedder = Embedder(embedder.params, layers="top", dtype="float16")
    lines = ["  ".join(words) for words in sentences]
    out, file = tmp_path / "no ending", open_text(["read before", *lines])
    file.readline()
    embedder.embed_file(file, str(out), output_format, 64, **dict.fromkeys(flags, True))
    assert not file.closed
    names = lines if "use_sentence_keys" in flags else list(map(str, range(len(lines))))
    with h5py.File(out) as made:
        data_sets = []
        made.visititems(
            lambda _, item: data_sets.append(isinstance(item, h5py.Dataset))
        )
        assert sum(data_sets) == len(names) + (not flags)
        for name, layers in zip(names, wanted, strict=True):
            theirs = FORMATS[output_format](layers)
            assert (made[name].shape, made[name].dtype) == (theirs.shape, "float32")
            np.testing.assert_allclose(made[name], theirs, atol=ROUNDING)
        if not flags:
            assert made["sentence_to_index"].shape == (1,)
            index = json.loads(made["sentence_to_index"].asstr()[0])
            assert index == dict(zip(lines, names, strict=True))
    assert list(tmp_path.iterdir()) == [out]


def test_where_a_text_may_come_from(params, tmp_path):
    lines = ["The bank", "", " Hi  there\t", "The bank"]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    with gzip.open(tmp_path / "text.gz", "wt") as packed:
        packed.write(path.read_text())
    wanted = of_encode(params, [line.split() for line in lines])
    embedder = Embedder(params)
    with open(path) as opened:
        sources = (path, str(path), tmp_path / "text.gz", opened, open_text(lines))
        for number, source in enumerate(sources):
            out = tmp_path / f"{number}.hdf5"
            embedder.embed_file(source, out)
            with h5py.File(out) as file:
                assert_same([file[key][:] for key in "0123"], wanted)
                index = json.loads(file["sentence_to_index"].asstr()[0])
            assert index == {"The bank": "3", "": "1", "Hi  there": "2"}


def test_files_that_cannot_be(params, tmp_path):
    embedder, there = Embedder(params), tmp_path / "there.hdf5"
    embedder.embed_file(open_text(["a b"]), there)
    before, text, binary = there.read_bytes(), open_text(["a"]), tmp_path / "binary"
    binary.write_bytes(b"caf\xe9\n")
    closed = open_text(["a"])
    closed.close()
    new = tmp_path / "new.hdf5"
    for arguments, says in (
        ((text, there), "there already"),
        ((text, tmp_path), "there already"),
        ((text, tmp_path / "none" / "x.hdf5"), "cannot be written"),
        ((text, new, "sum"), "output_format is 'sum'"),
        ((text, new, "all", 0), "batch_size is 0"),
        ((text, new, "all", "64"), "batch_size is '64'"),
        ((closed, new), "cannot be read"),
        ((None, new), "input_file is None"),
        ((io.BytesIO(b"a b"), new), "text mode"),
        ((binary, new), "not UTF-8"),
        ((open(binary, encoding="utf-8"), new), "cannot be read"),
        ((tmp_path / "none.txt", new), "none.txt"),
        ((open_text(["a", "a"]), new, "all", None, False, True), "line 0 again"),
        ((open_text(["a", ""]), new, "all", None, False, True), "Line 1"),
        ((open_text(["a/b", "a"]), new, "all", None, False, True), "Line 1"),
        ((open_text(["."]), new, "all", None, False, True), "Line 0"),
        ((open_text(["\0"]), new, "all", None, False, True), "a NUL character"),
        ((open_text(["\ud800"]), new, "all", None, False, True), "half a character"),
    ):
        text.seek(0)
        with pytest.raises(InputError, match=says) as refused:
            embedder.embed_file(*arguments)
        assert "\n" not in str(refused.value)
        if not isinstance(arguments[0], (str, Path, type(None))):
            arguments[0].close() if arguments[0] is not text else None
    assert {*tmp_path.iterdir()} == {there, binary} and there.read_bytes() == before
    embedder.embed_file(open_text(["c"]), there, overwrite=True)
    assert there.read_bytes() != before


# --- errors --------------------------------------------------------------------------


def test_wrong_requests_say_what_is_right(params):
    for wrong, message in (
        ({"layers": "both"}, "layers is 'both'; it must be one of all, top, mix"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"layers": "mix"}, "gammas belong to layers 'mix'"),
        ({"gammas": [1.0, 1.0, 1.0]}, "gammas belong to layers 'mix'"),
        ({"layers": "mix", "gammas": [1.0]}, "there must be 3 gammas"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        (
            {"mesh": jax.make_mesh((2, 4), ("rows", "model"))},
            "The mesh has the axes rows, model and none of the name data",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Embedder(params, **wrong)
    for sentence, message in (
        ("The bank", "Sentence 1 is the string 'The bank'; give a list of words"),
        (["The", 3], "Word 1 of sentence 1 is 3, which is no string"),
        (None, "Sentence 1 is None; give a list of words"),
    ):
        with pytest.raises(InputError, match=message):
            Embedder(params).embed_batch([["fine"], sentence])
    for sentences in ("The bank", None, 7):
        with pytest.raises(InputError, match="it must be a list of sentences"):
            Embedder(params).embed_batch(sentences)
    assert Embedder(params).embed_batch([]) == []
