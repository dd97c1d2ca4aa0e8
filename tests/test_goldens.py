"""The biLM against what bilm-tf and AllenNLP computed with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import elmojax
from elmojax import ElmoParams, LstmState

ROWS, TIME = 6, 24
"""Batches are padded to one shape, so that one program serves them all."""
BOUND = 2e-6
"""The other programs compute in float32 too: against float64 they are off by 8e-7."""

encode = jax.jit(elmojax.encode)


def read_model(folder: Path) -> ElmoParams:
    return elmojax.load_hdf5(folder / "options.json", folder / "lm_weights.hdf5")


@pytest.fixture(scope="module")
def bilm_tf(goldens):
    return read_model(goldens / "bilm-tf")


@pytest.fixture(scope="module")
def allennlp(goldens):
    return read_model(goldens / "allennlp")


def padded(ids: np.ndarray, rows: int = ROWS, time: int = TIME) -> np.ndarray:
    whole = np.zeros((rows, time, ids.shape[2]), np.int32)
    whole[: ids.shape[0], : ids.shape[1]] = ids
    return whole


class Carried:
    """`encode` batch after batch; rows beyond a smaller batch keep their state."""

    def __init__(self, params: ElmoParams) -> None:
        self.params = params
        self.state = LstmState.zeros(params.config.lstm, ROWS)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Ids without sentence marks -> layers [batch, layers + 1, time, vector]."""
        batch, time = ids.shape[:2]
        layers, _, after = encode(self.params, padded(ids), self.state)
        self.state = jax.tree.map(
            lambda old, new: old.at[:, :, :batch].set(new[:, :, :batch]),
            self.state,
            after,
        )
        assert not np.any(layers[:batch, :, time:])
        return np.asarray(layers[:batch, :, :time])


def close(got, wanted):
    """Both exist, and differ by the rounding of float32."""
    assert np.abs(wanted).max() > 0.1
    assert np.abs(np.asarray(got) - wanted).max() <= BOUND


def test_all_layers_of_bilm_tf_with_carried_state(goldens, bilm_tf):
    assert not bilm_tf.config.lstm.skip_connections
    data = np.load(goldens / "bilm-tf" / "all_layers_stateful.npz")
    run = Carried(bilm_tf)
    for i in range(5):
        mask = data[f"b{i}_mask"]
        # Their ids hold the sentence marks: one before, one right after the words.
        ids = data[f"b{i}_ids"][:, 1:-1] * mask[..., None]
        layers = run(ids)
        close(layers, np.where(mask[:, None, :, None], data[f"b{i}"], 0))
        words = mask.sum(axis=1)
        np.testing.assert_array_equal(words, data[f"b{i}_lengths"])


@pytest.fixture(scope="module")
def single(goldens):
    """Layers of each sentence alone, fresh state, sentence marks taken away."""
    data = np.load(goldens / "allennlp" / "golden_single.npz")
    return [data[f"s{i}"][:, 1:-1] for i in range(len(data.files) // 2)]


def test_each_sentence_alone_equals_allennlp(goldens, allennlp, single):
    assert allennlp.config.lstm.skip_connections
    data = np.load(goldens / "allennlp" / "golden_single.npz")
    assert len(single) == 43
    for i, wanted in enumerate(single):
        ids = data[f"ids{i}"]
        shape = (ROWS, TIME) if len(ids) <= TIME else (43, 120)
        layers = encode(allennlp, padded(ids[None], *shape)).layers
        close(layers[0, :, : len(ids)], wanted)


def test_one_batch_of_all_sentences_equals_each_alone(goldens, allennlp, single):
    data = np.load(goldens / "allennlp" / "golden_batch_ids.npz")
    layers, mask, _ = encode(allennlp, data["ids"].astype(np.int32))
    np.testing.assert_array_equal(mask.sum(axis=1), data["mask"].sum(axis=1) - 2)
    for row, wanted in zip(layers, single, strict=True):
        close(row[:, : wanted.shape[1]], wanted)
        assert not np.any(row[:, wanted.shape[1] :])


@pytest.mark.parametrize(
    ("name", "batches"), [("golden_stateful", 5), ("golden_empty", 3)]
)
def test_layers_and_states_of_allennlp(goldens, allennlp, name, batches):
    """An empty sentence among them: its two marks move the state."""
    data = np.load(goldens / "allennlp" / f"{name}.npz")
    run = Carried(allennlp)
    for i in range(batches):
        ids = data[f"b{i}_ids"]
        layers = run(ids)
        wanted = data[f"b{i}"][:, :, 1:-1].swapaxes(0, 1)
        words = (ids > 0).any(axis=-1)
        np.testing.assert_array_equal(
            words.sum(axis=1) + 2, data[f"b{i}_mask"].sum(axis=1)
        )
        close(layers, np.where(words[:, None, :, None], wanted, 0))
        for key, state in (("h", run.state.hidden), ("c", run.state.cell)):
            theirs = data[f"b{i}_{key}"]
            forward_backward = np.concatenate([state[:, 0], state[:, 1]], axis=-1)
            close(forward_backward[:, : theirs.shape[1]], theirs)


def test_the_mix_of_allennlp(goldens, allennlp):
    """`embed` with the paper's weights equals their Elmo module."""
    data = np.load(goldens / "allennlp" / "golden_scalarmix.npz")
    s, gamma = data["scalar_parameters"], data["gamma"]
    weights = np.stack(
        [elmojax.mix_weights(s, gamma), elmojax.mix_weights(np.zeros(3, np.float32))]
    )
    vectors = jax.jit(elmojax.embed)(allennlp, padded(data["ids"]), weights)
    batch, time = data["ids"].shape[:2]
    mask = data["ln0_keep0_mask"][..., None]
    close(vectors[0, :batch, :time], np.where(mask, data["ln0_keep0"], 0))
    close(vectors[1, :batch, :time], np.where(mask, data["default_two"][0], 0))


def test_a_padded_batch_of_the_embedder(goldens, allennlp, single):
    """`batch_to_embeddings` of their `ElmoEmbedder`, an empty sentence among them."""
    text = (goldens / "allennlp" / "golden_sentences.json").read_text("utf-8")
    sentences = json.loads(text)["sentences"][:40]
    vectors, mask = elmojax.Embedder(allennlp).batch_to_embeddings([[], *sentences])
    assert vectors.shape == (41, 3, max(map(len, sentences)), 32)
    np.testing.assert_array_equal(mask.sum(axis=1), [0, *map(len, sentences)])
    assert mask.dtype == bool and not vectors[0].any()
    for row, present, wanted in zip(vectors[1:], mask[1:], single, strict=False):
        close(row[:, present], wanted)
        assert not row[:, ~present].any()
    top = elmojax.Embedder(allennlp, layers="top", dtype="bfloat16")
    vectors, mask = top.batch_to_embeddings(sentences[:2])
    assert (vectors.shape, vectors.dtype.name) == ((2, 11, 32), "bfloat16")
    vectors, mask = top.batch_to_embeddings([])
    assert (vectors.shape, mask.shape) == ((0, 0, 32), (0, 0))
