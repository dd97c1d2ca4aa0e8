"""ELMo in JAX and Flax: pretrain bidirectional language models, embed, restore."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmojax.config import ElmoConfig, TrainConfig
from elmojax.embedding.embedder import Embedder
from elmojax.embedding.functions import Encoded, embed, encode
from elmojax.embedding.pooling import pool
from elmojax.embedding.warm import warm
from elmojax.embedding.words import cache_words, word_ids
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams, init
from elmojax.model.lstm import LstmState
from elmojax.model.mix import ScalarMix, mix_penalty, mix_weights
from elmojax.text.characters import batch_to_ids

if TYPE_CHECKING:
    from elmojax.formats.hdf5 import load_hdf5, save_hdf5
    from elmojax.loading import load
    from elmojax.training.checkpoint import restore

__version__ = "0.1.0"

__all__ = [
    "ElmoConfig",
    "ElmoParams",
    "Embedder",
    "Encoded",
    "InputError",
    "LstmState",
    "ScalarMix",
    "TrainConfig",
    "batch_to_ids",
    "cache_words",
    "embed",
    "encode",
    "init",
    "load",
    "load_hdf5",
    "mix_penalty",
    "mix_weights",
    "pool",
    "restore",
    "save_hdf5",
    "warm",
    "word_ids",
]

_LAZY = {
    "load": "elmojax.loading",
    "load_hdf5": "elmojax.formats.hdf5",
    "restore": "elmojax.training.checkpoint",
    "save_hdf5": "elmojax.formats.hdf5",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'elmojax' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
