"""Memory of the C library: kept for the steps of a CPU, and of nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from elmojax.training import memory


@pytest.mark.parametrize(
    ("told", "plugins", "devices", "kept"),
    [
        ("cpu", "jax", "/dev/null", True),
        ("cuda", "jax", "/dev/null", False),
        ("tpu,cpu", "jax", "/dev/null", False),
        ("", "jax", "/dev/null", False),
        ("", "jax", "/dev/no-such", True),
        ("", "no_such_package", "/dev/null", True),
    ],
)
def test_memory_is_kept_on_a_cpu_alone(monkeypatch, told, plugins, devices, kept):
    chosen = []
    library = SimpleNamespace(mallopt=lambda *pair: chosen.append(pair))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(memory, "PLUGINS", (plugins,))
    monkeypatch.setattr(memory, "DEVICES", (devices,))
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", told)
    try:
        memory.keep_freed_memory()
    finally:
        jax.config.update("jax_platforms", before)
    assert bool(chosen) == kept
