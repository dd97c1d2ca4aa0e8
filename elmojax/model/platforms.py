"""Forms of one computation for CPUs and for accelerators; the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from jax import lax

Platform: TypeAlias = Literal["cpu", "accelerator"] | None
"""Whose form is taken; None = that of the devices a program is compiled for."""


def by_platform(
    platform: Platform,
    *arguments: Any,
    cpu: Callable[..., Any],
    accelerator: Callable[..., Any],
) -> Any:
    """One of two functions, applied to the arguments."""
    if platform is None:
        return lax.platform_dependent(*arguments, cpu=cpu, default=accelerator)
    return (cpu if platform == "cpu" else accelerator)(*arguments)
