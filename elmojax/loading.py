"""MODEL, wherever a user names one: opened, scored with, converted, verified."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from elmojax.arguments import checked
from elmojax.config import CharCnnConfig, CountOrZero, HeadConfig
from elmojax.embedding.likelihood import LanguageModelParams
from elmojax.errors import InputError
from elmojax.formats import hdf5
from elmojax.formats.forms import Form, form_of, hdf5_files, located, vocabulary_file
from elmojax.formats.hdf5 import load_head
from elmojax.formats.hugging_face import README, card_of, load_safetensors
from elmojax.formats.manylangs import load_manylangs
from elmojax.formats.tf_checkpoint import load_hub_module, load_tf_checkpoint
from elmojax.formats.verify import ArrayReport, check_hdf5
from elmojax.model.bilm import ElmoParams, Placement, from_tree
from elmojax.model.cluster_loss import edges_of
from elmojax.model.ops import (
    DTYPES,
    Precision,
    cast,
    local_mesh,
    outside_meshes,
    replicated,
)
from elmojax.shapes import Params
from elmojax.text.corpus import Corpus
from elmojax.text.files import Errors, Oddities
from elmojax.text.formats import Format
from elmojax.text.prepare import prepare
from elmojax.text.tables import each_size
from elmojax.text.vocabulary import SPECIALS, Vocabulary
from elmojax.training.card import CARD
from elmojax.training.checkpoint import read_run
from elmojax.training.evaluate import ROWS, Evaluator
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
    head_config: HeadConfig
    """Of its softmax."""
    precision: Precision = "float32"
    """Of its matrix products."""
    form: Form = "HDF5"
    """Of its source."""
    card: str | None = None
    """What is said of it, in Markdown."""
    mix: np.ndarray | None = None
    """Weights of the layers that it was published with, as `embed` takes them."""

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
        lm = LanguageModel(
            self.params.config, size, self.head_config, dtype=dtype, mesh=mesh
        )
        params = {**self.params.tree, "head": self.head}
        if mesh is not None:
            params = jax.device_put(params, replicated(mesh))
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
      model: as for `load`.
      step: which checkpoint of a run; None = the newest.
      head: whether to read the softmax.
      sharding: where the arrays of the biLM go; see `restore`.

    Raises:
      InputError: if there is no such model, or it cannot be read.
    """
    with located(model, step) as path:
        found = _read(path, form_of(path), step, head, sharding)
    return found._replace(source=str(model))


FULL = HeadConfig("full")


def _read(
    path: Path, form: Form, step: int | None, head: bool, sharding: Placement
) -> Model:
    if form == "run":
        record, vocabulary, tree = read_run(path, step, head=head, sharding=sharding)
        params, config = from_tree(record.train.model, tree), record.train.head
        model = Model(str(path), params, vocabulary, tree.get("head"), config)
        return model._replace(form=form, card=_card(path / CARD))
    if step is not None:
        raise InputError(f"{path} is no run directory; leave --step out.")
    words = softmax = card = mix = None
    if form == "HDF5":
        params, softmax, folder = _from_hdf5(path, head, sharding)
        words, softmax = _with_words(folder, params, softmax, head)
        card = _card(folder / CARD)
    elif form == "safetensors":
        params, softmax = load_safetensors(path, head=head, sharding=sharding)
        words, softmax = _with_words(path, params, softmax, head)
        card = card_of(_card(path / README))
    elif form == "TensorFlow checkpoint":
        params, softmax = load_tf_checkpoint(path, head=head, sharding=sharding)
        words, softmax = _with_words(path, params, softmax, head)
    elif form == "TF-Hub module":
        params, mix = load_hub_module(path, sharding=sharding)
    else:
        params = load_manylangs(path, sharding=sharding)
    config = _head_config(softmax)
    return Model(str(path), params, words, softmax, config, "float32", form, card, mix)


def _from_hdf5(
    path: Path, head: bool, sharding: Placement
) -> tuple[ElmoParams, Params | None, Path]:
    """The model, its softmax and the directory of both."""
    files = hdf5_files(path)
    if files is None:
        raise InputError(
            f"{path} has no options beside it; put the options.json of the model there."
        )
    params, folder = hdf5.load_hdf5(*files, sharding=sharding), files[1].parent
    if not head or not (folder / hdf5.SOFTMAX).exists():
        return params, None, folder
    softmax = load_head(folder / hdf5.SOFTMAX, params.config.lstm.projection)
    return params, softmax, folder


def _card(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _head_config(softmax: Params | None) -> HeadConfig:
    if softmax is None:
        return FULL
    head, cutoffs = FULL, edges_of(softmax)[:-1]
    if cutoffs:
        dim, narrow = softmax["down_0"].shape
        head = HeadConfig("adaptive", cutoffs, dim / narrow)
    return replace(head, bias="bias" in softmax)


def _with_words(
    path: Path, params: ElmoParams, softmax: Params | None, head: bool
) -> tuple[Vocabulary | None, Params | None]:
    """The words of a softmax, or of a model that reads word ids, and the softmax in
    their order: `<S>`, `</S>`, `<UNK>` first, wherever they stand in its file."""
    characters = isinstance(params.config.encoder, CharCnnConfig)
    file = vocabulary_file(path)
    if file is None or (characters and not head):
        return None, softmax
    if characters and softmax is None and file.name != hdf5.VOCABULARY:
        return None, None  # the words of the text, in any form
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
@outside_meshes
def load(
    model: str | os.PathLike[str],
    *,
    sharding: Placement = None,
    precision: Precision = "float32",
) -> ElmoParams:
    """`ElmoParams` of a model, ready for `embed`.

    Args:
      model: a run directory of `elmojax pretrain` (its newest checkpoint), which may be
        on gs:// or s3://; a directory
        with options.json and weights.hdf5 or model.hdf5, or one such file of weights;
        a directory that `save_pretrained` wrote; a TensorFlow checkpoint of bilm-tf; a
        module of TF-Hub; a directory of ELMoForManyLangs; a ZIP or tar archive of one
        of these; the name of a model that ships with elmojax ("mini");
        `hf://OWNER/NAME[@REVISION]`, a repository of the Hugging Face Hub; or another
        address of a published model (see `fetch_model`).
      sharding: where the arrays go: one `jax.sharding.Sharding` or device, or a pytree
        of them, as for `restore`; None = uncommitted.
      precision: of matrix products, "float32" or "bf16"; see `cast`.

    Raises:
      InputError: if there is no such model, it cannot be read, or `sharding` does not
        fit.
    """
    return open_model(model, head=False, sharding=sharding).cast(precision).params


@checked
@outside_meshes
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
@outside_meshes
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


@checked
def hub_mix(model: str | os.PathLike[str]) -> np.ndarray:
    """The weights of the layers that a module of TF-Hub was published with.

    Args:
      model: as for `load`, a module of TF-Hub.

    Returns:
      float32 [layers + 1], softmax(aggregation/weights) * aggregation/scaling: the
      gammas of `embed`, `hub_default` and `hub_tokens`.

    Raises:
      InputError: if there is no such model, it cannot be read or has no such weights.
    """
    opened = open_model(model, head=False)
    if opened.mix is None:
        raise InputError(
            f"{model} has no weights of its layers (aggregation/weights), which only "
            "modules of TF-Hub have; choose gammas, as [1/3, 1/3, 1/3] for their mean."
        )
    return opened.mix


def evaluate_texts(
    model: Model,
    texts: Sequence[Sequence[Path]],
    errors: Errors = "strict",
    format: Format = "text",
    progress: Callable[[int, int], Any] = lambda total, tokens: None,
    told: Callable[[Oddities], Any] = lambda odd: None,
) -> list[dict[str, float]]:
    """Exact perplexity of a model on texts, by all devices of this machine.

    Args:
      texts: files of each, in that format, by default one tokenised sentence a line;
        prepared in a temporary directory.
      progress: is told the tokens of a whole text, and those of each batch.
      told: is told what is odd about each text, before any is evaluated.

    Returns:
      What `training.evaluate.summarize` says of each.

    Raises:
      InputError: for text that will not do, and a model without a softmax.
    """
    corpora = []
    with tempfile.TemporaryDirectory(prefix="elmojax-") as temporary:
        for number, files in enumerate(texts):
            out = Path(temporary) / f"text-{number}"
            report = prepare(
                out,
                patterns=list(map(str, files)),
                errors=errors,
                format=format,
                max_characters=model.params.config.max_characters or 50,
            )
            told(Oddities(**report["odd"]))
            corpora.append(Corpus.open(out))
        return evaluate_corpora(model, corpora, progress)


def evaluate_corpora(
    model: Model,
    corpora: Sequence[Corpus],
    progress: Callable[[int, int], Any] = lambda total, tokens: None,
) -> list[dict[str, float]]:
    """`evaluate_texts` of prepared corpora; all by one program."""
    lm, params, vocabulary = model.language_model(local_mesh(ROWS))
    several = len(corpora) > 1
    evaluators = [Evaluator(lm, corpus, vocabulary, several) for corpus in corpora]
    step, _ = evaluators[0].program
    wanted = [evaluator.program[1] for evaluator in evaluators]
    sizes = each_size(lambda *every: max(every), *wanted)
    found = []
    for corpus, evaluator in zip(corpora, evaluators, strict=True):
        tokens = len(corpus.words) + len(corpus.offsets) - 1
        found.append(evaluator(params, partial(progress, tokens), (step, sizes)))
    return found


def verify(model: str | os.PathLike[str]) -> tuple[list[ArrayReport], list[str]]:
    """Every array of a model and its state, and who else can read it.

    Raises:
      InputError: if the model cannot be read at all.
    """
    with located(model) as path:
        form = form_of(path)
        if form == "HDF5" and (files := hdf5_files(path)):
            report = check_hdf5(*files)
            arrays, notes = list(report.arrays), list(report.notes)
            softmax = files[1].with_name(hdf5.SOFTMAX)
            if softmax.exists():
                head = load_head(softmax, report.config.lstm.projection)
                arrays += _states({"softmax": head})
            return arrays, notes
        opened = _read(path, form, None, head=True, sharding=None)
    tree = {**opened.params.tree, **({"head": opened.head} if opened.head else {})}
    if opened.mix is not None:
        tree["mix"] = opened.mix
    return _states(tree), []


def _states(tree: Params) -> list[ArrayReport]:
    """Arrays that were read in full: all there is to see is whether they are finite."""
    reports = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        state = "ok" if np.isfinite(leaf).all() else "not finite"
        shape = tuple(leaf.shape)
        reports.append(ArrayReport(path_name(path), shape, shape, state))
    return reports
