"""ELMo in JAX and Flax: pretrain bidirectional language models, embed, restore."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmojax.config import ElmoConfig, TrainConfig
from elmojax.embedding.embedder import Embedder
from elmojax.embedding.functions import (
    Encoded,
    contextualize,
    embed,
    encode,
    encode_words,
    warm,
)
from elmojax.embedding.hub import hub_default, hub_tokens
from elmojax.embedding.likelihood import (
    LanguageModelParams,
    SentenceLoss,
    sentence_loss,
    target_ids,
)
from elmojax.embedding.pooling import pool
from elmojax.embedding.words import WordIndex, cache_words, word_ids
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams, from_tree, init
from elmojax.model.mix import ScalarMix, mix_penalty, mix_weights
from elmojax.model.ops import cast
from elmojax.model.state import LstmState
from elmojax.text.characters import batch_to_ids

if TYPE_CHECKING:
    from elmojax.formats.hdf5 import load_hdf5, save_hdf5
    from elmojax.initialization import pretrain
    from elmojax.loading import load, load_language_model, score
    from elmojax.training.checkpoint import restore
    from elmojax.training.record import model_config
    from elmojax.vectors.output import read_vectors

__version__ = "0.1.0"

__all__ = [
    "ElmoConfig",
    "ElmoParams",
    "Embedder",
    "Encoded",
    "InputError",
    "LanguageModelParams",
    "LstmState",
    "ScalarMix",
    "SentenceLoss",
    "TrainConfig",
    "WordIndex",
    "batch_to_ids",
    "cache_words",
    "cast",
    "contextualize",
    "embed",
    "encode",
    "encode_words",
    "from_tree",
    "hub_default",
    "hub_tokens",
    "init",
    "load",
    "load_hdf5",
    "load_language_model",
    "mix_penalty",
    "mix_weights",
    "model_config",
    "pool",
    "pretrain",
    "read_vectors",
    "restore",
    "save_hdf5",
    "score",
    "sentence_loss",
    "target_ids",
    "warm",
    "word_ids",
]

_LAZY = {
    "load": "elmojax.loading",
    "load_hdf5": "elmojax.formats.hdf5",
    "load_language_model": "elmojax.loading",
    "model_config": "elmojax.training.record",
    "pretrain": "elmojax.initialization",
    "read_vectors": "elmojax.vectors.output",
    "restore": "elmojax.training.checkpoint",
    "save_hdf5": "elmojax.formats.hdf5",
    "score": "elmojax.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'elmojax' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
