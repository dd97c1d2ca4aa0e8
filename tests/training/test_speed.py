"""What a run says of its speed, and of where its time went."""

from __future__ import annotations

import pytest
from toys import corpus_of

from elmojax.cli.pretrain import ProgressBar
from elmojax.config import ElmoConfig, HeadConfig, MeshConfig, TrainConfig
from elmojax.training import metrics, utilization
from elmojax.training.metrics import Clock
from elmojax.training.sharding import make_mesh
from elmojax.training.step import LanguageModel
from elmojax.training.utilization import chip_named, lstm_flops

CORPUS = corpus_of([["a", "b", "b"], ["b", "c"]] * 20)


@pytest.fixture
def times(monkeypatch):
    """The clock of the machine, set by hand."""
    times = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: times[0])
    return times


def test_where_the_time_went(times):
    made = Clock(tokens_per_step=10)

    def batches():
        for batch in range(3):
            times[0] += 1  # until it is there
            yield batch

    for batch in made.awaited(batches()):
        if batch == 0:
            with made.spent("compiling"):
                times[0] += 6
        times[0] += 2
        made.tick()
    with made.spent("evaluation"):
        times[0] += 5
    assert made.rate() == 2 * 10 / (2 * 3)  # of the steps that do not compile
    assert made.summary() == (
        "Time: 20.0 s, of which steps 6.0 s (30%), compiling 6.0 s (30%), waiting for "
        "data 3.0 s (15%), evaluation 5.0 s (25%), checkpoints 0.0 s (0%)."
    )


def test_what_is_awaited_may_fail(times):
    def batches():
        yield 0
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        list(Clock(1).awaited(batches()))


def test_utilization_of_known_chips(monkeypatch):
    model, head = ElmoConfig.preset("mini"), HeadConfig(cutoffs=(4,))
    config = TrainConfig(model=model, head=head, rows=8, window=5)
    mesh = make_mesh(MeshConfig(2, 1))
    lm = LanguageModel(model, CORPUS.vocabulary, head, mesh=mesh)
    unknown = utilization.utilization(config, lm, CORPUS)
    assert unknown(1e3) == {}  # a CPU
    chip = chip_named("h100")
    monkeypatch.setattr(utilization, "chip_of", lambda kind: chip)
    numbers = utilization.utilization(config, lm, CORPUS)(1e6)
    assert numbers["tokens_per_second_per_chip"] == 5e5
    least = 5e5 * lstm_flops(model.lstm) / chip.float32
    assert least < numbers["mfu"] < 2 * least


def test_the_progress_line(capsys):
    progress = ProgressBar()
    progress.begin(0, 100)
    numbers = {"loss": 5.0, "tokens": 100.0, "tokens_per_second": 2e6}
    progress.log(10, {**numbers, "tokens_per_second_per_chip": 1e6, "mfu": 0.4567})
    progress.close()
    said = "loss 5.000, 2,000,000 tokens/s (1,000,000 a chip, MFU 45.7%), 00:00 left"
    assert said in capsys.readouterr().err
