"""The biLM against what bilm-tf and AllenNLP computed with the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elmojax
from elmojax import LstmState
from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig
from elmojax.model.bilm import ElmoParams, from_tree, init_tree

ROWS, TIME = 7, 120
"""Batches are padded to one shape, so that one program serves them all."""
BOUND = 2e-6
"""The other programs compute in float32 too: against float64 they are off by 8e-7."""

encode = jax.jit(elmojax.encode)


def read_config(options: dict) -> ElmoConfig:
    cnn, lstm = options["char_cnn"], options["lstm"]
    return ElmoConfig(
        CharCnnConfig(
            filters=tuple(map(tuple, cnn["filters"])),
            embedding_dim=cnn["embedding"]["dim"],
            highway_layers=cnn["n_highway"],
            activation=cnn["activation"],
            max_characters=cnn["max_characters_per_token"],
        ),
        LstmConfig(
            lstm["dim"],
            lstm["projection_dim"],
            lstm["n_layers"],
            float(lstm["cell_clip"]),
            float(lstm["proj_clip"]),
            lstm["use_skip_connections"],
        ),
    )


def read_model(folder: Path) -> ElmoParams:
    """options.json and lm_weights.hdf5 as bilm-tf writes them."""
    config = read_config(json.loads((folder / "options.json").read_text()))
    with h5py.File(folder / "lm_weights.hdf5") as file:
        encoder = {
            "embedding": file["char_embed"][...],
            "projection_kernel": file["CNN_proj/W_proj"][...],
            "projection_bias": file["CNN_proj/b_proj"][...],
        }
        for i in range(len(config.encoder.filters)):
            encoder[f"convolution_{i}_kernel"] = file[f"CNN/W_cnn_{i}"][0]
            encoder[f"convolution_{i}_bias"] = file[f"CNN/b_cnn_{i}"][...]
        for i in range(config.encoder.highway_layers):
            for gate in ("carry", "transform"):
                for short, name in (("W", "kernel"), ("b", "bias")):
                    leaf = file[f"CNN_high_{i}/{short}_{gate}"][...]
                    encoder[f"highway_{i}_{gate}_{name}"] = leaf
        lstm = {}
        for j in range(config.lstm.layers):
            cell = f"RNN/MultiRNNCell/Cell{j}/LSTMCell"
            cells = [file[f"RNN_{direction}/{cell}"] for direction in range(2)]
            kernel, bias, projection = (
                np.stack([cell[name][...] for cell in cells])
                for name in ("W_0", "B", "W_P_0")
            )
            gates = (4, config.lstm.dim)
            lstm[f"kernel_{j}"] = kernel.reshape(*kernel.shape[:2], *gates)
            lstm[f"bias_{j}"] = bias.reshape(2, *gates)
            lstm[f"projection_{j}"] = projection
    tree = {"encoder": encoder, "lstm": lstm}
    tree = jax.tree.map(jnp.asarray, tree)
    ours = jax.eval_shape(lambda: init_tree(config, jax.random.key(0)))
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), tree, ours
    )
    assert all(jax.tree.leaves(same)), "not the shapes of our model"
    return from_tree(config, tree)


@pytest.fixture(scope="module")
def bilm_tf(fixtures):
    return read_model(fixtures / "bilm-tf")


@pytest.fixture(scope="module")
def allennlp(fixtures):
    return read_model(fixtures / "allennlp")


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


def test_all_layers_of_bilm_tf_with_carried_state(fixtures, bilm_tf):
    assert not bilm_tf.config.lstm.skip_connections
    data = np.load(fixtures / "bilm-tf" / "all_layers_stateful.npz")
    run = Carried(bilm_tf)
    for i in range(9):
        mask = data[f"b{i}_mask"]
        # Their ids hold the sentence marks: one before, one right after the words.
        ids = data[f"b{i}_ids"][:, 1:-1] * mask[..., None]
        layers = run(ids)
        close(layers, np.where(mask[:, None, :, None], data[f"b{i}"], 0))
        words = mask.sum(axis=1)
        np.testing.assert_array_equal(words, data[f"b{i}_lengths"])


@pytest.mark.parametrize(
    ("model", "name"),
    [("bilm_tf", "lm_embeddings_sentences.json"), ("allennlp", "sentences.json")],
)
def test_the_embeddings_that_their_own_tests_expect(fixtures, request, model, name):
    """Ten batches, one sentence out of each of three lists, state carried."""
    folder = fixtures / model.replace("_", "-")
    lists = json.loads((folder / name).read_text())
    run = Carried(request.getfixturevalue(model))
    expected = [h5py.File(folder / f"lm_embeddings_{i}.hdf5") for i in range(3)]
    for number, batch in enumerate(zip(*lists, strict=True)):
        words = [s.split() if isinstance(s, str) else s for s in batch]
        layers = run(elmojax.batch_to_ids(words))
        for row, file in enumerate(expected):
            top = layers[row, -1, : len(words[row])]
            forward, backward = np.split(top, 2, axis=-1)
            close(np.stack([forward, backward]), file[str(number)][...])
    for file in expected:
        file.close()


@pytest.fixture(scope="module")
def single(fixtures):
    """Layers of each sentence alone, fresh state, sentence marks taken away."""
    data = np.load(fixtures / "allennlp" / "golden_single.npz")
    return [data[f"s{i}"][:, 1:-1] for i in range(len(data.files) // 2)]


def test_each_sentence_alone_equals_allennlp(fixtures, allennlp, single):
    assert allennlp.config.lstm.skip_connections
    data = np.load(fixtures / "allennlp" / "golden_single.npz")
    assert len(single) == 43
    for i, wanted in enumerate(single):
        ids = data[f"ids{i}"]
        time = 24 if len(ids) <= 24 else TIME
        layers = encode(allennlp, padded(ids[None], 1, time)).layers
        close(layers[0, :, : len(ids)], wanted)


def test_one_batch_of_all_sentences_equals_each_alone(fixtures, allennlp, single):
    data = np.load(fixtures / "allennlp" / "golden_batch_ids.npz")
    layers, mask, _ = encode(allennlp, data["ids"].astype(np.int32))
    np.testing.assert_array_equal(mask.sum(axis=1), data["mask"].sum(axis=1) - 2)
    for row, wanted in zip(layers, single, strict=True):
        close(row[:, : wanted.shape[1]], wanted)
        assert not np.any(row[:, wanted.shape[1] :])


@pytest.mark.parametrize(
    ("name", "batches"), [("golden_stateful", 9), ("golden_empty", 3)]
)
def test_layers_and_states_of_allennlp(fixtures, allennlp, name, batches):
    """An empty sentence among them: its two marks move the state."""
    data = np.load(fixtures / "allennlp" / f"{name}.npz")
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


def test_the_mix_of_allennlp(fixtures, allennlp):
    """`embed` with the paper's weights equals their Elmo module."""
    data = np.load(fixtures / "allennlp" / "golden_scalarmix.npz")
    s, gamma = data["scalar_parameters"], data["gamma"]
    weights = np.stack(
        [elmojax.mix_weights(s, gamma), elmojax.mix_weights(np.zeros(3, np.float32))]
    )
    vectors = jax.jit(elmojax.embed)(allennlp, padded(data["ids"]), weights)
    batch, time = data["ids"].shape[:2]
    mask = data["ln0_keep0_mask"][..., None]
    close(vectors[0, :batch, :time], np.where(mask, data["ln0_keep0"], 0))
    close(vectors[1, :batch, :time], np.where(mask, data["default_two"][0], 0))
