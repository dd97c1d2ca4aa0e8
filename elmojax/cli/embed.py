"""`elmojax embed`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from elmojax.cli.common import (
    BadBytes,
    Files,
    Json,
    Model,
    Overwrite,
    Step,
    arg,
    keep_compiled_programs,
    parse,
    print_json,
    say,
)
from elmojax.errors import InputError
from elmojax.text.files import expand

Gammas = Annotated[
    tuple[float, ...] | None,
    arg(metavar="G [G ...]", help="Weights of the layers, for --layers mix."),
]
Pool = Annotated[
    Literal["mean", "max", "first-last"] | None,
    arg(
        metavar="{mean,max,first-last}",
        help="One vector a line instead of one a word; first-last is the forward half "
        "of the last word beside the backward half of the first; none = words.",
    ),
]
Compression = Annotated[
    str | None,
    arg(
        metavar="NAME[:LEVEL]",
        help="Of HDF5: gzip (levels 0 to 9) or lzf; needs the disk space twice while "
        "it runs. Of Parquet: zstd, gzip, snappy. None = no compression.",
    ),
]
Address = Annotated[
    str | None,
    arg(metavar="ADDRESS", help="Of a running Ray cluster; none = start one here."),
]


@dataclass(frozen=True)
class Arguments:
    """Writes vectors of every line of a text.

    --out x.hdf5 or x.h5: one data set a line, key = line number from 0, (layers + 1,
    words, 2 * projection), text as attribute "sentence"; blank lines have no words.

    --out x.parquet: a directory of part files, of any number of texts.

    --out x: a directory with vectors.npy, offsets.npy, sentences.txt and info.json.

    A run that was stopped goes on where it was when the same command is run again;
    the result is the same to the byte.
    """

    model: Model
    out: Path
    """What to make; it has this name once it is whole, and before OUT.partial."""
    text: Files = ()
    """One tokenised sentence a line; several files only with .parquet."""
    step: Step = None
    layers: Literal["all", "top", "mix"] = "all"
    """Which layers: all, the top one, or their sum weighted by the gammas."""
    gammas: Gammas = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the vectors; sums are float32 always."""
    pool: Pool = None
    compression: Compression = None
    batch_tokens: int = 8192
    """Words and sentences of a batch: bounds memory."""
    errors: BadBytes = "strict"
    overwrite: Overwrite = False
    engine: Literal["local", "ray"] = "local"
    """This machine, or workers of Ray, one text file each at a time."""
    workers: int = 2
    """Workers of --engine ray."""
    ray_address: Address = None
    json: Json = False


def embed(argv: list[str]) -> None:
    """vectors of every line of texts, as HDF5, NumPy arrays or Parquet"""
    asked = parse(Arguments, "embed", argv)
    names = sum(asked.text, ())
    if not names:
        raise InputError("Give the text to embed: --text FILE [FILE ...].")
    if asked.engine == "local" and asked.ray_address is not None:
        raise InputError("--ray-address belongs to --engine ray.")
    paths = expand(names)
    keep_compiled_programs()

    from elmojax.embedding.files import Job, embed_files
    from elmojax.loading import open_model

    started = time.perf_counter()
    model = open_model(asked.model, asked.step)
    job = Job(
        model.params,
        model.vocabulary,
        asked.batch_tokens,
        asked.layers,
        asked.gammas,
        asked.dtype,
        asked.pool,
        asked.compression,
    )
    shapes = len(job.embedder().shapes)
    with tqdm(unit="token", unit_scale=True, desc="embed", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            if bar.total is None:  # speed and time left are those of this run
                say(
                    f"batches of {asked.batch_tokens:,} words and sentences, in at "
                    f"most {shapes} compiled shapes."
                )
                bar.reset(total)
                bar.initial = bar.n = bar.last_print_n = done
            bar.update(done - bar.n)

        more = {"errors": asked.errors, "overwrite": asked.overwrite}
        lines, words = embed_files(job, paths, asked.out, report=progress, **more)
    seconds = time.perf_counter() - started
    if asked.json:
        report = {"out": asked.out, "lines": lines, "words": words, "seconds": seconds}
        print_json(report)
    else:
        print(f"{asked.out}: {lines:,} lines, {words:,} words, {seconds:.1f} s.")
