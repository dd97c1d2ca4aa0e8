"""ELMo in JAX and Flax: pretrain bidirectional language models, embed, restore."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from elmojax.formats.hdf5 import load_hdf5, save_hdf5
    from elmojax.initialization import pretrain
    from elmojax.loading import hub_mix, load, load_language_model, score
    from elmojax.model.bilm import ElmoParams, from_tree, init
    from elmojax.model.lstm import LstmState
    from elmojax.model.mix import ScalarMix, mix_penalty, mix_weights
    from elmojax.model.ops import cast
    from elmojax.saving import push_to_hub, save_pretrained
    from elmojax.text.characters import batch_to_ids, unicode_ids
    from elmojax.training.checkpoint import restore
    from elmojax.training.record import model_config
    from elmojax.vectors.npy import read_vectors

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
    "hub_mix",
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
    "push_to_hub",
    "read_vectors",
    "restore",
    "save_hdf5",
    "save_pretrained",
    "score",
    "sentence_loss",
    "target_ids",
    "unicode_ids",
    "warm",
    "word_ids",
]

_LAZY = {
    "ElmoConfig": "elmojax.config",
    "ElmoParams": "elmojax.model.bilm",
    "Embedder": "elmojax.embedding.embedder",
    "Encoded": "elmojax.embedding.functions",
    "InputError": "elmojax.errors",
    "LanguageModelParams": "elmojax.embedding.likelihood",
    "LstmState": "elmojax.model.lstm",
    "ScalarMix": "elmojax.model.mix",
    "SentenceLoss": "elmojax.embedding.likelihood",
    "TrainConfig": "elmojax.config",
    "WordIndex": "elmojax.embedding.words",
    "batch_to_ids": "elmojax.text.characters",
    "cache_words": "elmojax.embedding.words",
    "cast": "elmojax.model.ops",
    "contextualize": "elmojax.embedding.functions",
    "embed": "elmojax.embedding.functions",
    "encode": "elmojax.embedding.functions",
    "encode_words": "elmojax.embedding.functions",
    "from_tree": "elmojax.model.bilm",
    "hub_default": "elmojax.embedding.hub",
    "hub_mix": "elmojax.loading",
    "hub_tokens": "elmojax.embedding.hub",
    "init": "elmojax.model.bilm",
    "load": "elmojax.loading",
    "load_hdf5": "elmojax.formats.hdf5",
    "load_language_model": "elmojax.loading",
    "mix_penalty": "elmojax.model.mix",
    "mix_weights": "elmojax.model.mix",
    "model_config": "elmojax.training.record",
    "pool": "elmojax.embedding.pooling",
    "pretrain": "elmojax.initialization",
    "push_to_hub": "elmojax.saving",
    "read_vectors": "elmojax.vectors.npy",
    "restore": "elmojax.training.checkpoint",
    "save_hdf5": "elmojax.formats.hdf5",
    "save_pretrained": "elmojax.saving",
    "score": "elmojax.loading",
    "sentence_loss": "elmojax.embedding.likelihood",
    "target_ids": "elmojax.embedding.likelihood",
    "unicode_ids": "elmojax.text.characters",
    "warm": "elmojax.embedding.functions",
    "word_ids": "elmojax.embedding.words",
}
"""Where each name is: it is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'elmojax' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
