"""MODEL, wherever a user names one: opened, scored with, converted, verified."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from elmojax.arguments import checked
from elmojax.atomic import install, local, new_directory, replaced
from elmojax.config import CharCnnConfig, CountOrZero, HeadConfig, TrainConfig
from elmojax.embedding.engine import local_mesh, whole
from elmojax.embedding.likelihood import LanguageModelParams
from elmojax.errors import InputError
from elmojax.formats import hdf5
from elmojax.formats.fetch import fetch_model, is_url
from elmojax.formats.hdf5 import load_head
from elmojax.formats.manylangs import is_manylangs, load_manylangs
from elmojax.formats.tf_checkpoint import load_tf_checkpoint
from elmojax.formats.verify import ArrayReport, check_hdf5
from elmojax.model.bilm import ElmoParams, Placement, from_tree
from elmojax.model.ops import DTYPES, Precision, cast
from elmojax.model.softmax import edges_of
from elmojax.shapes import Params
from elmojax.text.corpus import Corpus
from elmojax.text.files import Errors, Oddities
from elmojax.text.prepare import prepare
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.card import CARD
from elmojax.training.checkpoint import Checkpoints, read_run
from elmojax.training.evaluate import ROWS, Evaluator
from elmojax.training.record import RunRecord, create_run, fingerprint
from elmojax.training.score import Measures, Score, Scorer
from elmojax.training.sharding import path_name
from elmojax.training.step import LanguageModel


class Model(NamedTuple):
    """A biLM with what its source knows besides."""

    source: str
    params: ElmoParams
    vocabulary: Vocabulary | None
    """Of its softmax, or of the word ids that it reads."""
    head: Params | None
    """Parameters of its softmax; None without one, or where it was not read."""
    shape: HeadConfig
    """Of its softmax."""
    precision: Precision = "float32"
    """Of its matrix products."""

    def cast(self, precision: Precision) -> Model:
        """This model with other matrix products, those of the softmax too."""
        params, head = cast((self.params, self.head), precision)
        return self._replace(params=params, head=head, precision=precision)

    def language_model(
        self, mesh: Mesh | None = None
    ) -> tuple[LanguageModel, Params, Vocabulary]:
        """For evaluation: shapes, parameters with the head, and its words.

        Args:
          mesh: of axes `data` and `model`; the parameters lie whole on every device.

        Raises:
          InputError: if the source has no softmax, or not its vocabulary.
        """
        if self.head is None or self.vocabulary is None:
            what = "softmax" if self.head is None else "vocabulary.txt"
            raise InputError(
                f"{self.source} has no {what}, so it gives words no probability; train "
                "one with `elmojax pretrain --init-from`."
            )
        size, words = len(self.vocabulary), edges_of(self.head)[-1]
        if size != words:
            raise InputError(
                f"The vocabulary of {self.source} has {size} words and its softmax "
                f"{words}; put the vocabulary.txt there that it was trained with."
            )
        dtype = DTYPES[self.precision]
        lm = LanguageModel(self.params.config, size, self.shape, dtype=dtype, mesh=mesh)
        params = {**self.params.tree, "head": self.head}
        if mesh is not None:
            params = jax.device_put(params, whole(mesh))
        return lm, params, self.vocabulary

    def scorer(self, mesh: Mesh | None = None) -> Scorer:
        """Ready to score sentences; arguments and `InputError` as `language_model`."""
        return Scorer(*self.language_model(mesh), self.params.initial_state)


def open_model(
    model: str | os.PathLike[str],
    step: int | None = None,
    *,
    head: bool = True,
    sharding: Placement = None,
) -> Model:
    """Everything that a model's files hold.

    Args:
      model: a run directory of `elmojax pretrain`; a directory with options.json and
        weights.hdf5; a TensorFlow checkpoint of bilm-tf; a directory of
        ELMoForManyLangs; the name of a model that ships with elmojax ("mini"); or the
        address of a published model (see `fetch_model`).
      step: which checkpoint of a run; None = the newest.
      head: whether to read the softmax.
      sharding: where the arrays of the biLM go; see `restore`.

    Raises:
      InputError: if there is no such model, or it cannot be read.
    """
    path = _locate(model)
    if is_manylangs(path):
        if step is not None:
            raise InputError(f"{path} is no run directory; leave --step out.")
        params = load_manylangs(path, sharding=sharding)
        return Model(str(model), params, None, None, FULL)
    if not (path / "config.json").exists():
        files, is_checkpoint = hdf5_files(path), is_tf_checkpoint(path)
        if step is not None and (files or is_checkpoint):
            raise InputError(f"{path} is no run directory; leave --step out.")
        if files:
            return _from_hdf5(path, *files, head, sharding)
        if is_checkpoint:
            params, softmax = load_tf_checkpoint(path, head=head, sharding=sharding)
            words, softmax = _with_words(path, params, softmax, head)
            return Model(str(model), params, words, softmax, FULL)
    if not path.exists():
        raise InputError(
            f"There is no model {str(model)!r}: give a run directory of `elmojax "
            "pretrain`, a directory with options.json and weights.hdf5, or the name of "
            f"a model that ships with elmojax ({', '.join(bundled())})."
        )
    record, vocabulary, tree = read_run(path, step, head=head, sharding=sharding)
    params = from_tree(record.train.model, tree)
    return Model(str(path), params, vocabulary, tree.get("head"), record.train.head)


FULL = HeadConfig("full")
BUNDLED = Path(__file__).with_name("models")
"""Directory of the models that ship with elmojax, as HDF5."""


def bundled() -> list[str]:
    """Names of the models that ship with elmojax; a directory of such a name is
    `./NAME`."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{hdf5.OPTIONS}"))


def _locate(model: str | os.PathLike[str]) -> Path:
    """Where the files of a model are, fetched if need be."""
    if is_url(model):
        return fetch_model(str(model))
    return BUNDLED / model if model in bundled() else Path(model)


def hdf5_files(path: Path) -> tuple[Path, Path] | None:
    """Options and weights in a directory: under these names, or the only ones there
    whose names end like this (`elmo_..._options.json`, `elmo_..._weights.hdf5`)."""
    found = []
    for name in (hdf5.OPTIONS, hdf5.WEIGHTS):
        named = [path / name] if (path / name).is_file() else [*path.glob(f"*{name}")]
        if len(named) != 1:
            return None
        found += named
    return found[0], found[1]


def is_tf_checkpoint(path: Path) -> bool:
    """Whether it is a directory that bilm-tf trained in, or a checkpoint's prefix."""
    return (path / "checkpoint").is_file() or Path(f"{path}.index").is_file()


def _from_hdf5(
    path: Path, options: Path, weights: Path, head: bool, sharding: Placement
) -> Model:
    params = hdf5.load_hdf5(options, weights, sharding=sharding)
    softmax = None
    if head and (path / hdf5.SOFTMAX).exists():
        softmax = load_head(path / hdf5.SOFTMAX, params.config.lstm.projection)
    words, softmax = _with_words(path, params, softmax, head)
    if softmax is None:
        return Model(str(path), params, words, None, FULL)
    shape, cutoffs = FULL, edges_of(softmax)[:-1]
    if cutoffs:
        dim, narrow = softmax["down_0"].shape
        shape = HeadConfig("adaptive", cutoffs, dim / narrow)
    shape = replace(shape, bias="bias" in softmax)
    return Model(str(path), params, words, softmax, shape)


def _with_words(
    path: Path, params: ElmoParams, softmax: Params | None, head: bool
) -> tuple[Vocabulary | None, Params | None]:
    """The words of a softmax, or of a model that reads word ids, and the softmax in
    their order: `<S>`, `</S>`, `<UNK>` first, wherever they stand in its file."""
    characters = isinstance(params.config.encoder, CharCnnConfig)
    file = (path if path.is_dir() else path.parent) / "vocabulary.txt"
    if (characters and not head) or not file.exists():
        return None, softmax
    vocabulary, order = Vocabulary.read_trained(file)
    if order is None or (softmax is None and characters):
        return vocabulary, softmax
    if not (characters and set(softmax or ()) <= {"kernel", "bias"}):
        raise InputError(
            f"{file} does not begin with {', '.join(SPECIALS)}, and only a full "
            "softmax of a model that reads characters can be put in that order."
        )
    if softmax is not None and edges_of(softmax)[-1] == len(order):
        softmax = {name: leaf[order] for name, leaf in softmax.items()}
    return vocabulary, softmax


@checked
def load(
    model: str | os.PathLike[str],
    *,
    sharding: Placement = None,
    precision: Precision = "float32",
) -> ElmoParams:
    """`ElmoParams` of a model, ready for `embed`.

    Args:
      model: a run directory of `elmojax pretrain` (its newest checkpoint), a directory
        with options.json and weights.hdf5, a TensorFlow checkpoint of bilm-tf, a
        directory of ELMoForManyLangs, the name of a model that ships with elmojax
        ("mini"), or the address of a published model (see `fetch_model`).
      sharding: where the arrays go: one `jax.sharding.Sharding`, or a pytree of them,
        as for `restore`; None = uncommitted.
      precision: of matrix products, "float32" or "bf16"; see `cast`.

    Raises:
      InputError: if there is no such model, it cannot be read, or `sharding` does not
        fit.
    """
    return open_model(model, head=False, sharding=sharding).cast(precision).params


@checked
def load_language_model(
    model: str | os.PathLike[str],
    step: int | None = None,
    *,
    precision: Precision = "float32",
) -> tuple[LanguageModelParams, Vocabulary]:
    """A biLM with its softmax for `sentence_loss`, and the vocabulary it predicts.

    Args:
      model: as for `load`, with a softmax and its vocabulary.
      step: which checkpoint of a run; None = the newest.
      precision: of matrix products, "float32" or "bf16"; see `cast`.

    Raises:
      InputError: if there is no such model, it cannot be read or has no softmax.
    """
    opened = open_model(model, step).cast(precision)
    _, tree, vocabulary = opened.language_model()
    return LanguageModelParams(opened.params, tree["head"]), vocabulary


@checked
def score(
    model: str | os.PathLike[str] | Model,
    sentences: Iterable[Sequence[str]],
    *,
    precision: Precision = "float32",
    entropy: bool = False,
    top_k: CountOrZero = 0,
    carry: bool = False,
) -> list[Score]:
    """How probable a model finds each word of tokenised sentences, both ways.

    Every sentence is scored for itself, from the model's initial state (`warm` models
    excepted, a state of zeros), so neither order nor company changes a number, unless
    `carry` is given. Words outside the vocabulary count as `<UNK>`.

    Args:
      model: as for `load`, with a softmax and its vocabulary.
      sentences: words of each; a sentence without words is just its end.
      precision: of matrix products, "float32" or "bf16"; see `cast`. A `Model` that is
        open keeps its own.
      entropy: whether to give the entropy of each distribution and the rank of what is
        there, too.
      top_k: how many substitutes to give for each word: the most probable words after
        those before it, before those after it, and by both together.
      carry: whether a sentence begins with the state that each direction ended the one
        before with, as in training; the backward one has then read the sentences
        before, each from its end, and none that follow.

    Returns:
      One `Score` a sentence, in order: `words`, `forward` and `backward` (natural
      logarithms, [words + 1], the sentence mark last), `known`, the sums `forward_sum`
      and `backward_sum`, and what else was asked for.

    Raises:
      InputError: if there is no such model, it cannot be read or has no softmax, or
        its vocabulary has fewer words than `top_k`.
    """
    opened = model if isinstance(model, Model) else open_model(model).cast(precision)
    measures = Measures(entropy, top_k, carry)
    return list(opened.scorer()(sentences, measures=measures))


def evaluate_text(
    model: Model,
    files: Sequence[Path],
    errors: Errors = "strict",
    progress: Callable[[int, int], Any] = lambda tokens, total: None,
    told: Callable[[Oddities], Any] = lambda odd: None,
) -> dict[str, float]:
    """Exact perplexity of a model on text files, by all devices of this machine.

    Args:
      files: text, one tokenised sentence a line; prepared in a temporary directory.
      progress: is told the tokens of each batch, and those of the whole text.
      told: is told what is odd about the text, before it is evaluated.

    Returns:
      What `training.evaluate.summarize` says.

    Raises:
      InputError: for text that will not do, and a model without a softmax.
    """
    columns = model.params.config.max_characters or 50
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        report = prepare(
            Path(temporary) / "text",
            patterns=list(map(str, files)),
            errors=errors,
            max_characters=columns,
        )
        told(Oddities(**report["odd"]))
        return evaluate_corpus(model, Corpus.open(Path(temporary) / "text"), progress)


def evaluate_corpus(
    model: Model,
    corpus: Corpus,
    progress: Callable[[int, int], Any] = lambda tokens, total: None,
) -> dict[str, float]:
    """`evaluate_text` of a prepared corpus."""
    lm, params, vocabulary = model.language_model(local_mesh(ROWS))
    total = len(corpus.words) + len(corpus.offsets) - 1
    evaluator = Evaluator(lm, corpus, vocabulary)
    return evaluator(params, lambda tokens: progress(tokens, total))


def convert(
    model: Model, out: Path, version: str = "", dtype: hdf5.Stored = "float32"
) -> str:
    """Writes a run directory as HDF5, and any other model as a run directory.

    HDF5 is options.json and weights.hdf5, with softmax.hdf5, vocabulary.txt and card.md
    where the model has them; numbers go through unchanged, unless `dtype` is float16,
    which only HDF5 files take. `out` is there when it is
    whole, and not before. Returns what was written, "HDF5" or "Orbax".

    Raises:
      InputError: if `out` is there already, cannot be written, or cannot hold the
        model.
    """
    out = Path(os.path.realpath(local(out)))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; choose another --out.")
    source = Path(model.source)
    if (source / "config.json").exists() and not is_manylangs(source):
        hdf5.save_hdf5(model.params, out, model.head, model.vocabulary, dtype=dtype)
        card = Path(model.source) / CARD
        if card.is_file():
            with replaced(out / CARD) as partial:
                shutil.copyfile(card, partial)
        return "HDF5"
    if dtype != "float32":
        raise InputError(
            f"{model.source} becomes a run directory, whose numbers are float32; leave "
            f"--dtype {dtype} out."
        )
    if any(np.any(leaf) for leaf in jax.tree.leaves(model.params.initial_state)):
        raise InputError(
            f"{model.source} has an initial state other than zero, which a run "
            "directory does not hold; keep it as HDF5."
        )
    head = {} if model.head is None else {"head": model.head}
    record = RunRecord(
        train=TrainConfig(model=model.params.config, head=model.shape, workdir=out),
        corpus="",
        vocabulary=edges_of(model.head)[-1] if model.head else 0,
        words=fingerprint(model.vocabulary) if model.vocabulary else "",
        elmojax=version,
    )
    with new_directory(out) as partial:
        create_run(partial, record, model.vocabulary)
        checkpoints = Checkpoints(partial, config=record.train)
        checkpoints.save(0, {**model.params.tree, **head}, None)
        checkpoints.close()
        install(partial, out, replaces=out.exists())
    return "Orbax"


def verify(model: str | os.PathLike[str]) -> tuple[list[ArrayReport], list[str]]:
    """Every array of a model and its state, and who else can read it.

    Raises:
      InputError: if the model cannot be read at all.
    """
    path = _locate(model)
    files = None if (path / "config.json").exists() else hdf5_files(path)
    if files:
        report = check_hdf5(*files)
        arrays, notes = list(report.arrays), list(report.notes)
        if (path / hdf5.SOFTMAX).exists():
            head = load_head(path / hdf5.SOFTMAX, report.config.lstm.projection)
            arrays += _states({"softmax": head})
        return arrays, notes
    opened = open_model(model)
    tree = {**opened.params.tree, **({"head": opened.head} if opened.head else {})}
    return _states(tree), []


def _states(tree: Params) -> list[ArrayReport]:
    """Arrays that were read in full: all there is to see is whether they are finite."""
    reports = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        state = "ok" if np.isfinite(leaf).all() else "not finite"
        shape = tuple(leaf.shape)
        reports.append(ArrayReport(path_name(path), shape, shape, state))
    return reports
