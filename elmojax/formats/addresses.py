"""Models named by an address: where their two files are, and the published ones.

Nothing is downloaded unless it is asked for; how it is done is in `download`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from elmojax.errors import InputError
from elmojax.formats.download import (
    Progress,
    cache_directory,
    cached_name,
    expected,
    fetch_to,
    writing,
)
from elmojax.formats.remote import SCHEMES, Missing, shown

OPTIONS, WEIGHTS = "options.json", "weights.hdf5"
REGISTERED = "allennlp:"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_STARTS = (0, 512, 1024, 2048)  # where it may stand, as a rule at 0

Published: TypeAlias = tuple[str, str, str | None]
ALLENNLP = "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo/"


def _published(folder: str, options: str, weights: str) -> Published:
    return f"{ALLENNLP}{folder}/{options}", f"{ALLENNLP}{folder}/{weights}", None


def _named(folder: str, name: str) -> Published:
    return _published(folder, f"elmo_{name}_options.json", f"elmo_{name}_weights.hdf5")


def _original(name: str) -> Published:
    return _named(name, name)


REGISTRY: dict[str, Published] = {
    "small": _original("2x1024_128_2048cnn_1xhighway"),
    "medium": _original("2x2048_256_2048cnn_1xhighway"),
    "original": _original("2x4096_512_2048cnn_2xhighway"),
    "original-5.5B": _original("2x4096_512_2048cnn_2xhighway_5.5B"),
    "pt": _named("contributed/pt", "pt"),
    "pt-wikipedia": _published(
        "contributed/pt/wikipedia", "options.json", "elmo_pt_weights.hdf5"
    ),
    "pt-brwac": _published(
        "contributed/pt/brwac", "options.json", "elmo_pt_weights_dgx1.hdf5"
    ),
    "pubmed": _published(
        "contributed/pubmed",
        "elmo_2x4096_512_2048cnn_2xhighway_options.json",
        "elmo_2x4096_512_2048cnn_2xhighway_weights_PubMed_only.hdf5",
    ),
}
"""Name -> (options, weights, SHA-256 of the weights; None: none was published).

The models of https://allennlp.org/elmo. `allennlp:NAME` is their address for short.
"""


def is_url(model: object) -> bool:
    """Whether a model is named by an address, as `fetch_model` takes them."""
    return isinstance(model, str) and (
        model.startswith(REGISTERED)
        or ("://" in model and model.partition("://")[0].lower() in SCHEMES)
    )


def fetch_model(
    url: str,
    sha256: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads a model in the files of AllenNLP, unless it is in the cache.

    Args:
      url: one of
        - a directory that holds options.json and weights.hdf5;
        - either of two files side by side: `..._options.json` and `..._weights.hdf5`,
          as AllenNLP names them, or options.json and weights.hdf5;
        - `allennlp:NAME`, NAME one of `REGISTRY`.
      sha256: of the weights; also as `#sha256=...` at the end of the address.
      cache: as for `fetch`.
      progress: as for `fetch`; for the options first, then for the weights.

    Returns:
      A directory with options.json and weights.hdf5, for `load_hdf5`.

    Raises:
      InputError: as `fetch` does; and if the registry has no such name, the other file
        is not found, or what came is not JSON or not HDF5 (then it is not kept).
    """
    url, sha256 = expected(url, sha256)
    options, weights, published = _files(url)
    folder = cache_directory(cache) / cached_name(weights)
    for i, address in enumerate(options):
        try:
            path = fetch_to(folder / OPTIONS, address, None, progress)
            break
        except Missing as error:
            if i == len(options) - 1:
                raise _no_model(url, error) from error
    _require(path, address, "a JSON object", lambda data: data.lstrip()[:1] == b"{")
    try:
        path = fetch_to(folder / WEIGHTS, weights, sha256 or published, progress)
    except Missing as error:
        raise _no_model(url, error) from error
    _require(path, weights, "HDF5", _is_hdf5)
    return folder


def _files(url: str) -> tuple[list[str], str, str | None]:
    """Where the options may be, where the weights are, and the SHA-256 of these."""
    if url.startswith(REGISTERED):
        name = url.removeprefix(REGISTERED)
        if name not in REGISTRY:
            raise InputError(
                f"{REGISTERED} has no model {name!r}; it has {', '.join(REGISTRY)}."
            )
        options, weights, sha256 = REGISTRY[name]
        return [options], weights, sha256
    for options, weights, sha256 in REGISTRY.values():
        for file in (options, weights):
            base = url.removesuffix(file.removeprefix(ALLENNLP))
            if base != url and base.endswith("models/elmo/"):  # there, or a copy of it
                there = weights.replace(ALLENNLP, base)
                return [options.replace(ALLENNLP, base)], there, sha256
    path, mark, query = url.partition("?")
    query = mark + query
    folder, _, name = path.rpartition("/")
    if match := re.fullmatch(r"(.*)options\.json", name):
        return [url], f"{folder}/{match[1]}{WEIGHTS}{query}", None
    if match := re.fullmatch(r"(.*)weights.*\.(hdf5|h5)", name):
        names = dict.fromkeys((f"{match[1]}{OPTIONS}", OPTIONS))
        return [f"{folder}/{name}{query}" for name in names], url, None
    folder = path.rstrip("/")
    return [f"{folder}/{OPTIONS}{query}"], f"{folder}/{WEIGHTS}{query}", None


def _no_model(url: str, error: Missing) -> InputError:
    return InputError(
        f"{error} A model at {shown(url)} is two files side by side, options.json and "
        "weights.hdf5 or ..._options.json and ..._weights.hdf5; where they have other "
        "names, download both and give a directory that holds them."
    )


def _require(path: Path, url: str, what: str, fits: Callable[[bytes], bool]) -> None:
    """`InputError` for a web page or the like; then the cache does not keep it."""
    with writing(path):
        with open(path, "rb") as file:
            start = file.read(HDF5_STARTS[-1] + len(HDF5_SIGNATURE))
        if fits(start):
            return
        path.unlink()
    raise InputError(
        f"{shown(url)} gives something that is not {what}; it begins with "
        f"{start[:20]!r} and is not kept. Is that the address of the file itself?"
    )


def _is_hdf5(start: bytes) -> bool:
    return any(start[i:].startswith(HDF5_SIGNATURE) for i in HDF5_STARTS)
