"""Blocks: the vectors of a text as they travel from the engine to a file."""

from __future__ import annotations

from typing import Any, NamedTuple


class Block(NamedTuple):
    """Vectors of some words of the text, in order."""

    sizes: tuple[int, ...]
    """Words of each sentence, or part of one, that it holds (0 for a blank line)."""
    vectors: Any
    """[words, layers + 1, vector], or [words, vector] for one mix or the top;
    NumPy, or JAX while they are on the device."""
    more: bool
    """Its last sentence goes on in the next block."""
