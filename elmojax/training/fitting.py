"""Whether a step has room on a chip, and how much of it would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from elmojax.config import TrainConfig
from elmojax.training.chips import Chip
from elmojax.training.estimate import Memory

ROOM = 0.9
"""Share of a chip's memory that a step may take: the rest goes to the runtime, to
batches sent ahead and to gaps between arrays."""


def fits(memory: Memory, chip: Chip) -> bool:
    """Whether a step has room on a chip."""
    return memory.total <= ROOM * chip.memory


def largest_rows(
    config: TrainConfig,
    data: int,
    first: Memory,
    room: float,
    again: Callable[[TrainConfig], Memory],
) -> int | None:
    """About as many rows as fit, where those of `config` do not; None = not even few.

    Memory grows in a line with the rows, nearly (a TPU's compiler saves where it has
    to); what the line says is compiled.

    Args:
      first: memory with the rows of `config`.
      room: bytes a device.
      again: the memory of another configuration.
    """
    parts = data * config.accumulate
    rows, used = config.rows, first.total
    none, fixed = 0, first.parameters + first.optimizer + first.gradients
    for _ in range(6):
        slope = (used - fixed) / (rows - none)
        fitting = none + 0.99 * (room - fixed) / slope
        fewer = int(min(fitting, 0.9 * rows) // parts) * parts
        if fewer < parts:
            return None
        if fewer >= 128 * parts:
            fewer -= fewer % (16 * parts)
        none, fixed = rows, used
        rows, used = fewer, again(replace(config, rows=fewer)).total
        if used <= room:
            return rows
    return None


def least_pieces(
    config: TrainConfig,
    data: int,
    rows: int,
    room: float,
    again: Callable[[TrainConfig], Memory],
) -> int | None:
    """The fewest pieces in which the rows of `config` fit, where `rows` at once do."""
    each, tries = config.rows // data, 0
    for pieces in range(config.accumulate + 1, each + 1):
        if each % pieces or each // pieces > 0.9 * rows / data / config.accumulate:
            continue
        if again(replace(config, accumulate=pieces)).total <= room:
            return pieces
        tries += 1
        if tries == 2:
            break
    return None
