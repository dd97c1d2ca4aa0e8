"""Batches against a slow generator written from the definition, as lists of words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from toys import TINY, corpus_of

from elmojax.config import CharCnnConfig, WordTableConfig
from elmojax.text import tables
from elmojax.text.batches import (
    TrainingText,
    heldout_batches,
    join_rows,
    shuffled,
    split_rows,
)
from elmojax.text.characters import encode_words
from elmojax.text.tables import Words, padded_size

LETTERS = ["a", "b", "no", "bank", "é", "river", "overlong-words", "日本", "<S>", "x"]

sentences = st.lists(
    st.lists(st.sampled_from(LETTERS), min_size=1, max_size=6), min_size=1, max_size=30
)


@dataclass
class Position:
    """One position of running text: what each direction reads and must predict."""

    inputs: tuple[str, str]
    targets: tuple[str, str]


BEGIN, END = "begin", "end"
"""The sentence marks, which a word `<S>` of the text is not."""


def positions(sentence: list[str]) -> list[Position]:
    """n words are n + 1 positions, in the order that each direction reads."""
    forward = [BEGIN, *sentence, END]
    backward = [END, *reversed(sentence), BEGIN]
    return [
        Position((forward[i], backward[i]), (forward[i + 1], backward[i + 1]))
        for i in range(len(sentence) + 1)
    ]


def streams(text: list[list[str]], rows: int, seed: int, epochs: int):
    """The stream of each row: its piece of the line of every epoch."""
    result: list[list[Position]] = [[] for _ in range(rows)]
    for epoch in range(epochs):
        keys = np.random.Philox(key=[seed, epoch]).random_raw(len(text)).tolist()
        order = sorted(range(len(text)), key=keys.__getitem__)
        line = [position for i in order for position in positions(text[i])]
        piece = -(-len(line) // rows)
        for row in range(rows):
            for at in range(row * piece, (row + 1) * piece):
                result[row].append(line[at % len(line)])
    return result


def letters_of(word: str, columns: int) -> np.ndarray:
    marks = {BEGIN: "<S>", END: "</S>"}
    return encode_words([marks.get(word, word)], columns)[0]


def number_of(word: str, corpus) -> int:
    """The id of a target; `<S>` in the text is the vocabulary's first entry too."""
    marks = {BEGIN: 0, END: 1}
    known = corpus.vocabulary.words
    if word in marks:
        return marks[word]
    return known.index(word) if word in known else 2


def check_table(batch, full: int, widest: int):
    """Distinct rows, of which padding was cut only where no filter can tell."""
    assert batch.words.dtype == batch.inputs.dtype == batch.targets.dtype == np.int32
    used = np.unique(batch.inputs)
    assert used.tolist() == list(range(len(used))), "rows that no position reads"
    assert not np.any(batch.words[len(used) :]), "rows without a word are 0"
    assert batch.words.shape[1] <= full
    if batch.words.shape[1] < full:
        assert np.all(batch.words[: len(used), -widest:] == 261)


def check(corpus, batch, window: list[list[Position]]):
    """A batch says what the lists of positions say, row by row."""
    columns = batch.words.shape[1]
    for row, row_positions in enumerate(window):
        for t, position in enumerate(row_positions):
            for direction in range(2):
                wanted = letters_of(position.inputs[direction], 50)
                got = batch.words[batch.inputs[direction, row, t]]
                np.testing.assert_array_equal(got, wanted[:columns])
                assert set(wanted[columns:]) <= {261}, "letters were cut off"
                target = number_of(position.targets[direction], corpus)
                assert batch.targets[direction, row, t] == target


def words_of(corpus, multiple=1, most=50):
    """With filters up to a width of 5, so that columns can be cut."""
    encoder = CharCnnConfig(((2, 3), (5, 4)), max_characters=most)
    return Words(corpus, corpus.vocabulary, replace(TINY, encoder=encoder), multiple)


shapes = st.tuples(st.integers(1, 8), st.integers(1, 7), st.integers(0, 3))


@hypothesis.settings(max_examples=60)
@hypothesis.given(sentences, shapes, st.integers(1, 8))
def test_training_batches_are_the_definition(text, shape, known):
    rows, window, seed = shape
    corpus = corpus_of(text, known)
    made = TrainingText(corpus, words_of(corpus), rows, window, seed)
    steps = made.steps(3)
    wanted = streams(text, rows, seed, 4 + window)
    for step in range(steps):
        batch = made.batch(step)
        assert batch.inputs.shape == batch.targets.shape == (2, rows, window)
        assert batch.weights.shape == (rows, window) and np.all(batch.weights == 1)
        here = [row[step * window : (step + 1) * window] for row in wanted]
        check(corpus, batch, here)
        check_table(batch, 50, 5)


@hypothesis.settings(max_examples=60)
@hypothesis.given(sentences, shapes)
def test_an_epoch_shows_every_position_once(text, shape):
    """Up to fewer repeats than there are rows; `steps` counts just these windows."""
    rows, window, seed = shape
    corpus = corpus_of(
        [[f"{i}.{j}" for j in range(len(s))] for i, s in enumerate(text)]
    )
    made = TrainingText(corpus, words_of(corpus), rows, window, seed)
    assert made.positions == sum(len(s) + 1 for s in text)
    seen = []
    for step in range(made.steps(2)):
        seen.append(np.stack(made.batch(step)[1:3]))
    assert made.epoch(made.steps(2)) >= 2 > made.epoch(made.steps(2) - 1)
    seen = np.concatenate(seen, axis=-1)  # inputs and targets, two, rows, stream
    # Every word occurs once, so a target names its position, and `</S>` its sentence.
    for epoch in range(2):
        now = slice(epoch * made.piece, (epoch + 1) * made.piece)
        for direction in range(2):
            count = Counter(seen[1, direction, :, now].ravel().tolist())
            mark = 1 - direction  # the forward direction ends with </S> = 1
            ends = count.pop(mark)
            words = [count[3 + i] for i in range(len(corpus.words))]
            assert set(count) == set(range(3, 3 + len(corpus.words)))
            repeated = sum(words) - len(words) + ends - len(text)
            assert min(words) >= 1 and ends >= len(text)
            assert 0 <= repeated < rows


def test_the_order_of_sentences_is_the_same_for_ever():
    """Whatever NumPy and whatever machine: these numbers must never be edited."""
    found = shuffled(1_000_000, np.random.Philox(key=[0, 0]))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found), np.arange(1_000_000))
    first = [220276, 68642, 368138, 763740, 341423, 504822, 123078, 320744]
    assert found[:8].tolist() == first
    assert shuffled(1, np.random.Philox(key=[3, 1])).tolist() == [0]
    corpus = corpus_of([[f"w{i:02}"] for i in range(30)])
    text = TrainingText(corpus, words_of(corpus), 2, 10, seed=2**63 - 1)
    assert text.batch(3).targets[0].tolist() == [
        [19, 1, 20, 1, 21, 1, 3, 1, 25, 1],
        [11, 1, 7, 1, 17, 1, 12, 1, 24, 1],
    ]


def test_a_shuffle_is_even():
    """Each number comes to each place as often, within six standard deviations."""
    bits, rounds, count = np.random.Philox(key=[7, 0]), 4000, 9
    seen = np.zeros((count, count))
    for _ in range(rounds):
        seen[np.arange(count), shuffled(count, bits)] += 1
    wanted, spread = rounds / count, (rounds / count * (1 - 1 / count)) ** 0.5
    assert np.abs(seen - wanted).max() < 6 * spread


def test_the_order_of_sentences_changes_with_seed_and_epoch():
    corpus = corpus_of([[f"w{i}"] for i in range(50)])

    def order(seed, epoch):
        """An epoch is one window of two positions a sentence."""
        text = TrainingText(corpus, words_of(corpus), 1, 100, seed)
        return tuple(text.batch(epoch).targets[0, 0].tolist())

    orders = [order(seed, epoch) for seed in range(2) for epoch in range(2)]
    assert len(set(orders)) == 4
    assert len({tuple(sorted(o)) for o in orders}) == 1
    assert orders[0] == order(0, 0)


def big_corpus(words=4000):
    random = np.random.default_rng(0)
    pick = random.integers(0, 700, words)
    return corpus_of(np.array_split([f"w{i}é" for i in pick], words // 9), 300)


def test_a_batch_is_a_pure_function_of_its_step():
    corpus = big_corpus(400)
    text = TrainingText(corpus, words_of(corpus), 5, 7, 0)
    steps = [0, 3, 60, 61, 0, 30, 3, 200, 61]
    seen: dict[int, list[np.ndarray]] = {}
    for step in steps:
        batch = text.batch(step)
        fresh = TrainingText(corpus, words_of(corpus), 5, 7, 0).batch(step)
        for one, other in zip(batch, seen.setdefault(step, fresh), strict=True):
            np.testing.assert_array_equal(one, other)


def read(batch, shards):
    """The ids at each position [two, rows, window], out of the shards' tables."""
    tables = np.split(batch.words, shards)
    rows = np.split(batch.inputs, shards, axis=1)
    return np.concatenate([t[r] for t, r in zip(tables, rows, strict=True)], axis=1)


def test_rows_do_not_depend_on_the_number_of_devices():
    """Every shard has a table of its own words, and that is all."""
    corpus = big_corpus()
    texts = {n: TrainingText(corpus, words_of(corpus, n), 24, 20, 3) for n in (1, 8, 3)}
    for step in range(0, 40, 7):
        whole = texts[1].batch(step)
        check_table(whole, 50, 5)
        for shards, text in texts.items():
            batch = text.batch(step)
            tables = np.split(batch.words, shards)
            inputs = np.split(batch.inputs, shards, axis=1)
            for table, places in zip(tables, inputs, strict=True):
                check_table(batch._replace(words=table, inputs=places), 50, 5)
            np.testing.assert_array_equal(batch.targets, whole.targets)
            np.testing.assert_array_equal(read(batch, shards), read(whole, 1))


def test_a_process_reads_its_rows_alone():
    """What it gets is its share of what one process gets, in tables of agreed size."""
    corpus = big_corpus()
    words = words_of(corpus, 4)
    whole = TrainingText(corpus, words, 24, 20, 3).batch(5)
    asked = []

    def sizes(words, columns):
        asked.append((words, columns))
        return 300, 17  # what another process needs

    for local in ((0,), (3, 1)):
        part = TrainingText(corpus, words, 24, 20, 3, local=local).batch(5, sizes)
        rows = np.concatenate([np.arange(6 * s, 6 * s + 6) for s in local])
        assert part.words.shape == (len(local) * 320, 32)
        np.testing.assert_array_equal(part.targets, whole.targets[:, rows])
        got, wanted = read(part, len(local)), read(whole, 4)[:, rows]
        columns = wanted.shape[-1]
        np.testing.assert_array_equal(got[..., :columns], wanted)
    assert all(0 < words < 256 and columns < 17 for words, columns in asked)


@pytest.mark.parametrize(("shards", "pieces"), [(1, 2), (2, 3), (4, 2)])
def test_pieces_hold_a_share_of_each_shard(shards, pieces):
    corpus = big_corpus()
    words = words_of(corpus, shards)
    whole = TrainingText(corpus, words, 24, 20, 3).batch(5)
    batch = TrainingText(corpus, words, 24, 20, 3, pieces=pieces).batch(5)
    rows = np.arange(24).reshape(shards, pieces, -1)
    for number in range(pieces):
        piece = type(batch)(*(array[number] for array in batch[:4]))
        wanted = rows[:, number].ravel()
        np.testing.assert_array_equal(piece.targets, whole.targets[:, wanted])
        np.testing.assert_array_equal(
            read(piece, shards), read(whole, shards)[:, wanted]
        )
    array = np.arange(5 * 24 * 2).reshape(5, 24, 2)
    taken = split_rows(array, 1, shards, pieces)
    np.testing.assert_array_equal(taken[1, :, 0], array[:, rows[0, 1, 0]])
    np.testing.assert_array_equal(join_rows(taken, 1, shards), array)


def plain_tables(ids, types):
    """Tables and places of the shards of `types` [shards, ...], by np.unique."""
    pairs = [np.unique(shard, return_inverse=True) for shard in types]
    height = padded_size(max(len(distinct) for distinct, _ in pairs), 256, 4)
    result = np.zeros((len(pairs), height, ids.shape[1]), np.int32)
    for table, (distinct, _) in zip(result, pairs, strict=True):
        table[: len(distinct)] = ids[distinct]
    places = [p.reshape(types.shape[1:]) for _, p in pairs]
    return result.reshape(-1, ids.shape[1]), np.concatenate(places, axis=1)


@pytest.mark.parametrize("below", [0, 10**9], ids=["sorted", "marked"])
@pytest.mark.parametrize("shards", [1, 3])
def test_batches_are_those_of_a_plain_formulation(monkeypatch, below, shards):
    """Number by number, whichever way the distinct words are found."""
    monkeypatch.setattr(tables, "SORT_BELOW", below)
    random = np.random.default_rng(1)
    corpus = corpus_of(
        [[f"w{i}é" for i in random.zipf(1.3, size) % 500] for size in range(1, 60)]
    )
    rows, window, seed = 12, 7, 3
    words = words_of(corpus, shards)
    text = TrainingText(corpus, words, rows, window, seed)
    ids = encode_words(corpus.types, 50).astype(np.int32)
    number = {word: i for i, word in enumerate(corpus.types)} | {BEGIN: 0, END: 1}
    lines = [[corpus.types[i] for i in s] for s in sentences_of(corpus)]
    wanted = streams(lines, rows, seed, 3)
    for step in range(text.steps(2)):
        here = [row[step * window : (step + 1) * window] for row in wanted]
        inputs, targets = (
            np.array(
                [
                    [[number[getattr(p, kind)[n]] for p in row] for row in here]
                    for n in range(2)
                ]
            )
            for kind in ("inputs", "targets")
        )
        batch = text.batch(step)
        split = np.stack(np.split(inputs, shards, axis=1))
        table, places = plain_tables(ids[:, : batch.words.shape[1]], split)
        np.testing.assert_array_equal(batch.words, table)
        np.testing.assert_array_equal(batch.inputs, places)
        np.testing.assert_array_equal(batch.targets, words.targets[targets])
        assert batch.words.dtype == batch.inputs.dtype == batch.targets.dtype == "i4"


def sentences_of(corpus):
    return np.split(corpus.words, corpus.offsets[1:-1])


def test_a_whole_run_has_few_shapes():
    corpus = big_corpus()
    text = TrainingText(corpus, words_of(corpus), 24, 20, 3)
    shapes = {text.batch(step).words.shape for step in range(text.steps(3))}
    assert shapes <= {(320, 16), (384, 16), (448, 16)}


@pytest.mark.parametrize("most", [12, 16, 32, 50])
@pytest.mark.parametrize("size", [1, 9, 10, 11, 24, 25, 26, 43, 44, 45, 60])
def test_columns_are_cut_only_where_it_is_safe(most, size):
    corpus = corpus_of([["a", "b" * size]])
    words = words_of(corpus, most=most)
    (table,), (rows,) = words.unique([np.array([3, 4, 4])])
    columns = table.shape[1]
    wanted = encode_words(corpus.types, most)[[3, 4, 4]]
    np.testing.assert_array_equal(table[rows], wanted[:, :columns])
    assert np.all(wanted[:, columns:] == 261)
    needed = size + 2 + 5  # the word, its marks, a window of padding
    least = min(c for c in (16, 32, most, 10**9) if c >= min(needed, most))
    assert columns == min(most, least)


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_unknown_words_keep_their_letters_but_not_their_target(kind):
    corpus = corpus_of([["no", "no", "rare", "odd"]], known=1)
    if kind == "characters":
        words = words_of(corpus)
        wanted = encode_words(["<S>", "no", "no", "rare", "odd"], 50)[:, :16]
    else:
        model = replace(TINY, encoder=WordTableConfig(4, 6))
        words = Words(corpus, corpus.vocabulary, model, 1)
        wanted = np.array([0, 3, 3, 2, 2]) + 1
    batch = TrainingText(corpus, words, 1, 5, 0).batch(0)
    np.testing.assert_array_equal(batch.words[batch.inputs[0, 0]], wanted)
    assert batch.targets[0, 0].tolist() == [3, 3, 2, 2, 1]
    assert batch.targets[1, 0].tolist() == [2, 2, 3, 3, 0]


def dealt(text: list[list[str]], rows: int) -> list[list[Position]]:
    """Whole sentences to rows: row r begins with the first sentence that begins at or
    after r / rows of all positions."""
    total = sum(len(s) + 1 for s in text)
    result: list[list[Position]] = [[] for _ in range(rows)]
    start = 0
    for sentence in text:
        row = max(r for r in range(rows) if r * total // rows <= start)
        result[row] += positions(sentence)
        start += len(sentence) + 1
    return result


@hypothesis.settings(max_examples=60)
@hypothesis.given(sentences, shapes, st.integers(1, 8))
def test_held_out_text_is_read_once_in_order(text, shape, known):
    rows, window, _ = shape
    corpus = corpus_of(text, known)
    wanted = dealt(text, rows)
    in_order = [p for sentence in text for p in positions(sentence)]
    assert [p for row in wanted for p in row] == in_order
    batches = list(heldout_batches(corpus, words_of(corpus), rows, window))
    longest = max(map(len, wanted))
    assert len(batches) == -(-longest // window), "the last partial batch counts too"
    for step, batch in enumerate(batches):
        here = [row[step * window : (step + 1) * window] for row in wanted]
        check(corpus, batch, here)
        weights = [[1.0] * len(row) + [0.0] * (window - len(row)) for row in here]
        np.testing.assert_array_equal(batch.weights, weights)
        assert batch.inputs.shape == batch.targets.shape == (2, rows, window)


def test_steps_of_part_of_an_epoch():
    corpus = corpus_of([["a"] * 9] * 10)  # 100 positions
    text = TrainingText(corpus, words_of(corpus), 4, 5, 0)  # 25 a row and epoch
    assert [text.steps(e) for e in (0.001, 0.2, 0.21, 1, 2.5)] == [1, 1, 2, 5, 13]
    assert text.epoch(5) == 1.0
