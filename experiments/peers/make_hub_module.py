"""Make tests/data/tf_hub_module: a module as TF-Hub has them, that TensorFlow wrote.

bilm-tf's own graph with generated weights and a mix of its layers, exported by
tensorflow_hub, loaded again by it, and what it then computes, in `expected.npz`. With
Python 3.7:

    python3.7 -m venv tf1
    tf1/bin/pip install tensorflow==1.15.5 'tensorflow-hub<0.10' 'protobuf<3.21' \
        'h5py<3' 'numpy<1.20'
    git clone https://github.com/allenai/bilm-tf
    PYTHONPATH=bilm-tf tf1/bin/python experiments/peers/make_hub_module.py OUT
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf
import tensorflow_hub as hub
from bilm import Batcher, BidirectionalLanguageModel

OPTIONS = {
    "char_cnn": {
        "activation": "relu",
        "embedding": {"dim": 4},
        "filters": [[1, 4], [2, 4], [3, 6]],
        "max_characters_per_token": 50,
        "n_characters": 262,
        "n_highway": 2,
    },
    "lstm": {
        "cell_clip": 3,
        "proj_clip": 3,
        "dim": 16,
        "n_layers": 2,
        "projection_dim": 8,
        "use_skip_connections": True,
    },
}
LOGITS, SCALE = [0.4, -1.0, 0.7], 1.3
SENTENCES = [
    "the river ran past the old mill".split(),
    "où est le pont ?".split(),
    ["日本", "x"],
]


def write_weights(path: str) -> None:
    """Large enough that clips act and every gate moves."""
    random = np.random.RandomState(0)
    filters = OPTIONS["char_cnn"]["filters"]
    width, (dim, projection) = sum(n for _, n in filters), (16, 8)
    shapes = {"char_embed": (261, 4), "CNN_proj/W_proj": (width, projection)}
    shapes["CNN_proj/b_proj"] = (projection,)
    for i, (size, count) in enumerate(filters):
        shapes[f"CNN/W_cnn_{i}"] = (1, size, 4, count)
        shapes[f"CNN/b_cnn_{i}"] = (count,)
    for i in range(2):
        for gate in ("carry", "transform"):
            shapes[f"CNN_high_{i}/W_{gate}"] = (width, width)
            shapes[f"CNN_high_{i}/b_{gate}"] = (width,)
    for direction in range(2):
        for layer in range(2):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            shapes[cell + "W_0"] = (2 * projection, 4 * dim)
            shapes[cell + "B"] = (4 * dim,)
            shapes[cell + "W_P_0"] = (dim, projection)
    with h5py.File(path, "w") as file:
        for name, shape in sorted(shapes.items()):
            values = 0.6 * random.standard_normal(shape)
            file.create_dataset(name, data=values.astype(np.float32))


def make_module(out: str, folder: str) -> None:
    options, weights = os.path.join(folder, "o.json"), os.path.join(folder, "w.hdf5")
    Path(options).write_text(json.dumps(OPTIONS))
    write_weights(weights)

    def module() -> None:
        ids = tf.placeholder("int32", shape=(None, None, 50))
        found = BidirectionalLanguageModel(options, weights)(ids)
        layers = found["lm_embeddings"]
        with tf.variable_scope("aggregation"):
            logits = tf.get_variable("weights", initializer=tf.constant(LOGITS))
            scale = tf.get_variable("scaling", initializer=tf.constant(SCALE))
        mix = tf.reshape(tf.nn.softmax(logits), (1, 3, 1, 1))
        mask = tf.cast(found["mask"], "float32")[:, :, None]
        elmo = scale * tf.reduce_sum(mix * layers, axis=1) * mask
        mean = tf.reduce_sum(elmo, axis=1) / tf.reduce_sum(mask, axis=1)
        outputs = {
            "word_emb": layers[:, 0, :, :8] * mask,
            "lstm_outputs1": layers[:, 1] * mask,
            "lstm_outputs2": layers[:, 2] * mask,
            "elmo": elmo,
            "default": mean,
        }
        hub.add_signature(inputs={"ids": ids}, outputs=outputs)

    spec = hub.create_module_spec(module)
    with tf.Graph().as_default(), tf.Session() as session:
        made = hub.Module(spec)
        session.run(tf.global_variables_initializer())
        made.export(out, session)
    words = os.path.join(folder, "words")
    Path(words).write_text("<S>\n</S>\n<UNK>\n")
    batch = Batcher(words, 50).batch_sentences(SENTENCES)
    with tf.Graph().as_default(), tf.Session() as session:
        found = hub.Module(out)({"ids": tf.constant(batch, "int32")}, as_dict=True)
        session.run(tf.global_variables_initializer())
        expected = session.run(found)
    reader = tf.train.load_checkpoint(out + "/variables/variables")
    print("\n".join(sorted(reader.get_variable_to_shape_map())))
    np.savez_compressed(out + "/expected.npz", **expected)
    os.remove(out + "/saved_model.pb")  # the graph, which nobody reads here


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        make_module(sys.argv[1], temporary)
