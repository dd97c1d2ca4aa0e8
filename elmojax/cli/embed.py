"""`elmojax embed`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tqdm import tqdm
from tyro.conf import arg

from elmojax.arguments import Range
from elmojax.cli import common
from elmojax.config import MOST_DEPTH, BatchTokens, Count
from elmojax.errors import InputError
from elmojax.text.files import Oddities, read_blocks

if TYPE_CHECKING:
    import numpy as np

    from elmojax.embedding.engine import Select
    from elmojax.vectors.jobs import Job

Gammas = Annotated[
    tuple[Annotated[float, Range(-1e30, 1e30)], ...] | None,
    arg(metavar="G [G ...]", help="Weight of each layer, for --layers mix."),
]


@dataclass(frozen=True, kw_only=True)
class Arguments(common.TextArguments, common.ModelArguments):
    """Writes vectors of every line of a text.

    With --out x.hdf5 or x.h5 the file has one data set a line. Its shape
    is (layers + 1, words, 2 * projection), its key the number of the line from 0 (or
    the id of a protein), and its attribute "sentence" the text. Blank lines have no
    words.

    With --out x.parquet it is a directory of part files, of any number of texts (other
    outputs take one).

    With --out x it is a directory with vectors.npy, offsets.npy, sentences.txt and
    info.json.

    All devices of this machine take part. A run that was stopped goes on where it was
    when the same command is run again; on the same devices the result is the same to
    the byte.
    """

    out: Path
    """File or directory to write. It is called OUT.partial until it is complete."""
    layers: Literal["all", "top", "mix", "sum"] = "all"
    """Layers to write: all of them, the top one, their sum weighted by the gammas (by
    default those of the model, where it is a module of TF-Hub), or their plain sum, as
    SeqVec has it."""
    gammas: Gammas = None
    output_layer: Annotated[
        Annotated[int, Range(-2, MOST_DEPTH)] | None, arg(metavar="N")
    ] = None
    """Layers to write, as ELMoForManyLangs numbers them, instead of --layers: -2 all of
    them, -1 their mean, 0 the token layer, 1 and more that layer of the LSTM."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type of the vectors that are written; sums are float32 always."""
    pool: Annotated[
        Literal["mean", "max", "first-last"] | None,
        arg(metavar="{mean,max,first-last}"),
    ] = None
    """Write one vector for each line instead of one for each word. first-last joins the
    forward half of the last word and the backward half of the first."""
    only: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write only the vectors of the words that this file lists, one a line. The output
    leaves out lines without any, and names line and position of each vector."""
    compression: Annotated[str | None, arg(metavar="NAME[:LEVEL]")] = None
    """Compress the output: HDF5 by gzip (levels 0 to 9) or lzf, which takes twice the
    disk space while it runs, Parquet by zstd, gzip or snappy."""
    batch_tokens: BatchTokens = 32_768
    """Largest number of words and sentences of a batch, which bounds memory."""
    overwrite: common.Overwrite = False
    engine: Literal["local", "ray"] = "local"
    """Run on this machine, or on workers of Ray, each of which takes one text file at a
    time."""
    workers: Count | None = None
    """Workers of --engine ray; by default one for each GPU or TPU chip, or one for each
    machine."""
    ray_address: Annotated[str | None, arg(metavar="HOST:PORT")] = None
    """Address of a running Ray cluster, or auto; by default one is started on this
    machine."""
    json: common.Json = False

    def check(self) -> None:
        """`InputError` for flags that do not go together."""
        if self.engine == "ray" and self.out.suffix.lower() != ".parquet":
            raise InputError(
                f"--engine ray writes Parquet, not {self.out}; name an --out that ends "
                "in .parquet."
            )
        if self.engine == "local" and (self.ray_address or self.workers):
            raise InputError("--ray-address and --workers belong to --engine ray.")
        if self.output_layer is not None and (self.gammas or self.layers != "all"):
            raise InputError("Give --output-layer, or --layers and --gammas, not both.")
        if self.only is not None and self.pool is not None:
            raise InputError(
                "--only writes a vector for each use of a word, and --pool one a line; "
                "leave one of them out."
            )
        if self.only is not None and self.engine == "ray":
            raise InputError("--only is for --engine local; leave --engine ray out.")

    def selection(
        self, top: int, own: np.ndarray | None = None
    ) -> tuple[Select, tuple[float, ...] | None]:
        """Layers and gammas, for a model whose last layer is `top` and whose own gammas
        are `own`; `InputError` for a layer that it does not have."""
        layer = self.output_layer
        if layer is None or layer == -2:
            return mix_of(self.layers, self.gammas, top, own)
        if layer > top:
            raise InputError(
                f"--output-layer is {layer}, and the last layer of this model is {top}."
            )
        if layer == -1:
            return "mix", (1 / (top + 1),) * (top + 1)
        return "mix", tuple(float(layer == each) for each in range(top + 1))


def embed(argv: list[str]) -> None:
    """vectors of every line of texts, as HDF5, NumPy arrays or Parquet"""
    asked = common.parse(Arguments, "embed", argv)
    asked.check()
    paths = asked.paths("Give the text to embed: --text FILE [FILE ...].")
    only = None if asked.only is None else _targets(asked.only)
    by_ray = asked.engine == "ray"
    if by_ray:  # accelerators, if there are any, are for the workers
        import jax

        jax.config.update("jax_platforms", "cpu")

    from elmojax.model.ops import local_mesh, replicated
    from elmojax.vectors.jobs import Job

    started = time.perf_counter()
    mesh = None if by_ray else local_mesh()
    model = asked.open(head=False, sharding=replicated(mesh))
    layers, gammas = asked.selection(model.params.config.lstm.layers, model.mix)
    job = Job(
        model.params,
        model.vocabulary,
        asked.batch_tokens,
        layers,
        gammas,
        asked.dtype,
        asked.pool,
        asked.compression,
        asked.format,
        only,
        mesh,
    )
    remarks: list[str] = []

    def told(odd: Oddities) -> None:
        remarks.extend(
            common.remark(odd, model.params.config.max_characters, asked.format)
        )

    def counted(found: Counter[str]) -> None:
        missing = sorted((only or frozenset()) - found.keys())
        if missing:
            sentence = (
                f"Words of {asked.only} that the text lacks: {len(missing):,} "
                f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''})."
            )
            common.say(sentence)
            remarks.append(sentence)

    how = {"errors": asked.errors, "overwrite": asked.overwrite, "remark": told}
    with tqdm(unit="token", unit_scale=True, desc="embed", disable=None) as bar:
        if by_ray:
            lines, words = _by_ray(asked, job, paths, bar, **how)
        else:
            lines, words = _here(asked, job, paths, bar, told=counted, **how)
    seconds = time.perf_counter() - started
    report = {"out": asked.out, "lines": lines, "words": words, "seconds": seconds}
    text = f"{asked.out}: {lines:,} lines, {words:,} words, {seconds:.1f} s."
    common.show(asked.json, {**report, "remarks": remarks}, text)


def _targets(path: Path) -> frozenset[str]:
    """The words that a file lists, one a line."""
    blocks = read_blocks(path)
    lines = (line.strip(" \t") for block in blocks for line in block.lines)
    if not (words := frozenset(line for line in lines if line)):
        raise InputError(f"{path} lists no words; write one a line.")
    return words


def mix_of(
    layers: Literal["all", "top", "mix", "sum"],
    gammas: tuple[float, ...] | None,
    top: int,
    own: np.ndarray | None,
) -> tuple[Select, tuple[float, ...] | None]:
    """What --layers and --gammas mean, for a model whose last layer is `top`: a plain
    sum is a mix whose gammas are all 1, and a mix without gammas takes the model's
    own."""
    if layers == "mix" and gammas is None and own is not None:
        return layers, tuple(map(float, own))
    if layers != "sum":
        return layers, gammas
    if gammas is not None:
        raise InputError("--layers sum has no --gammas; leave them out, or take mix.")
    return "mix", (1.0,) * (top + 1)


def _here(
    asked: Arguments, job: Job, paths: list[Path], bar: tqdm, **how: Any
) -> tuple[int, int]:
    from elmojax.vectors.jobs import embed_files

    shapes = len(job.embedder().shapes)

    def report(done: int, total: int) -> None:
        if bar.total is None:  # speed and time left are those of this run
            common.say(
                f"batches of {asked.batch_tokens:,} words and sentences, in at most "
                f"{shapes} compiled shapes."
            )
            bar.reset(total)
            bar.initial = bar.n = bar.last_print_n = done
        bar.update(done - bar.n)

    return embed_files(job, paths, asked.out, report=report, **how)


def _by_ray(
    asked: Arguments, job: Job, paths: list[Path], bar: tqdm, **how: Any
) -> tuple[int, int]:
    from elmojax.cluster import embed_files
    from elmojax.vectors.output import open_output

    job.embedder()  # refuses flags that do not fit the model
    how |= {"workers": asked.workers, "address": asked.ray_address}
    with open_output(asked.out, paths, job.form(), overwrite=asked.overwrite) as output:
        totals = embed_files(job, paths, output, report=bar.update, **how)
        output.finish()
    return totals
