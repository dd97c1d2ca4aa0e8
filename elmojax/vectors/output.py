"""Files of vectors: HDF5, .npy arrays or Parquet; whole, resumable or not there.

An output is made in `OUT.partial` and has its name OUT once it is whole. The format
is by the ending of the name: `.hdf5` or `.h5`, `.parquet`, and otherwise a directory
of .npy arrays; see the modules `hdf5`, `parquet` and `npy` for what is in them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from elmojax import __version__
from elmojax.disk import check_parent, local, read_object
from elmojax.embedding.allennlp import check_names
from elmojax.embedding.pooling import Block
from elmojax.errors import InputError
from elmojax.text.files import Text
from elmojax.vectors import hdf5
from elmojax.vectors.npy import INFO, RaggedWriter
from elmojax.vectors.unfinished import Unfinished, has_progress, writing_output
from elmojax.vectors.writer import Form, Writer

Kind = Literal["hdf5", "npy", "parquet"]


def kind_of(out: Path) -> Kind:
    """The format that the ending of a name stands for."""
    kinds: Mapping[str, Kind]
    kinds = {".hdf5": "hdf5", ".h5": "hdf5", ".parquet": "parquet"}
    return kinds.get(out.suffix.lower(), "npy")


def open_output(
    out: Path,
    texts: Sequence[Text | Path],
    form: Form,
    *,
    overwrite: bool = False,
    every: float = 10.0,
) -> Output:
    """Starts an output, or takes up what a run that was cut short left of it.

    Args:
      out: file or directory to make.
      texts: what is embedded; several only as Parquet. Paths, for Parquet only, if
        other processes read and write the texts.
      form: the vectors; `settings` must name all that decides their values.
      overwrite: replace `out` if it is there, once the new one is whole; start again
        if what is left is of another request.
      every: seconds between two commits; a kill loses what came after the last.

    Raises:
      InputError: if `out` is there and `overwrite` is not given, what is left is of
        another request, another process is writing it, the format has no such dtype
        or compression, or there is no room.
    """
    kind = kind_of(out)
    settings = {"elmojax": __version__, **form.settings}
    form = dataclasses.replace(form, settings=settings)
    _check_form(kind, form)
    if kind != "parquet" and len(texts) != 1:
        raise InputError(
            f"{out} holds one text and {len(texts)} are given; only Parquet holds "
            "several: name an --out that ends in .parquet."
        )
    check_replaceable(out, overwrite)
    request = {"format": kind, **form.request(), "texts": _names(texts)}
    if kind != "parquet":
        (text,) = texts
        assert isinstance(text, Text)
        if kind == "hdf5" and text.names is not None:
            advice = "give it another id, or write Parquet (.parquet) or arrays"
            check_names(text.names, "Protein", advice)
        if kind == "hdf5" and text.positions is not None:
            _check_kept(text)
        request |= {"texts": None, "text": text.digest, "lines": len(text.sizes)}
    return Output(out, request, texts, form, overwrite, every)


class Output(Unfinished):
    """An output that is being made. Leaving it as a context closes it.

    with open_output(out, [text], form) as output:
        output.fill(blocks)
        output.finish()
    """

    def __init__(
        self,
        out: Path,
        request: dict[str, Any],
        texts: Sequence[Text | Path],
        form: Form,
        overwrite: bool,
        every: float,
    ) -> None:
        """`open_output` calls this. `form` has the version of elmojax in its
        settings."""
        super().__init__(out, request, overwrite)
        self.form, self._texts = form, texts
        self._overwrite, self._every = overwrite, every

    def writers(self) -> Iterator[Writer]:
        """The writer of each text, in order; one that is whole has `done` lines."""
        for number, text in enumerate(self._texts):
            assert isinstance(text, Text), "texts written by other processes"
            yield self._writer(number, text)

    def fill(self, blocks: Callable[[Text, int], Iterable[Block]]) -> None:
        """Writes all texts.

        Args:
          blocks: from a text and a number of sentences, the blocks after those.

        Raises:
          InputError: if the output cannot be written or a text changed; run again,
            it goes on. What `blocks` raises, too.
        """
        for writer in self.writers():
            writer.fill(blocks)

    def finish(self) -> None:
        """Gives the output its name. `InputError` if it is not whole, cannot be
        renamed, or has meanwhile been made by someone else."""
        check_replaceable(self.out, self._overwrite)
        with writing_output(self.out):
            if kind_of(self.out) == "parquet":
                from elmojax.vectors import parquet

                parquet.complete(self.directory, _names(self._texts), self.form)
            self.install()

    def close(self) -> None:
        """Lets go of it. What is on the disk stays for a later run, if it is anything
        that need not be made again."""
        with writing_output(self.out):
            self.release(keep=has_progress(self.directory))

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self, number: int, text: Text) -> Writer:
        kind = kind_of(self.out)
        if kind == "parquet":
            from elmojax.vectors.parquet import ParquetWriter

            return ParquetWriter(
                self.directory, number, text, self.form, self._overwrite
            )
        if kind == "npy":
            return RaggedWriter(self, text, self.form, self._every)
        packed = self.form.compression is not None
        writer = hdf5.PackedHdf5Writer if packed else hdf5.Hdf5Writer
        return writer(self, text, self.form, self._every)


def check_replaceable(out: Path, overwrite: bool) -> None:
    """`InputError` unless `out` can be made, or may be replaced.

    Only a file is replaced by a file, and only a directory that elmojax wrote by
    another, whatever `overwrite` says.
    """
    if not local(out).name:
        raise InputError(f"--out {out} is not a name to make; give another --out.")
    check_parent(out)
    kind = kind_of(out)
    if not os.path.lexists(out):
        return
    if kind == "hdf5":
        ours, what = out.is_file(), "a file"
    else:
        ours, what = _is_ours(out, kind), "a directory that `elmojax embed` made"
        if out.is_dir() and not any(out.iterdir()):
            return
    if not (overwrite and ours):
        raise InputError(
            f"{out} is there already; give another --out, or --overwrite to replace "
            f"it ({what} only)."
        )


def _is_ours(out: Path, kind: Kind) -> bool:
    info = out / (f"_{INFO}" if kind == "parquet" else INFO)
    try:
        return read_object(info).get("format") == "elmojax vectors"
    except (OSError, ValueError):
        return False


def _check_kept(text: Text) -> None:
    line = int(text.sizes.argmax())
    if text.sizes[line] > hdf5.MOST_KEPT:
        raise InputError(
            f"Line {text.number(line) + 1} of {text.path} has {text.sizes[line]:,} of "
            f"the words of --only, and HDF5 lists {hdf5.MOST_KEPT:,} at most; write "
            "Parquet (.parquet) or arrays, or one sentence a line."
        )


def _check_form(kind: Kind, form: Form) -> None:
    if kind == "parquet":
        from elmojax.vectors import parquet

        parquet.check_form(form)
    else:
        form.packing(hdf5.COMPRESSIONS if kind == "hdf5" else {})


def _names(texts: Sequence[Text | Path]) -> list[str]:
    return [os.fspath(t.path if isinstance(t, Text) else t) for t in texts]
