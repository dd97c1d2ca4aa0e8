"""ELMo in JAX and Flax: pretrain bidirectional language models, embed, restore."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmojax.config import ElmoConfig, TrainConfig
from elmojax.embedding.functions import Encoded, embed, encode
from elmojax.embedding.warm import warm
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams, init
from elmojax.model.lstm import LstmState
from elmojax.model.mix import ScalarMix, mix_penalty, mix_weights
from elmojax.text.characters import batch_to_ids

if TYPE_CHECKING:
    from elmojax.loading import load
    from elmojax.training.checkpoint import restore

__version__ = "0.1.0"

__all__ = [
    "ElmoConfig",
    "ElmoParams",
    "Encoded",
    "InputError",
    "LstmState",
    "ScalarMix",
    "TrainConfig",
    "batch_to_ids",
    "embed",
    "encode",
    "init",
    "load",
    "mix_penalty",
    "mix_weights",
    "restore",
    "warm",
]

_LAZY = {"load": "elmojax.loading", "restore": "elmojax.training.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'elmojax' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
