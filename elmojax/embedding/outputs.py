"""Files of vectors: bilm-tf's HDF5 layout, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from elmojax.errors import InputError


def write_hdf5(
    out: Path, sentences: Iterable[np.ndarray], overwrite: bool = False
) -> int:
    """One data set a sentence: key = its number from 0, float32 [layers, words, dim].

    The file appears under its name only when it is whole. Returns the number of
    sentences.

    Raises:
      InputError: if `out` exists and `overwrite` is not given, or cannot be written.
    """
    if out.exists() and not (overwrite and out.is_file()):
        raise InputError(
            f"{out} is there already; give another --out, or --overwrite to replace "
            "it (a file only)."
        )
    if not out.parent.is_dir():
        raise InputError(
            f"{out} cannot be written: there is no directory {out.parent}. Make it, or "
            "choose another --out."
        )
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    count = 0
    try:
        with h5py.File(partial, "w") as file:
            for count, layers in enumerate(sentences, 1):
                file.create_dataset(str(count - 1), data=layers)
        if not count:
            raise InputError(
                f"The text has no lines at all, so {out} is not written. Was it "
                "downloaded or written whole?"
            )
        os.replace(partial, out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error}. Choose another --out, or free space."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return count
