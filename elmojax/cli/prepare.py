"""`elmojax prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from tyro.conf import UseAppendAction, arg

from elmojax.cli import common
from elmojax.cloud import address, written
from elmojax.config import PRESETS, Columns, Count, TrainConfig, VocabularySize
from elmojax.errors import InputError
from elmojax.text import prepare as preparing
from elmojax.text.corpus import PARTS, SUMMARY, Corpus
from elmojax.text.files import Oddities
from elmojax.text.tfds import TfdsText
from elmojax.training.choices import automatic_cutoffs


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(common.TextArguments):
    """Turns text into a vocabulary and arrays of word ids."""

    out: Path
    """Directory to write; it may be on gs:// or s3://."""
    tfds: str | None = None
    """TensorFlow data set to read instead of files, for example lm1b (in array_record
    format)."""
    split: str = "train"
    """Split of the data set to read."""
    data_dir: str | None = None
    """Directory of TensorFlow data sets; by default the one that TFDS uses."""
    feature: str = "text"
    """Feature of the data set that holds the text."""
    vocabulary: Path | None = None
    """Vocabulary file to use; by default a vocabulary is built from this text."""
    max_vocabulary: VocabularySize | None = None
    """Keep at most this many words in the vocabulary, `<S> </S> <UNK>` included."""
    min_count: Count = 1
    """Leave words with fewer occurrences out of the vocabulary."""
    max_characters: Columns = 50
    """Character columns of a word. Words of more than max_characters - 2 bytes count as
    truncated."""
    about: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(metavar="SENTENCE", help_behavior_hint="(may be repeated)"),
    ] = ()
    """Where the text comes from and under which licence; the card of a model that is
    trained on it says so."""
    overwrite: common.Overwrite = False
    json: common.Json = False


def prepare(argv: list[str]) -> None:
    """text -> vocabulary and arrays of word ids"""
    asked = common.parse(PrepareArguments, "prepare", argv, addresses=("out",))
    tfds = None
    if asked.tfds is not None:
        of_set = (asked.tfds, asked.split, asked.data_dir, asked.feature)
        tfds = TfdsText(*of_set)
    named = address(asked.out) or asked.out
    with (
        written(asked.out, (SUMMARY, *PARTS).__contains__) as out,
        tqdm(total=100, unit="%", desc="prepare", disable=None) as bar,
    ):

        def progress(share: float, words: int) -> None:
            bar.set_postfix_str(f"{words / 1e6:.1f} M words")
            bar.update(int(100 * share) - bar.n)

        report = preparing.prepare(
            out,
            patterns=sum(asked.text, ()),
            tfds=tfds,
            vocabulary=asked.vocabulary,
            max_vocabulary=asked.max_vocabulary,
            min_count=asked.min_count,
            errors=asked.errors,
            format=asked.format,
            max_characters=asked.max_characters,
            about=asked.about,
            overwrite=asked.overwrite,
            progress=progress,
        )
    cutoffs = preset_cutoffs(out)
    remarks = common.remark(
        Oddities(**report["odd"]), asked.max_characters, asked.format
    )
    lines = [
        f"{named} ({report['status']}): {report['tokens']:,} words in "
        f"{report['sentences']:,} sentences, {report['types']:,} types; vocabulary of "
        f"{report['vocabulary']:,}, {report['oov_rate']:.2%} out of vocabulary; "
        f"{report['truncated_words']:,} truncated words.",
        f"Skipped {report['blank_lines']:,} blank lines; undecodable bytes replaced in "
        f"{report['replaced_lines']:,} lines. {report['seconds']:.1f} s, "
        f"{report['words_per_second']:,.0f} words/s.",
    ]
    if cutoffs is None:
        lines.append(
            "The vocabulary is not sorted by how often its words occur in this text: "
            "good for evaluation, not for training with an adaptive softmax."
        )
    else:
        lines.append("Cutoffs of the adaptive softmax, if none are given:")
        for preset, ranks in cutoffs.items():
            listed = " ".join(map(str, ranks)) or "none, so few words need no clusters"
            lines.append(f"  {preset:9} {listed}")
    more = {"cutoffs": cutoffs, "remarks": remarks}
    common.show(asked.json, {**report, **more}, "\n".join(lines))


def preset_cutoffs(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """The automatic cutoffs of each preset; None where ranks say nothing."""
    corpus = Corpus.open(directory)
    counts, cutoffs = corpus.target_counts(corpus.vocabulary), {}
    try:
        corpus.vocabulary.check_sorted(counts)
    except InputError:
        return None
    for name, model in PRESETS.items():
        div_value = TrainConfig.preset(name).head.div_value
        dim = model.lstm.projection
        cutoffs[name] = automatic_cutoffs(counts, dim, div_value)
    return cutoffs
