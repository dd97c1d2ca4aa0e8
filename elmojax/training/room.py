"""Out of memory, as a sentence that says what to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from elmojax.config import TrainConfig
from elmojax.errors import InputError

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc")
"""What JAX's messages hold where an array or a program found no room."""


def found_no_room(error: BaseException) -> bool:
    """Whether memory ran out: of a device, or of the host."""
    if isinstance(error, MemoryError):
        return True
    messages = str(error)
    known = isinstance(error, jax.errors.JaxRuntimeError)
    return known and any(sign in messages for sign in SIGNS)


@contextmanager
def room_for(config: TrainConfig, where: Callable[[], str]) -> Iterator[None]:
    """Turns running out of memory inside into an `InputError`.

    Args:
      where: says what was being done, for example "in step 3".
    """
    try:
        yield
    except Exception as error:
        if not found_no_room(error):
            raise
        raise InputError(_sentence(config, where())) from error


def _sentence(config: TrainConfig, where: str) -> str:
    model = config.mesh.model
    data = config.mesh.data or max(1, jax.device_count() // model)
    command = ["elmojax", "estimate", "--workdir", str(config.workdir)]
    command += ["--mesh.data", str(data)]
    command += ["--mesh.model", str(model)] if model > 1 else []
    pieces = config.accumulate
    command += ["--accumulate", str(pieces)] if pieces > 1 else []
    each = config.rows // data
    share = f" ({each:,} a device)" if data > 1 else ""
    more = next((k for k in range(pieces + 1, each + 1) if each % k == 0), None)
    remedy = f"give --accumulate {more} (the same step in less memory), or " * bool(
        more
    )
    return (
        f"Memory ran out {where} with --rows {config.rows:,}{share}; checkpoints are "
        f"as they were. `{shlex.join(command)}` shows what the run needs; {remedy}"
        "take fewer --rows in another --workdir."
    )
