"""Small things that several tests play with: corpora, models, parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elmojax.config import CharCnnConfig, ElmoConfig, LstmConfig
from elmojax.model.bilm import ElmoParams, from_tree, init_tree
from elmojax.text.corpus import Corpus
from elmojax.text.vocabulary import SPECIALS, Vocabulary

TINY = ElmoConfig(
    CharCnnConfig(
        filters=((1, 4), (2, 4), (3, 8)),
        embedding_dim=4,
        highway_layers=1,
        max_characters=12,
    ),
    LstmConfig(dim=8, projection=6, layers=2, cell_clip=0.8, projection_clip=0.6),
)
"""Its clips are so low that they act on the parameters of `tiny_params`."""


def drawn(shapes: Any, seed: int = 0, scale: float = 0.5) -> Any:
    """A tree of arrays of these shapes from NumPy: the same with any version of JAX."""
    random = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(scale * random.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(draw, shapes)


def tiny_params(
    config: ElmoConfig = TINY, seed: int = 0, scale: float = 0.5
) -> ElmoParams:
    """Parameters that leave nothing at zero but the initial state."""
    shapes = jax.eval_shape(lambda: init_tree(config, jax.random.key(0)))
    return from_tree(config, drawn(shapes, seed, scale))


def corpus_of(sentences: Sequence[Sequence[str]], known: int | None = None) -> Corpus:
    """A corpus in memory; `known` most frequent words are in its vocabulary."""
    running = [word for sentence in sentences for word in sentence]
    count = Counter(running)
    ranked = sorted(set(running) - set(SPECIALS), key=lambda w: (-count[w], w))
    types = [*SPECIALS, *ranked]
    place = {word: i for i, word in enumerate(types)}
    lengths = [len(sentence) for sentence in sentences]
    return Corpus(
        directory=Path("memory"),
        info={"bytes": sum(len(" ".join(s).encode()) + 1 for s in sentences)},
        fingerprint="memory",
        vocabulary=Vocabulary((*SPECIALS, *ranked[:known])),
        types=types,
        counts=np.array([count[word] for word in types], np.int64),
        words=np.array([place[word] for word in running], np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def zipf_sentences() -> list[list[str]]:
    """900 running words, each as often as in a natural text: a few very often."""
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in random.zipf(1.5, 900) % 40]
    return [list(sentence) for sentence in np.array_split(words, 120)]


CORPUS = corpus_of(zipf_sentences(), known=27)
"""Of `zipf_sentences`; some of their words are <UNK>."""
