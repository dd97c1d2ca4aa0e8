"""Make tests/data/manylangs: small models of ELMoForManyLangs and their vectors.

The modules of elmoformanylangs make a model of random weights, and torch saves it in
both of its forms (`legacy`, as the published models are, and `zip`). What its
`Embedder` says of a few sentences is in `expected.npz`, [layers + 1, words, vector]: of
each alone, from a state of zeros (`s{i}`), and one after the other with the state
carried (`c{i}`). With Python 3.11:

    python3.11 -m venv peer
    peer/bin/pip install torch==2.14.1 elmoformanylangs==0.0.4.post2 overrides==3.1.0
    peer/bin/python experiments/peers/make_manylangs.py OUT

With `--full` the model has the size of the published ones (`legacy` only).
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from elmoformanylangs import Embedder
from elmoformanylangs.frontend import Model
from elmoformanylangs.modules.embedding_layer import EmbeddingLayer

SENTENCES = [
    ["The", "river", "bank", "was", "steep", "."],
    ["今", "天", "天氣", "真", "好", "阿"],
    ["river"],
    ["Ünknown", "ﬁlm", "🎬", "bank"],  # characters that the dictionary lacks
    ["a\u3000b", "\u3000", "", "<bos>", "<oov>", "<pad>", "<eow>"],
    ["x" * 9, "x" * 10, "x" * 11, "bankbankbank", "the"],  # 12 columns have room for 10
    ["The", "river", "bank", "was", "steep", "."] * 5,
]
WORDS = ["The", "river", "bank", "天氣", "今", ".", "x" * 10, "\u3000", "bankbankba"]
LETTERS = "Teribankwsp.今天氣真好x\u3000"
SMALL = {
    "encoder": {
        "name": "elmo",
        "projection_dim": 8,
        "cell_clip": 0.6,
        "proj_clip": 0.4,
        "dim": 12,
        "n_layers": 2,
    },
    "token_embedder": {
        "name": "cnn",
        "activation": "relu",
        "filters": [[1, 4], [2, 4], [3, 6]],
        "n_highway": 2,
        "word_dim": 6,
        "char_dim": 5,
        "max_characters_per_token": 12,
    },
    "classifier": {"name": "sampled_softmax", "n_samples": 8192},
    "dropout": 0.1,
}
FULL = copy.deepcopy(SMALL)
FULL["encoder"].update(projection_dim=512, cell_clip=3, proj_clip=3, dim=4096)
FULL["token_embedder"].update(
    filters=[[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]],
    word_dim=100,
    char_dim=50,
    max_characters_per_token=50,
)
NAME = "cnn_50_100_512_4096_sample.json"


def lexicon(entries: list[str]) -> dict[str, int]:
    return {entry: row for row, entry in enumerate(entries)}


def make(out: Path, shape: dict, forms: dict[str, bool]) -> None:
    torch.manual_seed(20)
    words = lexicon(["<oov>", "<bos>", "<eos>", "<pad>", *WORDS])
    # The program that trains puts the marks of words last.
    marks = ["<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>"]
    letters = lexicon([*LETTERS, *marks])
    sizes = shape["token_embedder"]
    model = Model(
        shape,
        EmbeddingLayer(sizes["word_dim"], words, fix_emb=False),
        EmbeddingLayer(sizes["char_dim"], letters, fix_emb=False),
    )
    for name, weight in model.named_parameters():
        if "embedding" not in name:  # biases too, and larger, so that clips act
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    for folder, new in forms.items():
        directory = out / folder
        directory.mkdir(parents=True, exist_ok=True)
        for part in ("token_embedder", "encoder"):
            torch.save(
                getattr(model, part).state_dict(),
                directory / f"{part}.pkl",
                _use_new_zipfile_serialization=new,
            )
        config = {"config_path": f"/users4/conll18st/elmo/configs/{NAME}"}
        (directory / "config.json").write_text(json.dumps(config))
        for entries, file in ((letters, "char.dic"), (words, "word.dic")):
            lines = (f"{entry}\t{row}\n" for entry, row in entries.items())
            (directory / file).write_text("".join(lines), encoding="utf-8")
    (out / "configs").mkdir(exist_ok=True)
    (out / "configs" / NAME).write_text(json.dumps(shape, indent=1) + "\n")
    (out / "sentences.json").write_text(json.dumps(SENTENCES, indent=1) + "\n")


def expected(directory: Path, shape: dict) -> dict[str, np.ndarray]:
    beside = directory / NAME  # their code does not look into configs/
    beside.write_text(json.dumps(shape))
    embedder = Embedder(str(directory), batch_size=1)
    beside.unlink()
    arrays = {}
    for number, sentence in enumerate(SENTENCES):
        (arrays[f"c{number}"],) = embedder.sents2elmo([sentence], -2)
    for number, sentence in enumerate(SENTENCES):
        embedder.model.encoder._states = None
        (arrays[f"s{number}"],) = embedder.sents2elmo([sentence], -2)
    return arrays


def main() -> None:
    full, out = "--full" in sys.argv, Path(sys.argv[-1])
    shape = FULL if full else SMALL
    make(out, shape, {"legacy": False} if full else {"legacy": False, "zip": True})
    np.savez_compressed(out / "expected.npz", **expected(out / "legacy", shape))


if __name__ == "__main__":
    main()
