"""Make tests/data/bilm_tf_checkpoint: checkpoints that bilm-tf itself trains and saves.

Three small language models (characters, characters with every optional part left out,
words with a shared softmax) and one bundle of all kinds of variables, each with what
TensorFlow says about it in `expected.npz`. With Python 3.7 and bilm-tf's own code:

    python3.7 -m venv tf1
    tf1/bin/pip install tensorflow==1.15.5 'protobuf<3.21' 'h5py<3' 'numpy<1.20'
    git clone https://github.com/allenai/bilm-tf
    PYTHONPATH=bilm-tf tf1/bin/python experiments/peers/make_bilm_checkpoint.py OUT
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from bilm import Batcher, BidirectionalLanguageModel
from bilm.data import BidirectionalLMDataset, LMDataset
from bilm.training import LanguageModel, dump_weights, load_vocab, train

TEXT = """\
The river ran past the old mill and the miller slept .
A boat came down the river at night .
Nobody heard the boat , and nobody saw the bank give way .
In the morning the mill stood in the water .
« Où est le pont ? » asked the miller .
The old bank had money ; the old bank of the river had none .
"""
HELDOUT = """\
The miller saw the boat .
A naïve ferryman asked : où est le bank ?
Water ran down the old hill .
"""
CHARACTERS = 20
STEPS = 40

COMMON = {
    "bidirectional": True,
    "dropout": 0.1,
    "all_clip_norm_val": 10.0,
    "n_epochs": 1,
    "batch_size": 2,
    "unroll_steps": 5,
    "n_train_tokens": STEPS * 10,
    "n_negative_samples_batch": 16,
}
MODELS = {
    # Everything on, and clips so low that they act.
    "characters": {
        "char_cnn": {
            "activation": "relu",
            "embedding": {"dim": 4},
            "filters": [[1, 4], [2, 4], [3, 6]],
            "max_characters_per_token": CHARACTERS,
            "n_characters": 261,
            "n_highway": 2,
        },
        "lstm": {
            "cell_clip": 0.5,
            "proj_clip": 0.3,
            "dim": 16,
            "n_layers": 2,
            "projection_dim": 8,
            "use_skip_connections": True,
        },
    },
    # One layer (other names), no projections, no highway, no clips.
    "plain": {
        "char_cnn": {
            "activation": "tanh",
            "embedding": {"dim": 4},
            "filters": [[1, 4], [2, 4]],
            "max_characters_per_token": CHARACTERS,
            "n_characters": 261,
        },
        "lstm": {"dim": 8, "projection_dim": 8, "use_skip_connections": False},
    },
    "words": {
        "share_embedding_softmax": True,
        "lstm": {
            "cell_clip": 3,
            "proj_clip": 3,
            "dim": 12,
            "n_layers": 3,
            "projection_dim": 6,
            "use_skip_connections": False,
        },
    },
}


def let_streams_end() -> None:
    """Python 3.7 turns a StopIteration that leaves a generator into an error."""
    original = LMDataset.get_sentence

    def get_sentence(self):
        try:
            yield from original(self)
        except RuntimeError as error:
            if not isinstance(error.__cause__, StopIteration):
                raise

    LMDataset.get_sentence = get_sentence


def make_model(name: str) -> None:
    """Train, save, and write down what TensorFlow computes with the checkpoint."""
    directory = Path(name)
    directory.mkdir()
    vocabulary = load_vocab("vocabulary.txt", None if name == "words" else CHARACTERS)
    options = {**COMMON, **MODELS[name], "n_tokens_vocab": vocabulary.size}
    random.seed(0)
    tf.reset_default_graph()
    tf.set_random_seed(0)
    data = BidirectionalLMDataset("train.txt", vocabulary)
    with tempfile.TemporaryDirectory() as logs:
        # A relative path, or TensorFlow writes an absolute one into `checkpoint`.
        train(options, data, 1, name, logs)
    prefix = f"{name}/model.ckpt-{STEPS}"
    os.remove(prefix + ".meta")  # the graph: half a megabyte that nobody reads here
    reader = tf.train.load_checkpoint(prefix)
    variables = reader.get_variable_to_shape_map()
    expected = {"variables/" + v: reader.get_tensor(v) for v in variables}
    expected["losses"] = losses(options, prefix, vocabulary)
    if name == "characters":
        expected["layers"] = layers(name, options)
    np.savez_compressed(str(directory / "expected.npz"), **expected)


def losses(options: dict, prefix: str, vocabulary) -> np.ndarray:
    """-log p of each target of heldout.txt, [two, positions], state carried."""
    tf.reset_default_graph()
    with tf.variable_scope("lm"):
        one = {**options, "batch_size": 1, "unroll_steps": 1}
        model = LanguageModel(one, is_training=False)
    stream = BidirectionalLMDataset("heldout.txt", vocabulary, test=True)
    inputs = "tokens_characters" if "char_cnn" in options else "token_ids"
    found = []
    with tf.Session() as session:
        tf.train.Saver().restore(session, prefix)
        feed = {}
        for batch in stream.iter_batches(1, 1):
            for suffix in ("", "_reverse"):
                for key in (inputs, "next_token_id"):
                    feed[getattr(model, key + suffix)] = batch[key + suffix]
            wanted = [model.individual_losses, model.final_lstm_state]
            loss, state = session.run(wanted, feed)
            # One pair of arrays a direction (and layer), as the placeholders have it.
            feed = dict(zip(model.init_lstm_state, state))  # noqa: B905 (Python 3.7)
            found.append(loss)
    return np.array(found, np.float32).T


def layers(name: str, options: dict) -> np.ndarray:
    """All layers of heldout.txt as one batch, from the weights as HDF5."""
    tf.reset_default_graph()
    with tempfile.TemporaryDirectory() as temp:
        weights = temp + "/weights.hdf5"
        dump_weights(name, weights)
        tf.reset_default_graph()
        cnn = {**options["char_cnn"], "n_characters": 262}
        file = Path(temp, "options.json")
        file.write_text(json.dumps({**options, "char_cnn": cnn}))
        ids = tf.placeholder("int32", shape=(None, None, CHARACTERS))
        output = BidirectionalLanguageModel(str(file), weights)(ids)
        sentences = [line.split() for line in HELDOUT.splitlines()]
        batch = Batcher("vocabulary.txt", CHARACTERS).batch_sentences(sentences)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            return session.run(output["lm_embeddings"], {ids: batch})


def make_kinds() -> None:
    """Every dtype, empty, scalar, in slices, in two data files."""
    tf.reset_default_graph()
    numbers = np.arange(-6, 6).reshape(3, 4)
    kinds = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 bool"
    with tf.device("/cpu:0"):
        for kind in (*kinds.split(), "complex64", "complex128"):
            value = tf.cast(tf.constant(numbers), getattr(tf, kind))
            tf.get_variable(kind, initializer=value)
        tf.get_variable("scalar", initializer=1.5)
        tf.get_variable("string", initializer="text")
    with tf.device("/cpu:1"):
        tf.get_variable("empty", initializer=np.zeros((0, 3), np.float32))
        # Slices begin at 0, 67 and 134: names of one and of two bytes a number.
        tf.get_variable(
            "sliced",
            [200, 3],
            initializer=tf.random_normal_initializer(seed=0),
            partitioner=tf.fixed_size_partitioner(3),
        )
    Path("kinds").mkdir()
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(sharded=True)
        saver.save(session, "kinds/model.ckpt", write_meta_graph=False)
    reader = tf.train.load_checkpoint("kinds/model.ckpt")
    expected = {}
    for name in reader.get_variable_to_shape_map():
        value = reader.get_tensor(name)
        if name != "string":
            expected[name] = value.astype("f4") if name == "bfloat16" else value
    np.savez_compressed("kinds/expected.npz", **expected)


def main(out: str) -> None:
    Path(out).mkdir(parents=True)
    os.chdir(out)
    known = sorted(set(TEXT.split()) - {"«", "»"})
    vocabulary = ["<S>", "</S>", "<UNK>", *known]
    Path("vocabulary.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    Path("heldout.txt").write_text(HELDOUT, encoding="utf-8")
    let_streams_end()
    for name in MODELS:
        make_model(name)
    make_kinds()


if __name__ == "__main__":
    main(sys.argv[1])
