"""Do files of `save_hdf5` load unedited in bilm-tf, with the same vectors?

    python check_allennlp.py make DIR         elmojax; see there
    python3.7 check_bilm_tf.py DIR [BILM_TF]  TensorFlow 1.15.5 and h5py; BILM_TF is a
                                              checkout of allenai/bilm-tf

Models over characters are run twice, the second time with the token embeddings that
`save_token_embeddings` wrote. Prints the largest difference of each model and layer,
and fails above 5e-6.
"""

import json
import sys
from pathlib import Path

import numpy as np
from check_allennlp import BATCHES, models, report


def layers(folder, batches, from_tokens):
    """bilm-tf's layers of successive batches, [batch, layers, time, vector] each."""
    import tensorflow as tf
    from bilm.data import Batcher, TokenBatcher
    from bilm.model import BidirectionalLanguageModel

    tf.reset_default_graph()
    options, weights, vocabulary, tokens = (
        str(folder / name)
        for name in (
            "options.json",
            "weights.hdf5",
            "vocabulary.txt",
            "token_embeddings.hdf5",
        )
    )
    if from_tokens:
        batcher = TokenBatcher(vocabulary)
        ids = tf.placeholder("int32", (None, None))
        model = BidirectionalLanguageModel(
            options, weights, use_character_inputs=False, embedding_weight_file=tokens
        )
    else:
        columns = json.loads(Path(options).read_text())["char_cnn"][
            "max_characters_per_token"
        ]
        batcher = Batcher(vocabulary, columns)
        ids = tf.placeholder("int32", (None, None, columns))
        model = BidirectionalLanguageModel(options, weights)
    found = model(ids)["lm_embeddings"]
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return [
            session.run(found, {ids: batcher.batch_sentences(batch)})
            for batch in batches
        ]


def compare(directory):
    good = True
    for name in models(directory, set()):
        folder = directory / name
        vectors = np.load(str(folder / "vectors.npz"))
        ways = (
            {" from tokens": True} if name == "words" else {"": False, " tokens": True}
        )
        for way, from_tokens in ways.items():
            worst = []
            for number, theirs in enumerate(layers(folder, BATCHES, from_tokens)):
                for row, sentence in enumerate(BATCHES[number]):
                    difference = np.abs(theirs[row] - vectors[str(number)][row])
                    worst.append(difference[:, : len(sentence)].max(axis=(1, 2)))
            good &= report(name + way, np.max(worst, axis=0))
    return good


if __name__ == "__main__":
    sys.path += sys.argv[2:3]
    if not compare(Path(sys.argv[1])):
        raise SystemExit(1)
