"""A step on some rows of the table of words: taken out, trained, and put back.

What is taken are the rows of the head that a batch names, in the parameters and in
whatever of the optimiser has the same shape. A step then costs as much as the rows it
touches, not as the vocabulary. Adagrad gives the very numbers of a dense step, as rows
with a gradient of zero do not move; AdamW's moments and decay of a row stand still
while no batch names it (as in torch.optim.SparseAdam).
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax import Array

from elmojax.training.sharding import path_name

TABLES = re.compile(r"(^|\.)head\.(kernel|bias)$")
"""Paths of the arrays that have one row a word."""


def take(tree: Any, rows: Array) -> Any:
    """The tree with these rows of its tables of words; zeros for rows past the end."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        if not TABLES.search(path_name(path)):
            return leaf
        return leaf.at[rows].get(
            mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
        )

    return jax.tree_util.tree_map_with_path(one, tree)


def put(tree: Any, rows: Array, new: Any) -> Any:
    """`new` with the tables of `tree`, in which `rows` are replaced."""

    def one(path: tuple[Any, ...], leaf: Array, part: Array) -> Array:
        if not TABLES.search(path_name(path)):
            return part
        return leaf.at[rows].set(
            part, mode="drop", indices_are_sorted=True, unique_indices=True
        )

    return jax.tree_util.tree_map_with_path(one, tree, new)
