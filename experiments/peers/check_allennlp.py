"""Do files of `save_hdf5` load unedited in AllenNLP, with the same vectors?

Two interpreters, one after the other:

    python check_allennlp.py make DIR        elmojax: random models of many shapes, and
                                             their vectors
    python3.9 check_allennlp.py compare DIR  AllenNLP 2.10.1 (`pip install
                                             allennlp==2.10.1 'torch<1.13'
                                             numpy==1.23.5`): loads them and compares

`check_bilm_tf.py` compares the same DIR with bilm-tf. Every model reads the same
batches in a row, its LSTM state carried from batch to batch. The second command prints
the largest difference of each model and layer (and, last, of the mean of the layers),
and fails above 5e-6 (float32, some values near 5: the programs add in other orders).
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import numpy as np

BOUND = 5e-6
BATCHES = [
    [["The", "river", "bank", "."], ["Hi"]],
    [["a", "b" * 60, "é中🙂"], ["She", "deposited", "it", "there", "."]],
    [["Hi", "again", "!"], ["The", "bank", "."]],
]
SKIP_ALLENNLP = {"no-skip", "words", "short-words"}


def shapes() -> dict:
    """Name -> configuration; all that the peers can load, and what only one can."""
    from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig, WordTableConfig

    filters = ((1, 4), (2, 8), (3, 12))
    cnn, lstm = CharCnnConfig(filters, 4), LstmConfig(20, 8, 2, 0.8, 0.6)
    words = sorted({w for batch in BATCHES for s in batch for w in s})
    return {
        "plain": ElmoConfig(cnn, lstm),
        "small-like": ElmoConfig(CharCnnConfig(filters, 6, 1), LstmConfig(24, 10, 2)),
        "tanh-no-clip": ElmoConfig(
            CharCnnConfig(filters, 4, 1, "tanh"),
            LstmConfig(20, 8, 3, float("inf"), float("inf")),
        ),
        "no-highway-one-layer": ElmoConfig(
            CharCnnConfig(filters, 4, 0), LstmConfig(20, 8, 1, 0.8, 0.6)
        ),
        "no-cnn-projection": ElmoConfig(
            CharCnnConfig(filters, 4, 2, project=False),
            LstmConfig(32, 24, 2, 0.8, 0.6),
        ),
        "no-lstm-projection": ElmoConfig(cnn, LstmConfig(12, 12, 2, 0.8, float("inf"))),
        "eight-layers": ElmoConfig(cnn, LstmConfig(12, 8, 8, 0.8, 0.6)),
        "no-skip": ElmoConfig(cnn, LstmConfig(20, 8, 2, 0.8, 0.6, False)),
        "short-words": ElmoConfig(
            CharCnnConfig(filters, 4, max_characters=20), LstmConfig(20, 8, 2)
        ),
        "words": ElmoConfig(WordTableConfig(len(words) + 3, 8), lstm),
    }


def make(directory: Path) -> None:
    """Saves every model, its vectors and the words of the one that reads word ids."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    import elmojax
    from elmojax.config import CharCnnConfig
    from elmojax.embedding.words import cache_words, word_ids
    from elmojax.formats.hdf5 import save_hdf5, save_token_embeddings
    from elmojax.text.vocabulary import SPECIALS, Vocabulary

    listed = sorted({w for batch in BATCHES for s in batch for w in s})
    vocabulary = Vocabulary((*SPECIALS, *listed))
    for name, config in shapes().items():
        random = np.random.default_rng(len(name))
        params = jax.tree.map(
            lambda leaf, r=random: (
                leaf + 0.3 * r.standard_normal(leaf.shape).astype("f")
            ),
            elmojax.init(config, jax.random.key(0)),
        )
        zeros = elmojax.LstmState.zeros(config.lstm)
        params = dataclasses.replace(params, initial_state=zeros)
        if config.lstm.dim == config.lstm.projection:
            for layer in range(config.lstm.layers):
                both = np.stack([np.eye(config.lstm.dim, dtype=np.float32)] * 2)
                params.lstm[f"projection_{layer}"] = both
        save_hdf5(params, directory / name, vocabulary=vocabulary)
        over_words = not isinstance(config.encoder, CharCnnConfig)
        cached = params if over_words else cache_words(params, vocabulary)
        save_token_embeddings(cached, directory / name / "token_embeddings.hdf5")
        state, layers = None, {}
        for number, batch in enumerate(BATCHES):
            if over_words:
                ids = word_ids(vocabulary, batch)
            else:
                ids = elmojax.batch_to_ids(batch, config.encoder.max_characters)
            encoded = elmojax.encode(params, ids, state)
            state = encoded.state
            layers[str(number)] = np.asarray(encoded.layers)
        np.savez(directory / name / "vectors.npz", **layers)


def report(name: str, differences: np.ndarray) -> bool:
    """Prints the largest difference of each layer; whether all are small enough."""
    good = bool((differences <= BOUND).all())
    values = " ".join(f"{value:.1e}" for value in differences)
    print(f"{name:30} {'ok' if good else 'DIFFERENT':10} {values}")
    return good


def models(directory: Path, skip: set) -> list:
    return sorted(
        path.parent.name
        for path in directory.glob("*/options.json")
        if path.parent.name not in skip
    )


def compare(directory: Path) -> bool:
    """Loads every model in AllenNLP and compares all layers of all batches."""
    import torch
    from allennlp.modules.elmo import Elmo, _ElmoBiLm, batch_to_ids

    good = True
    for name in models(directory, SKIP_ALLENNLP):
        files = [str(directory / name / f) for f in ("options.json", "weights.hdf5")]
        vectors = np.load(directory / name / "vectors.npz")
        bilm, mixed = _ElmoBiLm(*files), Elmo(*files, 1, dropout=0.0)
        worst = []
        for number, batch in enumerate(BATCHES):
            ids = batch_to_ids(batch)
            with torch.no_grad():
                theirs = torch.stack(bilm(ids)["activations"]).numpy()
                mix = mixed(ids)["elmo_representations"][0].numpy()
            ours = vectors[str(number)]  # [batch, layers, time, vector]
            differences = np.zeros(ours.shape[1] + 1)
            for row, sentence in enumerate(batch):
                words = slice(1, len(sentence) + 1)  # without the sentence marks
                got = theirs[:, row, words]
                wanted = ours[row, :, : len(sentence)]
                differences[:-1] = np.maximum(
                    differences[:-1], np.abs(got - wanted).max(axis=(1, 2))
                )
                average = wanted.mean(axis=0)  # its scalar weights start out equal
                found = np.abs(mix[row, : len(sentence)] - average).max()
                differences[-1] = max(differences[-1], found)
            worst.append(differences)
        good &= report(name, np.max(worst, axis=0))
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("make", "compare"))
    parser.add_argument("directory", type=Path)
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.directory)
        print(json.dumps({"models": models(asked.directory, set())}))
    elif not compare(asked.directory):
        raise SystemExit(1)
