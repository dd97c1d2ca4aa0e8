"""Workers of Ray write what one machine writes, whatever ends or kills them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import TINY, tiny_params

from elmojax import cluster
from elmojax.cluster import connected, embed_files
from elmojax.embedding.embedder import Embedder
from elmojax.errors import InputError
from elmojax.text.files import read_text
from elmojax.vectors import jobs
from elmojax.vectors.jobs import Job, Task, Worker
from elmojax.vectors.output import open_output
from elmojax.vectors.unfinished import TextProgress
from elmojax.vectors.writer import Form

if not (find_spec("ray") and find_spec("pyarrow")):
    pytest.skip("needs Ray and pyarrow", allow_module_level=True)

from elmojax.vectors import parquet

# Ray Data warns of settings of its own as it makes them.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

BATCH = 40
FORM = Form((3, 2 * TINY.lstm.projection))


class Small:
    """Parts of a few words; on a worker, only its own process has them."""

    def __init__(self):
        self.before = parquet._PART

    def __enter__(self):
        parquet._PART = 30

    def __exit__(self, *_):
        parquet._PART = self.before


@pytest.fixture(scope="module", autouse=True)
def _two_workers(quick_compilation):
    """One cluster of this machine for all tests."""
    name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # They must compile as this process does.
        patch.setenv(name, os.environ.get(name, "1"))
        stack.enter_context(connected(workers=2))
        import ray  # Not before: it chooses then where it listens.

        (node,) = ray.nodes()
        assert node["NodeManagerAddress"] == "127.0.0.1"
        yield
    assert not ray.is_initialized()


@pytest.fixture
def actor(monkeypatch):
    """`actor(change)`: the actors of this test call `change` when they begin. Ray sends
    a class that is not in a module as it is."""

    def use(change=None):
        part = 30

        class Changed(Worker):
            def __call__(self, batch):
                from elmojax.vectors import parquet

                parquet._PART = part
                if change is not None:
                    change()
                return super().__call__(batch)

        monkeypatch.setattr(cluster, "Worker", Changed)

    use()
    return use


@pytest.fixture
def params():
    return tiny_params()


@pytest.fixture
def texts(tmp_path, sample_lines, monkeypatch) -> list[Path]:
    """Five of different sizes by names that are not absolute, one with long lines."""
    monkeypatch.chdir(tmp_path)
    lines = sample_lines(60)
    parts = [lines[:3], lines[3:30], ["a"], lines[30:33] * 4, ["", *lines[33:40], ""]]
    parts[3].append(" ".join(lines[40:50]))
    paths = [Path(f"text {number}.txt") for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_text("".join(f"{line}\n" for line in part), encoding="utf-8")
    return paths


def by_ray(out, params, texts, **options):
    job = Job(params, batch_tokens=BATCH)
    with open_output(Path(out), texts, FORM) as output:
        totals = embed_files(job, texts, output, **{"workers": 2, **options})
        output.finish()
    return totals


def alone(out, params, texts, stop=10**9):
    """One machine, which ends early after `stop` blocks."""
    left = stop

    def blocks(text, skip):
        nonlocal left
        embedder = Embedder(params, batch_tokens=BATCH)
        for block in embedder.blocks(text.sentences(), skip):
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            yield block

    with Small(), open_output(Path(out), list(map(read_text, texts)), FORM) as output:
        output.fill(blocks)
        output.finish()


def snapshot(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def task_of(params, texts, output) -> Task:
    return Task(
        job=Job(jax.tree.map(np.asarray, params), batch_tokens=BATCH),
        names=tuple(map(str, texts)),
        home=Path.cwd(),
        directory=output.directory.absolute(),
        form=output.form,
        errors="strict",
        overwrite=False,
        on_cpu=True,
        accelerator=None,
        threads=1,
        run="1",
    )


@pytest.mark.parametrize(
    ("machines", "wanted"),
    [({"CPU": 8.0}, (None, 0)), ({"GPU": 2.0}, ("GPU", 2)), ({"TPU": 8.0}, ("TPU", 8))],
)
def test_workers_take_the_accelerators_that_there_are(machines, wanted, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: machines)
    assert cluster._accelerators() == wanted


def test_two_workers_write_what_one_machine_writes(params, texts, actor):
    alone("wanted.parquet", params, texts)
    done = []
    totals = by_ray("out.parquet", params, texts, report=done.append)
    sizes = [read_text(text).sizes for text in texts]
    assert totals == (sum(map(len, sizes)), sum(size.sum() for size in sizes))
    assert sorted(done) == sorted(int(size.sum()) for size in sizes)
    wanted = snapshot("wanted.parquet")
    assert len(wanted) > len(texts) + 3
    assert snapshot("out.parquet") == wanted
    assert not Path("out.parquet.partial").exists()


def test_a_run_that_is_ended_in_every_way(params, texts, actor):
    """One machine begins; Ray goes on up to a bad text; once that is mended, a worker
    dies after it wrote a part, and the next goes on after it."""
    alone("wanted.parquet", params, texts)
    with pytest.raises(KeyboardInterrupt):
        alone("out.parquet", params, texts, stop=5)
    partial = Path("out.parquet.partial").absolute()
    assert TextProgress.read(partial, 0).done == 3
    begun = TextProgress.read(partial, 1)
    assert 0 < begun.done < begun.lines

    good = texts[3].read_bytes()
    texts[3].write_bytes(good.replace(b"\n", b"\n\xff\n", 1))
    with pytest.raises(InputError, match=r"^Line 2 of text 3.txt is not UTF-8"):
        by_ray("out.parquet", params, texts, workers=1)
    assert not Path("out.parquet").exists()
    assert TextProgress.read(partial, 1).done == begun.lines
    assert TextProgress.read(partial, 3) is None
    parts = sorted(partial.glob("result/0000[012]-*.parquet"))
    written = [part.stat().st_mtime_ns for part in parts]

    texts[3].write_bytes(good)
    marker, kept = Path("died").absolute(), parquet.ParquetWriter._keep

    def die_once():
        def keep(self, done):
            kept(self, done)
            if not marker.exists() and self._number == 3:
                marker.write_text(str(done))
                os._exit(1)

        parquet.ParquetWriter._keep = keep

    actor(die_once)
    by_ray("out.parquet", params, texts)
    assert 0 < int(marker.read_text()) < 13
    assert snapshot("out.parquet") == snapshot("wanted.parquet")
    found = [Path("out.parquet", part.name).stat().st_mtime_ns for part in parts]
    assert found == written


def test_workers_that_keep_dying(params, texts, actor):
    def die():
        jobs._DEATHS = 2
        Worker._load = lambda self: os._exit(1)

    actor(die)
    with pytest.raises(InputError, match=r"^2 workers died with text 1.txt at line 0"):
        by_ray("out.parquet", params, texts[1:2], workers=1)


def test_a_cluster_by_its_address(params, texts, monkeypatch):
    """From a process of its own, which leaves it running and says nothing."""
    import ray

    # Bit for bit on as many devices as the workers of the cluster have.
    monkeypatch.setattr(jobs, "local_mesh", lambda: None)

    with open_output(Path("wanted.parquet"), texts[:2], FORM) as output:
        task = task_of(params, texts[:2], output)
        made = Worker(lambda: task)
        assert [len(made.embed(number).sizes) for number in (0, 1)] == [3, 27]
        output.finish()
    Path("params").write_bytes(pickle.dumps(jax.tree.map(np.asarray, params)))
    program = f"""
import pickle
from pathlib import Path
from elmojax.cluster import embed_files
from elmojax.vectors.jobs import Job
from elmojax.vectors.output import open_output
from elmojax.vectors.writer import Form
params = pickle.loads(Path("params").read_bytes())
texts = [Path("text 0.txt"), Path("text 1.txt")]
with open_output(Path("out.parquet"), texts, Form({FORM.shape})) as output:
    address = {ray.get_runtime_context().gcs_address!r}
    embed_files(Job(params, batch_tokens={BATCH}), texts, output, address=address)
    output.finish()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert snapshot("out.parquet") == snapshot("wanted.parquet")
    assert ray.nodes()[0]["Alive"]


def test_no_such_cluster(monkeypatch):
    import ray

    monkeypatch.setattr(cluster, "_HEALTH", 0.5)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, message in (
        ("127.0.0.1:9", "There is no Ray cluster at 127.0.0.1:9; start one"),
        ("nonsense", "There is no Ray cluster at nonsense"),
        ("ray://127.0.0.1:10001", "Run this on a machine of the cluster"),
    ):
        with pytest.raises(InputError, match=message), connected(address):
            pass
    with pytest.raises(InputError, match="--workers is 0"), connected(workers=0):
        pass


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'elmojax\[ray\]'"), connected():
        pass


def test_workers_do_not_write_one_text_together(params, texts, monkeypatch):
    monkeypatch.setattr(jobs, "_PATIENCE", 0.2)
    with open_output(Path("out.parquet"), texts, FORM) as output:
        task = task_of(params, texts, output)
        made = Worker(lambda: task)
        with open(output.directory / "_00002.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(InputError, match=r"is writing vectors of text 2.txt"):
                made.embed(2)
        assert made.embed(2).sizes.tolist() == [1]


def test_machines_that_do_not_share_their_files(params, texts, monkeypatch):
    with open_output(Path("out.parquet"), texts, FORM) as output:
        job = task_of(params, texts, output)
    with pytest.raises(InputError, match=r"out.parquet.partial is not on .*; name an"):
        Worker(lambda: job).embed(0)
    Path("out").mkdir()
    elsewhere = replace(job, home=Path("/nowhere"), directory=Path("out").absolute())
    with pytest.raises(InputError, match=r"^/nowhere is not on .*absolute names"):
        Worker(lambda: elsewhere).embed(0)
    monkeypatch.setattr(jobs, "_PATIENCE", 0.3)
    with pytest.raises(InputError, match=r"^pluto wrote vectors of text 1.txt to "):
        jobs.require_seen(elsewhere, {1: "pluto"})


def test_a_machine_whose_jax_or_elmojax_is_another(params, texts):
    with open_output(Path("out.parquet"), texts, FORM) as output:
        job = replace(task_of(params, texts, output), on_cpu=False)
        for kind, extra in (("GPU", "cuda"), ("TPU", "tpu")):
            wrong = rf"does not use its {kind}: pip install 'elmojax\[{extra}\]' there"
            with pytest.raises(InputError, match=wrong):
                Worker(partial(replace, job, accelerator=kind)).embed(0)
    report = Worker(lambda: job, "0.0.1")({"number": np.array([0])})
    assert "the command was given by 0.0.1; install the same" in report["error"][0]
