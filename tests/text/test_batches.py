"""Batches against a slow generator written from the definition, as lists of words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from toys import TINY, corpus_of

from elmojax.config import CharCnnConfig, HeadConfig, WordTableConfig
from elmojax.text import tables
from elmojax.text.batches import (
    TrainingText,
    heldout_batches,
    join_rows,
    shuffled,
    split_rows,
)
from elmojax.text.characters import character_ids
from elmojax.text.tables import (
    RARE,
    SHORT,
    Capacities,
    Frequencies,
    Sizes,
    WordTables,
    bound,
    positions_seen,
    table_columns,
)

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
    return character_ids([marks.get(word, word)], columns)[0]


def number_of(word: str, corpus) -> int:
    """The id of a target; `<S>` in the text is the vocabulary's first entry too."""
    marks = {BEGIN: 0, END: 1}
    known = corpus.vocabulary.words
    if word in marks:
        return marks[word]
    return known.index(word) if word in known else 2


def tables_of(batch, shards: int = 1, full: int = 50) -> list[np.ndarray]:
    """The rows of each shard, table after table, in full width: 0 where no word is."""
    wide = []
    for table in batch.words:
        missing = full - table.shape[1]
        filling = np.where(table[:, :1] > 0, 261, 0) * np.ones((1, missing), np.int32)
        wide.append(np.concatenate([table, filling], axis=1))
    parts = (np.split(table, shards) for table in wide)
    return [np.concatenate(own) for own in zip(*parts, strict=True)]


def check_table(batch, shards: int = 1):
    """Each word once, in the first rows of its table."""
    for array in (*batch.words, batch.inputs, batch.targets):
        assert array.dtype == np.int32
    places = np.split(batch.inputs, shards, axis=1)
    pairs = zip(tables_of(batch, shards), places, strict=True)
    for shard, (table, rows) in enumerate(pairs):
        words = table.any(axis=1)
        assert np.unique(rows).tolist() == np.flatnonzero(words).tolist()
        assert len(np.unique(table[words], axis=0)) == words.sum()
        for own in (np.split(table, shards)[shard] for table in batch.words):
            used = own.any(axis=1)
            assert not np.any(np.diff(used.astype(int)) > 0), "gaps between words"


def check(corpus, batch, window: list[list[Position]]):
    """A batch says what the lists of positions say, row by row."""
    (table,) = tables_of(batch)
    for row, row_positions in enumerate(window):
        for t, position in enumerate(row_positions):
            for direction in range(2):
                wanted = letters_of(position.inputs[direction], 50)
                got = table[batch.inputs[direction, row, t]]
                np.testing.assert_array_equal(got, wanted)
                target = number_of(position.targets[direction], corpus)
                assert batch.targets[direction, row, t] == target


def words_of(corpus, multiple=1, most=50, **options):
    """With filters up to a width of 5, so that columns can be cut."""
    encoder = CharCnnConfig(((2, 3), (5, 4)), max_characters=most)
    model = replace(TINY, encoder=encoder)
    return WordTables(corpus, corpus.vocabulary, model, multiple, **options)


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
        check_table(batch)


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
        now = slice(epoch * made.row_positions, (epoch + 1) * made.row_positions)
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
        other = seen.setdefault(step, fresh)
        jax.tree.map(np.testing.assert_array_equal, batch, other)


def read(batch, shards):
    """The ids at each position [two, rows, window], out of the shards' tables."""
    rows = np.split(batch.inputs, shards, axis=1)
    pairs = zip(tables_of(batch, shards), rows, strict=True)
    return np.concatenate([table[row] for table, row in pairs], axis=1)


def test_rows_do_not_depend_on_the_number_of_devices():
    """Every shard has tables of its own words, and that is all."""
    corpus = big_corpus()
    texts = {n: TrainingText(corpus, words_of(corpus, n), 24, 20, 3) for n in (1, 8, 3)}
    for step in range(0, 40, 7):
        whole = texts[1].batch(step)
        for shards, text in texts.items():
            batch = text.batch(step)
            check_table(batch, shards)
            np.testing.assert_array_equal(batch.targets, whole.targets)
            np.testing.assert_array_equal(read(batch, shards), read(whole, 1))


def test_a_process_reads_its_rows_alone():
    """What it gets is its share of what one process gets, in arrays of the same size,
    larger ones where another process needs them."""
    corpus = big_corpus()
    head = HeadConfig("adaptive", (20, 100))
    words = words_of(corpus, 4, head=head)
    whole = TrainingText(corpus, words, 24, 20, 3).batch(5)
    for local, level in (((0,), 0), ((3, 1), 2)):
        text = TrainingText(corpus, words, 24, 20, 3, local=local)
        found, part = text.batch_at_level(5, level)
        sizes = text.capacities.at(level)
        assert found == level
        assert [len(t) for t in part.words] == [len(local) * n for n in sizes.words]
        for tail, size in zip(part.members, sizes.members, strict=True):
            assert tail.positions.shape == tail.targets.shape == (len(local), size)
        rows = np.concatenate([np.arange(6 * s, 6 * s + 6) for s in local])
        np.testing.assert_array_equal(part.targets, whole.targets[:, rows])
        got, wanted = read(part, len(local)), read(whole, 4)[:, rows]
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("shards", "microbatches"), [(1, 2), (2, 3), (4, 2)])
def test_microbatches_hold_a_share_of_each_shard(shards, microbatches):
    corpus = big_corpus()
    words = words_of(corpus, shards)
    whole = TrainingText(corpus, words, 24, 20, 3).batch(5)
    batch = TrainingText(corpus, words, 24, 20, 3, microbatches=microbatches).batch(5)
    rows = np.arange(24).reshape(shards, microbatches, -1)
    for number in range(microbatches):
        words, *rest = batch[:4]
        piece = type(batch)(tuple(t[number] for t in words), *(a[number] for a in rest))
        wanted = rows[:, number].ravel()
        np.testing.assert_array_equal(piece.targets, whole.targets[:, wanted])
        np.testing.assert_array_equal(
            read(piece, shards), read(whole, shards)[:, wanted]
        )
    array = np.arange(5 * 24 * 2).reshape(5, 24, 2)
    taken = split_rows(array, 1, shards, microbatches)
    np.testing.assert_array_equal(taken[1, :, 0], array[:, rows[0, 1, 0]])
    np.testing.assert_array_equal(join_rows(taken, 1, shards), array)


def plain_tables(ids, long, types, sizes):
    """Tables and places of the shards of `types` [shards, ...], by np.unique."""
    tables = [np.zeros((len(types), size, ids.shape[1]), np.int32) for size in sizes]
    places = []
    for shard, own in enumerate(types):
        row = {}
        for kind, (table, begin) in enumerate(zip(tables, (0, sizes[0]), strict=True)):
            words = [word for word in np.unique(own) if long[word] == kind]
            table[shard, : len(words)] = ids[words]
            row |= {word: begin + n for n, word in enumerate(words)}
        places.append(np.vectorize(row.get)(own))
    tables = [table.reshape(-1, ids.shape[1]) for table in tables]
    return tables, np.concatenate(places, axis=1)


def plain_members(targets, edges):
    """Positions and numbers of the targets of a shard in each tail, one by one."""
    two, rows, window = targets.shape
    tails = [([], []) for _ in edges[1:]]
    for time in range(window):
        for direction in range(two):
            for row in range(rows):
                target = targets[direction, row, time]
                for tail, (low, high) in zip(tails, pairwise(edges), strict=True):
                    if low <= target < high:
                        tail[0].append((time * 2 + direction) * rows + row)
                        tail[1].append(target - low)
    return tails


@pytest.mark.parametrize("below", [0, 10**9], ids=["sorted", "marked"])
@pytest.mark.parametrize("shards", [1, 3])
def test_batches_are_those_of_a_plain_formulation(monkeypatch, below, shards):
    """Number by number, whichever way the distinct words are found."""
    monkeypatch.setattr(tables, "SORT_BELOW", below)
    random = np.random.default_rng(1)
    numbers = [random.zipf(1.3, size) % 500 for size in range(1, 60)]
    corpus = corpus_of([[f"w{i}{'é' * (i % 9)}" for i in line] for line in numbers])
    rows, window, seed = 12, 7, 3
    words = words_of(corpus, shards, head=HeadConfig("adaptive", (3, 50, 200)))
    text = TrainingText(corpus, words, rows, window, seed)
    long = [len(word.encode()) > SHORT for word in corpus.types]
    assert words.columns == (SHORT + 7, 50)
    ids = character_ids(corpus.types, 50).astype(np.int32)
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
        sizes = text.capacities.usual
        wide, places = plain_tables(ids, long, split, sizes.words)
        for table, wanted_table in zip(batch.words, wide, strict=True):
            columns = table.shape[1]
            np.testing.assert_array_equal(table, wanted_table[:, :columns])
            assert set(np.unique(wanted_table[:, columns:])) <= {0, 261}
        np.testing.assert_array_equal(batch.inputs, places)
        for shard, own in enumerate(np.split(batch.targets, shards, axis=1)):
            tails = plain_members(own, words.edges)
            for tail, (where, names) in zip(batch.members, tails, strict=True):
                rest = tail.positions.shape[1] - len(where)
                positions = where + [own.size] * rest
                assert tail.positions[shard].tolist() == positions
                assert tail.targets[shard].tolist() == names + [0] * rest
        np.testing.assert_array_equal(batch.targets, words.targets[targets])
        check_table(batch, shards)


def sentences_of(corpus):
    return np.split(corpus.words, corpus.offsets[1:-1])


def test_a_whole_run_has_one_shape():
    corpus = big_corpus()
    for microbatches in (1, 2):
        words = words_of(corpus, 2, head=HeadConfig("adaptive", (20, 100)))
        text = TrainingText(corpus, words, 24, 20, 3, microbatches=microbatches)
        assert {text.batch_at_level(step)[0] for step in range(text.steps(3))} == {0}


def bursty_corpus():
    """Few words in most sentences, and one in which all words are new and long."""
    common = [["the", "river", "bank"]] * 400
    return corpus_of([*common, [f"{'y' * 40}{i}" for i in range(300)]], known=200)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_step_with_more_words_than_usual_has_larger_arrays(microbatches):
    """Not one word is lost, and not one target."""
    corpus = bursty_corpus()
    head = HeadConfig("adaptive", (5, 30))
    words = words_of(corpus, 2, head=head, split=3)
    text = TrainingText(corpus, words, 4, 200, 0, microbatches=microbatches)
    levels = []
    for step in range(text.steps(1)):
        level, batch = text.batch_at_level(step)
        levels.append(level)
        sizes = text.capacities.at(level)
        assert all(size % 8 == size % 3 == 0 for size in sizes.words)
        parts = 2 * microbatches
        for table, size in zip(batch.words, sizes.words, strict=True):
            assert table.shape[:-1] == ((microbatches,) if microbatches > 1 else ()) + (
                2 * size,
            )
        clusters = zip(batch.members, pairwise(words.edges), strict=True)
        for tail, (low, high) in clusters:
            inside = (batch.targets >= low) & (batch.targets < high)
            own = tail.positions < 2 * 4 * 200 // parts
            assert inside.sum() == own.sum()
        again = text.batch_at_level(step, level + 1)
        assert again[0] == level + 1
        np.testing.assert_array_equal(again[1].targets, batch.targets)
    assert min(levels) == 0 < max(levels)


def test_sizes_double_up_to_what_can_occur():
    usual, most = Sizes((64, 128), (8,), 0), Sizes((192, 1024), (48,), 0)
    sizes = Capacities(usual, most)
    assert sizes.at(0) == usual and sizes.at(9) == most
    assert sizes.at(1) == Sizes((128, 256), (16,), 0)
    assert sizes.level(Sizes((65, 1), (1,))) == 1
    assert sizes.level(Sizes((1, 129), (33,))) == 3
    assert sizes.level(Sizes((1, 1), (1,)), 2) == 2
    assert Sizes((65, 1), (133, 1001)).rounded(3) == Sizes((72, 24), (144, 1024))


def test_windows_show_what_is_counted_one_by_one():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 40, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    window, total, seen = 7, 0, 0
    for length in lengths + 1:
        for begin in range(1 - window, length):
            here = {at for at in range(begin, begin + window) if 0 <= at < length}
            total += len(here)
            seen += len(here | {length - 1 - at for at in here})
    assert positions_seen(offsets, window) == pytest.approx(seen / total, rel=1e-12)
    assert positions_seen(np.arange(0, 99, 9), 10_000) == pytest.approx(1, abs=2e-3)


def test_capacities_are_seldom_exceeded_and_not_wasteful():
    """Words drawn by their shares: the mean is met, and the bound holds."""
    random, draws = np.random.default_rng(0), 1280
    share = 1 / np.arange(1, 20_001)
    share /= share.sum()
    tables = (share[::2], share[1::2])
    text = Frequencies(tables, share)
    drawn = [np.unique(random.choice(len(share), draws, p=share)) for _ in range(200)]
    for first, (mean, size) in enumerate(
        zip(text.distinct(draws), text.capacities(64, 20).usual.words, strict=True)
    ):
        counts = np.array([np.sum(words % 2 == first) for words in drawn])
        assert mean == pytest.approx(counts.mean(), rel=0.01)
        assert counts.max() < size < 1.35 * mean + 64
    assert bound(50.0, 50.0, 1) < bound(50.0, 50.0, 1000) < 50 + 7 * 50**0.5
    poisson = random.poisson(9, 2_000_000)
    assert np.mean(poisson > bound(9.0, 9.0, 1)) <= 3 * RARE


@pytest.mark.parametrize("most", [12, 16, 32, 50])
@pytest.mark.parametrize("size", [1, 9, 11, 12, 26, 60])
def test_columns_are_cut_only_where_it_is_safe(most, size):
    corpus = corpus_of([["a", "b" * size]])
    words = words_of(corpus, most=most)
    assert table_columns(CharCnnConfig(((5, 1),), max_characters=most)) == (
        min(most, 18),
        most,
    )
    types = np.array([3, 4, 4])
    found = words.distinct(types)
    sizes = [64] * len(words.columns)
    tables = words.tables([found], sizes)
    rows = words.rows(types, found, sizes)
    wanted = character_ids(corpus.types, most)[types]
    for row, ids in zip(rows, wanted, strict=True):
        (table,) = tables[row // 64]
        columns = table.shape[1]
        np.testing.assert_array_equal(table[row % 64], ids[:columns])
        assert columns == most or np.all(ids[columns - 5 :] == 261)
    wide = size > SHORT and most > 18
    assert words.columns == ((18, most) if wide else (min(most, 18),))


@pytest.mark.parametrize("kind", ["characters", "words"])
def test_unknown_words_keep_their_letters_but_not_their_target(kind):
    corpus = corpus_of([["no", "no", "rare", "odd"]], known=1)
    if kind == "characters":
        words = words_of(corpus)
        wanted = character_ids(["<S>", "no", "no", "rare", "odd"], 50)[:, :18]
    else:
        model = replace(TINY, encoder=WordTableConfig(4, 6))
        words = WordTables(corpus, corpus.vocabulary, model, 1)
        wanted = np.array([0, 3, 3, 2, 2]) + 1
    batch = TrainingText(corpus, words, 1, 5, 0).batch(0)
    (table,) = batch.words
    np.testing.assert_array_equal(table[batch.inputs[0, 0]], wanted)
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
    found = heldout_batches(corpus, words_of(corpus), rows, window)
    batches = [batch for batch, _ in found]
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
