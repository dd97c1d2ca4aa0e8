"""Wrong kinds of arguments: an error of ours that names them, at every public name."""

from __future__ import annotations

import functools
import multiprocessing
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TINY, tiny_params

import elmojax
from elmojax import ElmoConfig, Embedder, InputError, LstmState, ScalarMix
from elmojax.config import CHARACTER_MARKS, WORD_MARKS, UnicodeCnnConfig
from elmojax.text.files import expand
from elmojax.text.vocabulary import SPECIALS, Vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")

WORDS = Vocabulary((*SPECIALS, "bank", "the"))
IDS = elmojax.batch_to_ids([["the", "bank"], ["bank"]], TINY.encoder.max_characters)
UNICODE = UnicodeCnnConfig(
    words=WORD_MARKS,
    alphabet=CHARACTER_MARKS,
    word_dim=2,
    filters=((1, 2),),
    embedding_dim=2,
    highway_layers=1,
    activation="relu",
    max_characters=8,
)
GAMMAS = [0.2, 0.3, 0.5]
VECTORS, MASK = np.ones((2, 3, 4), np.float32), np.ones((2, 3), bool)
LAYERS = np.ones((2, 3, 4, 6), np.float32)


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(autouse=True)
def _not_with_beartype(request):
    if request.config.getoption("--shapes"):
        pytest.skip("beartype refuses it first")


def of(params: Any) -> dict[str, tuple[Any, ...]]:
    """Functions and good arguments, those that have to be given."""
    return {
        "batch_to_ids": ([["a"]],),
        "cache_words": (params, ["a"]),
        "cast": (params, "bf16"),
        "contextualize": (params, np.ones((2, 3, 6), np.float32), MASK),
        "embed": (params, IDS, GAMMAS),
        "encode": (params, IDS),
        "encode_words": (params, IDS),
        "from_tree": (TINY, params.tree),
        "hub_default": (params, ["a b"]),
        "hub_mix": ("nowhere",),
        "hub_tokens": (params, [["a"]], [1]),
        "init": (TINY, jax.random.key(0)),
        "load": ("nowhere",),
        "load_hdf5": ("nowhere", "nowhere"),
        "load_language_model": ("nowhere",),
        "mix_penalty": ({"s": jnp.ones(3)}, 0.1),
        "mix_weights": (GAMMAS,),
        "model_config": ("nowhere",),
        "pool": (VECTORS, MASK, "mean"),
        "pretrain": (None,),
        "push_to_hub": (params, "nowhere"),
        "read_vectors": ("nowhere",),
        "restore": ("nowhere",),
        "save_hdf5": (params, "nowhere"),
        "save_pretrained": (params, "nowhere"),
        "score": ("nowhere", [["a"]]),
        "sentence_loss": (None, IDS, IDS[..., 0]),
        "target_ids": (WORDS, [["a"]]),
        "unicode_ids": (UNICODE, [["a"]]),
        "warm": (params,),
        "word_ids": (["a"], [["a"]]),
        "Embedder": (params,),
        "WordIndex": (["a"],),
    }


NAMES = sorted(of(tiny_params()))


def test_every_function_is_here():
    missing = {n for n in elmojax.__all__ if n.islower()} - {*NAMES}
    assert not missing


FINE = (("mix_penalty", 1, 7), ("WordIndex", 0, {}), ("cache_words", 1, {}))
"""A weight; words may be the keys of a dict."""


@pytest.mark.parametrize("name", NAMES)
def test_wrong_kinds(params, name):
    """None, a number, bytes, a dict and an object, for every argument in turn."""
    good = of(params)[name]
    for place in range(len(good)):
        for wrong in (None, 7, b"x", {}, object()):
            if (name, place, wrong) in FINE:
                continue
            arguments = (*good[:place], wrong, *good[place + 1 :])
            with pytest.raises(InputError) as refused:
                getattr(elmojax, name)(*arguments)
            assert "\n" not in str(refused.value)


def raising():
    yield ["a"]
    raise ValueError("the user's own")


def test_what_a_generator_raises_goes_through(params):
    embedder = Embedder(params, batch_tokens=1)
    for run in (
        elmojax.batch_to_ids,
        functools.partial(elmojax.word_ids, ["a"]),
        functools.partial(elmojax.target_ids, WORDS),
        functools.partial(elmojax.hub_tokens, params, sequence_len=[1]),
        embedder.embed_batch,
        embedder.batch_to_embeddings,
    ):
        with pytest.raises(ValueError, match="the user's own"):
            run(raising())
    assert embedder.embed_sentence(["a"]).shape == (3, 1, 12)


@pytest.mark.parametrize(
    ("match", "run"),
    [
        ("^remark is 3", lambda p: elmojax.pretrain(elmojax.TrainConfig(), remark=3)),
        ("^step is '5'", lambda p: elmojax.restore("x", "5")),
        ("^batch_tokens is 1.5", lambda p: Embedder(p, batch_tokens=1.5)),
        ("^vocabulary is", lambda p: Embedder(p, ["a"])),
        ("^gammas is 'abc'", lambda p: elmojax.hub_default(p, ["a"], gammas="abc")),
        (r"^gammas have shape \(2,\)", lambda p: elmojax.embed(p, IDS, [1, 2])),
        (r"^bias has shape \(2,\)", lambda p: elmojax.embed(p, IDS, GAMMAS, [1, 2])),
        ("^tokens are float32", lambda p: elmojax.encode(p, IDS.astype(np.float32))),
        (r"^tokens is \[\[1\]", lambda p: elmojax.encode(p, [[1], [1, 2]])),
        ("^precision is 'int8'; .* float32, bf16", lambda p: elmojax.cast(p, "int8")),
        ("^params hold 3", lambda p: elmojax.cast({"a": 3}, "bf16")),
        ("^mask has shape", lambda p: elmojax.pool(VECTORS, MASK.T, "mean")),
        ("^how is 'sum'", lambda p: elmojax.pool(VECTORS, MASK, "sum")),
        ("^gamma.*shape|^s has shape", lambda p: elmojax.mix_weights(GAMMAS, [1, 2])),
        ("^params has", lambda p: elmojax.mix_penalty({"params": {}}, 1.0)),
        ("encoder.*missing", lambda p: elmojax.from_tree(TINY, {})),
        (r"^tree\['lstm'\]", lambda p: elmojax.from_tree(TINY, {**p.tree, "lstm": 3})),
        ("^key is 0", lambda p: elmojax.init(TINY, 0)),
        ("^name is 3", lambda p: ElmoConfig.preset(3)),
        ("^TrainConfig.rows is '8'", lambda p: elmojax.TrainConfig(rows="8")),
        ("^ElmoConfig.encoder is 3", lambda p: ElmoConfig(3)),
        ("^config is None", lambda p: LstmState.zeros(None)),
        ("^words is 'bank'", lambda p: elmojax.WordIndex("bank")),
        ("^batch is 'bank'", lambda p: elmojax.word_ids(["bank"], "bank")),
        ("^sentences is 'bank'", lambda p: elmojax.target_ids(WORDS, "bank")),
        ("^sentence is 'bank'", lambda p: Embedder(p).embed_sentence("bank")),
        ("Sentence 0 is {'a'}", lambda p: elmojax.batch_to_ids([{"a"}])),
        ("^A name in patterns is 3", lambda p: expand([3])),
        ("^state has cells", lambda p: elmojax.encode(p, IDS, LstmState(1, 2))),
        ("^gammas are .*finite", lambda p: mixed(p, [1.0, np.nan, 1.0])),
        ("^gammas are .*finite", lambda p: mixed(p, [1.0, 1e39, 1.0])),
    ],
)
def test_examples(params, match, run):
    with pytest.raises(InputError, match=match):
        run(params)


def mixed(params, gammas):
    return Embedder(params, layers="mix", gammas=gammas)


def test_masks_of_a_mix_and_of_words(params):
    for layers, mask in ((LAYERS, MASK), (LAYERS[0], None), (LAYERS, None)):
        with pytest.raises(InputError, match=r"layers have shape|mask"):
            ScalarMix(layer_norm=True).init(jax.random.key(0), layers, mask)
    with pytest.raises(InputError, match="mask has shape"):
        elmojax.contextualize(params, np.ones((2, 3, 6), np.float32), MASK.T)


def test_one_file_is_as_good_as_a_list(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a b\n")
    assert expand(str(path)) == expand(path) == expand([path]) == [path]


# --- ids that a model has no row for -------------------------------------------------


@pytest.mark.parametrize("form", [np.asarray, jnp.asarray, "traced"])
@pytest.mark.parametrize("wrong", [262, 2**31 - 1, -1, 2**32 + 66])
def test_no_row_no_vector(params, form, wrong):
    """NaN for the sentence, and nothing else for the sentences beside it."""
    tokens = IDS.astype(np.int64)
    tokens[0, 0, 2] = wrong
    if form != "traced":
        if form is jnp.asarray and wrong >= 2**31:
            pytest.skip("no int32")
        got = elmojax.encode(params, form(tokens)).layers
    else:
        tokens = np.clip(tokens, -1, 2**31 - 1).astype(np.int32)
        got = jax.jit(elmojax.encode)(params, tokens).layers
    assert np.isnan(got[0, :, 0]).any(-1).all() and np.isnan(got[0, 1:, 1]).any()
    np.testing.assert_array_equal(got[1], elmojax.encode(params, IDS).layers[1])


def test_no_row_in_a_table_of_words(params):
    cached = elmojax.cache_words(params, ["bank", "the"])
    ids = np.array([[1, 2, 0], [1, 2, 0], [1, 0, 2], [1, 5, 0], [-1, 2, 0]], np.int32)
    layers = np.asarray(elmojax.encode(cached, ids).layers)
    assert np.isfinite(layers[:2]).all()
    assert np.isnan(layers[2:, :, 0]).any(axis=(1, 2)).all(), "words after padding too"


def test_padding_has_finite_gradients(params):
    def total(words):
        return elmojax.contextualize(params, words * 2.0, mask).layers.sum()

    mask = (IDS > 0).any(-1)
    assert np.isfinite(jax.grad(total)(elmojax.encode_words(params, IDS))).all()


# --- threads and processes -----------------------------------------------------------


def test_threads_share_an_embedder(params):
    texts = [
        [[f"w{(7 * i + n * k) % 90}" for i in range(k % 70)] for k in range(30)]
        for n in range(4)
    ]
    embedder = Embedder(params, batch_tokens=60)
    wanted = [Embedder(params, batch_tokens=60).embed_batch(text) for text in texts]
    found: dict[int, Any] = {}

    def run(number):
        found[number] = [embedder.embed_batch(texts[number]) for _ in range(2)]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, sentences in enumerate(wanted):
        for got in found[number]:
            for one, other in zip(got, sentences, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_says_why_it_cannot_embed(params):
    embedder = Embedder(params)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        said = []
        for run in (
            lambda: embedder.embed_sentence(["a"]),
            lambda: Embedder(params),
            lambda: elmojax.encode(params, IDS),
        ):
            try:
                run()
            except InputError as error:
                said.append(str(error))
        theirs.send(said)

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(60), "it hangs"
        said = ours.recv()
    finally:
        process.kill()
        process.join()
    assert len(said) == 3 and all("forked" in each for each in said)


def test_importing_changes_nothing_of_the_program_around():
    """Every module, after the libraries that they use."""
    code = """
import importlib, logging, os, pkgutil, signal, sys, warnings
import flax.linen, h5py, jax, optax, orbax.checkpoint, tqdm, tyro
def state():
    loggers = {n: (l.level, l.disabled, list(l.handlers), l.propagate)
               for n, l in logging.root.manager.loggerDict.items()
               if isinstance(l, logging.Logger) and l.level}
    return (loggers, list(warnings.filters), dict(os.environ), sys.excepthook,
            sys.unraisablehook, [signal.getsignal(s) for s in range(1, 32)],
            dict(jax.config.values), logging.root.level, list(logging.root.handlers))
before = state()
import elmojax
for module in pkgutil.walk_packages(elmojax.__path__, "elmojax."):
    if not module.name.endswith(("__main__", "parquet", "cluster", "harness")):
        importlib.import_module(module.name)
print([i for i, (a, b) in enumerate(zip(before, state())) if a != b])
"""
    command = [sys.executable, "-W", "error::UserWarning:elmojax", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"
