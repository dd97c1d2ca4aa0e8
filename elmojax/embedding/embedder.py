"""Vectors for any number of sentences: few compiled shapes, every word encoded once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import IO, Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from elmojax.arguments import checked, require, sentence_words
from elmojax.config import BatchTokens, Count
from elmojax.embedding.engine import (
    CHUNK,
    Select,
    VectorDtype,
    make_plan,
    make_selection,
    program_shapes,
    read_document,
    run_batch,
    skip_document,
    step_budget,
    word_capacity,
)
from elmojax.embedding.pooling import Block
from elmojax.embedding.words import EncodedWords, WordIndex
from elmojax.errors import InputError
from elmojax.model.bilm import ElmoParams
from elmojax.model.ops import (
    Precision,
    along_data,
    cast,
    outside_meshes,
    replicated,
    require_own_process,
)
from elmojax.shapes import Numbers
from elmojax.text.characters import encoder_ids
from elmojax.text.formats import split
from elmojax.text.vocabulary import Vocabulary

BATCH_TOKENS = 32_768
"""Words and sentences of a batch, unless a user says otherwise."""


class Embedder:
    """A biLM ready for sentences of words, as AllenNLP's `ElmoEmbedder` was.

    Sentences are read in batches. Words that were not seen lately are encoded once and
    kept in a table on the device; sentences run through the LSTM one after the other
    in the rows of a batch, each from `params.initial_state`, so that vectors depend on
    the sentence alone and only a few shapes are compiled. A sentence longer than a
    batch is read in chunks, exactly. While the device works on one batch, the host
    prepares the next.

    Threads may share one: its batches begin one after the other. A process that is
    forked from one that has used JAX cannot embed, and says so.

    On a mesh every device reads a batch of its own at the same time. They exchange the
    vectors of new words, of which each encodes a share, and nothing else. Batches are
    those of one device, and so are vectors within float32 rounding.
    """

    @checked
    @outside_meshes
    def __init__(
        self,
        params: ElmoParams,
        vocabulary: Vocabulary | WordIndex | None = None,
        batch_tokens: int = BATCH_TOKENS,
        *,
        layers: Select = "all",
        gammas: Numbers | None = None,
        dtype: VectorDtype = "float32",
        precision: Precision | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """
        Args:
          params: from `init`, `restore` or `load`.
          vocabulary: for models with a word table (of `cache_words`: the WordIndex).
          batch_tokens: most words and sentences of a batch together; bounds memory of
            a device. Fewer have more devices of a mesh work on a small text.
          layers: "all" keeps every layer, "top" the last, "mix" their sum weighted by
            `gammas`.
          gammas: [layers + 1], for layers "mix".
          dtype: of the vectors: "float32", "float16" or "bfloat16". Sums are float32.
          precision: of matrix products, "float32" or "bf16" (see `cast`); None = that
            of `params`.
          mesh: with an axis `data` of this process's devices, all of which are used (of
            other axes the first); they get the whole of `params`. None = the device
            that has `params`, or JAX's default one.

        Raises:
          InputError: if these do not go together, or the mesh is another.
        """
        require_own_process()
        batch_tokens = require("batch_tokens", batch_tokens, BatchTokens)
        encoder_ids(params.config.encoder, (), vocabulary)
        params = params if precision is None else cast(params, precision)
        if mesh is not None:
            mesh = along_data(mesh)
            params = jax.device_put(params, replicated(mesh))
        self.params, self.batch_tokens = params, batch_tokens
        self._mesh, self._devices = mesh, 1 if mesh is None else mesh.size
        self._budget, self._vocabulary = step_budget(batch_tokens), vocabulary
        self._selection = make_selection(params, layers, gammas, dtype)
        words = max(self._devices * batch_tokens, CHUNK)
        self._table = EncodedWords(params, vocabulary, words, mesh)
        self._turn = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=Lock())

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """All (steps, rows, words) that batches are compiled for, whatever the text;
        rows and words of one device."""
        return program_shapes(self.batch_tokens)

    @checked
    def blocks(
        self,
        sentences: Iterable[Sequence[str]],
        skip: int = 0,
        on_device: bool = False,
    ) -> Iterator[Block]:
        """Vectors as they come from the device, many sentences at a time.

        Args:
          sentences: any number of them, each a list of words.
          skip: leave out that many sentences at the beginning: a number at which a
            block ended when the same sentences were read by another Embedder like
            this. From an Embedder not used before, the blocks after it then come bit
            for bit as they did there; with another number of devices, within float32
            rounding.
          on_device: leave the vectors on the device and do not wait for them: they
            are arrays of JAX then, with unused rows at the end, each on the device of
            its batch (of a document: on all of them).

        Raises:
          InputError: for what is not a list of words, or another `skip`.
        """
        blocks = self._dispatch(sentences, skip)
        yield from blocks if on_device else self._fetched(blocks)

    @checked
    def embed_sentences(
        self, sentences: Iterable[Sequence[str]], batch_size: int | None = None
    ) -> Iterator[np.ndarray]:
        """Vectors of each sentence, in the order of the sentences.

        Stands in for AllenNLP's `ElmoEmbedder.embed_sentences`; it reads sentences
        ahead, up to two batches a device.

        Args:
          sentences: any number of them, each a list of words.
          batch_size: most sentences of a batch; None = as many as `batch_tokens` hold,
            which is faster. The vectors are the same.

        Yields:
          [layers + 1, words, vector], or [words, vector] for layers "top" and "mix";
          no words for a sentence without any.

        Raises:
          InputError: for what is not a list of words, or a `batch_size` below 1.
        """
        parts: list[np.ndarray] = []
        for block in self._fetched(self._dispatch(sentences, 0, batch_size)):
            start, last = 0, len(block.sizes) - 1
            for number, size in enumerate(block.sizes):
                parts.append(block.vectors[start : start + size])
                start += size
                if not (block.more and number == last):
                    yield _layers_first(parts)
                    parts = []
            parts = [part.copy() for part in parts]  # lets go of the block

    @checked
    def embed_sentence(self, sentence: Iterable[str]) -> np.ndarray:
        """One sentence: [layers + 1, words, vector], or [words, vector].

        Stands in for AllenNLP's `ElmoEmbedder.embed_sentence`.

        Raises:
          InputError: for what is not a list of words.
        """
        return next(self.embed_sentences([list(sentence)]))

    @checked
    def embed_batch(self, batch: Iterable[Sequence[str]]) -> list[np.ndarray]:
        """Vectors of each sentence of a list, as `embed_sentences` yields them.

        Stands in for AllenNLP's `ElmoEmbedder.embed_batch`.

        Raises:
          InputError: for what is not a list of lists of words.
        """
        return list(self.embed_sentences(batch))

    def batch_to_embeddings(
        self, batch: Iterable[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of a list of sentences in one array, 0 past their ends.

        Stands in for AllenNLP's `ElmoEmbedder.batch_to_embeddings`, with arrays of
        NumPy for tensors.

        Returns:
          Vectors [batch, layers + 1, time, vector], or [batch, time, vector] for
          layers "top" and "mix", and the mask [batch, time] of words, bool. `time` is
          the number of words of the longest sentence.

        Raises:
          InputError: for what is not a list of lists of words.
        """
        each = self.embed_batch(batch)
        words = [vectors.shape[-2] for vectors in each]
        mask = np.arange(max(words, default=0)) < np.array(words, np.int64)[:, None]
        lstm = self.params.config.lstm
        layers = (lstm.layers + 1,) if self._selection.layers == "all" else ()
        shape = (len(each), *layers, mask.shape[1], 2 * lstm.projection)
        padded = np.zeros(shape, self._selection.dtype)
        for row, vectors in zip(padded, each, strict=True):
            row[..., : vectors.shape[-2], :] = vectors
        return padded, mask

    @checked
    def embed_file(
        self,
        input_file: str | os.PathLike[str] | IO[str],
        output_file_path: str | os.PathLike[str],
        output_format: Literal["all", "top", "average"] = "all",
        batch_size: int | None = None,
        forget_sentences: bool = False,
        use_sentence_keys: bool = False,
        *,
        overwrite: bool = False,
    ) -> None:
        """Every line of a text to HDF5, one data set a line, key = line number from 0.

        Stands in for AllenNLP's `ElmoEmbedder.embed_file` and writes the same file,
        float32, whatever `layers` and `dtype` the embedder has. A line without words
        has no vectors; a file that is there already stays. Lines are kept in memory,
        and an interruption loses what was done: see `elmojax embed` for large texts.

        Args:
          input_file: an open text, which is read from where it stands and stays open;
            or the path of a text in UTF-8, also packed by gzip, xz or bzip2. Words are
            set apart by spaces and tabs.
          output_file_path: where to write; any name.
          output_format: "all" layers [layers + 1, words, vector], "top" or "average"
            [words, vector].
          batch_size: as for `embed_sentences`.
          forget_sentences: leave out the data set `sentence_to_index`, a JSON object
            from the text of each line to its key.
          use_sentence_keys: the text of a line is its key; `sentence_to_index` is left
            out.
          overwrite: replace a file that is there.

        Raises:
          InputError: if the text cannot be read or the file cannot be written; with
            `use_sentence_keys` for lines that are empty or equal.
        """
        from elmojax.embedding.allennlp import read_sentences, write_sentences

        count = self.params.config.lstm.layers + 1
        layers: Select = "mix" if output_format == "average" else output_format
        embedder = Embedder(
            self.params,
            self._vocabulary,
            self.batch_tokens,
            layers=layers,
            gammas=(1 / count,) * count if layers == "mix" else None,
            mesh=self._mesh,
        )
        sentences = read_sentences(input_file)
        words = map(split, sentences)
        write_sentences(
            Path(output_file_path),
            sentences,
            embedder.embed_sentences(words, batch_size),
            forget=forget_sentences,
            as_keys=use_sentence_keys,
            overwrite=overwrite,
        )

    def _dispatch(
        self,
        sentences: Iterable[Sequence[str]],
        skip: int,
        batch_size: int | None = None,
    ) -> Iterator[Block]:
        """Starts batch after batch, one on each device."""
        done = 0
        for group in self._groups(self._batches(sentences, batch_size)):
            yield from _in_turn(self._turn, self._start_group(group, done, skip))
            done += sum(map(len, group))

    def _start_group(
        self, group: list[list[list[str]]], done: int, skip: int
    ) -> Iterator[Block]:
        """The blocks of batches after sentence `done`. The caller holds the lock of the
        word table while a block is made."""
        ends = done + np.cumsum([len(batch) for batch in group])
        words = list(chain.from_iterable(chain.from_iterable(group)))
        if self._is_document(group[0]):
            if ends[-1] <= skip:
                skip_document(self._table, words)
            else:
                yield from read_document(
                    self.params, self._table, words, self._selection
                )
            return
        rows = self._table.rows(words)
        if ends[-1] <= skip:
            return
        if skip > done and skip not in ends:
            raise InputError(f"No batch of this text ends at sentence {skip}.")
        for end, block in zip(ends, self._run_group(group, rows), strict=True):
            if end > skip:
                yield block

    def _groups(
        self, batches: Iterable[list[list[str]]]
    ) -> Iterator[list[list[list[str]]]]:
        """Successive batches, as many as there are devices; a document alone."""
        group: list[list[list[str]]] = []
        for batch in batches:
            document = self._is_document(batch)
            if group and document:
                yield group
                group = []
            group.append(batch)
            if document or len(group) == self._devices:
                yield group
                group = []
        if group:
            yield group

    def _is_document(self, batch: list[list[str]]) -> bool:
        """Whether it is one sentence that is longer than a batch."""
        return len(batch) == 1 and len(batch[0]) + 1 > self._budget

    def _run_group(self, group: list[list[list[str]]], rows: np.ndarray) -> list[Block]:
        """The blocks of some batches, whose words have these rows of the table."""
        idle: list[list[list[str]]] = [[]] * (self._devices - len(group))
        sizes = [np.array([len(s) for s in batch], int) for batch in [*group, *idle]]
        words = np.split(rows, np.cumsum([each.sum() for each in sizes])[:-1])
        size = word_capacity(max(map(len, words)), self.batch_tokens)
        vectors = run_batch(
            self.params,
            self._table.encoded(),
            make_plan(words, sizes, size),
            size,
            self._selection,
            self._mesh,
        )
        shards = vectors.addressable_shards
        shards = sorted(shards, key=lambda shard: shard.index[0].start or 0)
        return [
            Block(tuple(some.tolist()), shard.data, False)
            for some, shard, _ in zip(sizes, shards, group, strict=False)
        ]

    def _batches(
        self, sentences: Iterable[Sequence[str]], batch_size: int | None
    ) -> Iterator[list[list[str]]]:
        """Successive sentences that fill a batch, or one that is longer."""
        batch_size = require("batch_size", batch_size, Count | None)
        batch: list[list[str]] = []
        steps = 0
        for sentence in sentence_words(sentences):
            steps += len(sentence) + 1
            if len(batch) == batch_size or (batch and steps > self._budget):
                yield batch
                batch, steps = [], len(sentence) + 1
            batch.append(sentence)
        if batch:
            yield batch

    def _fetched(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Each block on the host, once its device has been given the next."""
        late: deque[Block] = deque()
        for block in blocks:
            if len(late) == self._devices:
                yield _on_host(late.popleft())
            late.append(block)
        yield from map(_on_host, late)


def _in_turn(turn: Lock, blocks: Iterator[Block]) -> Iterator[Block]:
    """Each block made while no other thread makes one."""
    while True:
        require_own_process()
        with turn:
            block = outside_meshes(next)(blocks, None)
        if block is None:
            return
        yield block


def _on_host(block: Block) -> Block:
    return block._replace(vectors=np.asarray(block.vectors)[: sum(block.sizes)])


def _layers_first(parts: list[np.ndarray]) -> np.ndarray:
    """A copy of the parts of a sentence: [layers + 1, words, vector]."""
    vectors = np.concatenate(parts)
    if vectors.ndim == 2:
        return vectors
    return np.ascontiguousarray(vectors.swapaxes(0, 1))
