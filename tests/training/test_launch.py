"""Recipes for many processes: what their own tools say, and what they do.

Fake `elmojax`, `srun`, `scontrol` and `gcloud` on PATH stand in for the real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from elmojax.cli import main

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "launch"
SCRIPTS = [FOLDER / name for name in ("local.sh", "slurm.sbatch", "tpu-pod.sh")]
JOBSET = FOLDER / "gke-jobset.yaml"
RECIPES = [*SCRIPTS, JOBSET]

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*")

# Long options of other programs in the recipes.
OTHERS = {
    "gcloud": "accelerator-type command node-id runtime-version version worker zone",
    "kubectl": "patch type",
    "pip": "no-deps user wheel-dir",
    "uv": "clear python",
    "sbatch": "cpus-per-task gpus-per-node gpus-per-task job-name nodes "
    "ntasks-per-node open-mode output partition account requeue signal time",
    "scancel": "signal",
    "srun": "cpus-per-task kill-on-bad-exit wait",
}
FOREIGN = {f"--{name}" for names in OTHERS.values() for name in names.split()}

# Options of sbatch, and the values that they may have here.
SBATCH = {
    "cpus-per-task": r"\d+",
    "gpus-per-node": r"\d+",
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "open-mode": "append|truncate",
    "output": r"\S*%j\S*",
    "requeue": None,
    "signal": r"[A-Z]+[0-9]*@\d+",  # without B: it goes to the tasks
    "time": r"\d+:\d\d:\d\d",
}

# Ends with the next status of the file `statuses`, and notes how it was called.
NEXT_STATUS = """
echo "$(basename "$0") $*" >> calls
status=$(head -n 1 statuses)
sed -i 1d statuses
exit "${status:-0}"
"""


def by_name(path: Path) -> str:
    return path.name


def program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


def call(
    folder: Path, script: str, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", FOLDER / script, *map(str, arguments)],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def environment(folder: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return kept | {"PATH": f"{folder}:{os.environ['PATH']}"} | variables


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {path}"
        time.sleep(0.05)


# What the tools say.


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_bash_reads_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=by_name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    checker = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert checker, "shellcheck is missing; the extra `dev` has it"
    done = subprocess.run(
        [checker, "--norc", "--shell=bash", "--severity=style", path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_pretrain_knows_every_flag(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    known = set(FLAG.findall(capsys.readouterr().out))
    used = {path.name: set(FLAG.findall(path.read_text())) for path in RECIPES}
    unknown = {name: sorted(flags - FOREIGN - known) for name, flags in used.items()}
    assert not any(unknown.values()), unknown
    assert all("--distributed" in flags for flags in used.values())


def test_placeholders_are_listed_at_the_top() -> None:
    for path in RECIPES:
        head, body = [], []
        for line in path.read_text().splitlines():
            (body if body or not line.startswith("#") else head).append(line)
        listed, filled = (
            set(re.findall(r"FILL_IN_\w+", "\n".join(part))) for part in (head, body)
        )
        assert listed == filled, path.name
        assert bool(listed) == (path == JOBSET)


# Slurm.


def test_sbatch_options_are_known_and_before_the_first_command() -> None:
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    first_command = next(
        i for i, line in enumerate(lines) if line and not line.startswith("#")
    )
    options = {}
    for number, line in enumerate(lines):
        if line.startswith("#SBATCH"):
            assert number < first_command
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            assert name in SBATCH, line
            assert re.fullmatch(SBATCH[name] or "", value), line
            options[name] = value
    assert set(options) == set(SBATCH)
    # JAX gives a task the GPU of its local number, so there is one task a GPU.
    assert options["ntasks-per-node"] == options["gpus-per-node"]


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (75, 0, True),
        (75, 100, False),
        (130, 0, False),
        (137, 0, True),
        (143, 99, True),
    ],
)
def test_slurm_queues_again(tmp_path, status: int, restarts: int, again: bool) -> None:
    (tmp_path / "statuses").write_text(f"{status}\n")
    program(tmp_path, "srun", NEXT_STATUS)
    program(tmp_path, "scontrol", 'echo "scontrol $*" >> calls')
    slurm = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    if restarts:
        slurm["SLURM_RESTART_COUNT"] = str(restarts)
    done = call(tmp_path, "slurm.sbatch", "--data", "a b", "--rows", 8, **slurm)
    started, *rest = calls(tmp_path)
    assert started.endswith(" elmojax pretrain --distributed --data a b --rows 8")
    assert "--cpus-per-task=8" in started
    assert rest == ["scontrol requeue 7"] * again
    assert done.returncode == (0 if again else status), done.stderr


def test_slurm_ends_what_crashes_at_the_same_place(tmp_path) -> None:
    """134 is queued again three times, and after each new checkpoint."""
    program(tmp_path, "srun", NEXT_STATUS)
    program(tmp_path, "scontrol", 'echo "scontrol $*" >> calls')
    checkpoints = tmp_path / "run" / "checkpoints"
    for step, returned in zip([1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 134], strict=True):
        (tmp_path / "statuses").write_text("134\n")
        (checkpoints / str(step)).mkdir(parents=True, exist_ok=True)
        flags = ("--workdir", tmp_path / "run")
        done = call(tmp_path, "slurm.sbatch", *flags, SLURM_JOB_ID="7")
        assert done.returncode == returned, done.stderr
    assert "without a new checkpoint" in done.stderr


# Kubernetes.


def documents(tpu: bool) -> dict[str, Any]:
    text = JOBSET.read_text()
    if tpu:  # as the file says it, with sed
        text = re.sub(r"(?m)^.*# GPU\n", "", text).replace("# TPU: ", "")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.mark.parametrize("tpu", [False, True], ids=["gpu", "tpu"])
def test_jobset(tpu: bool) -> None:
    objects = documents(tpu)
    names = {kind: object["metadata"]["name"] for kind, object in objects.items()}
    assert set(names) == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "PersistentVolumeClaim",
        "JobSet",
    }
    jobset = objects["JobSet"]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    # JAX takes the service of the coordinator to have the name of the JobSet.
    assert "network" not in jobset["spec"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    coordinator = f"{names['JobSet']}-{replicated['name']}-0-0.{names['JobSet']}"
    assert coordinator in JOBSET.read_text()

    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] > 1
    pod = job["template"]["spec"]
    assert pod["serviceAccountName"] == names["ServiceAccount"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 300
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes["shared"]["persistentVolumeClaim"]["claimName"]
    assert claim == names["PersistentVolumeClaim"]
    access = objects["PersistentVolumeClaim"]["spec"]["accessModes"]
    assert access == ["ReadWriteMany"]

    (container,) = pod["containers"]
    assert container["command"] == ["elmojax", "pretrain", "--distributed"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == set(volumes)
    arguments = dict(argument.split("=", 1) for argument in container["args"])
    for name in ("--data", "--heldout", "--workdir"):
        assert arguments[name].startswith(mounted["shared"] + "/")
    resource, prefix = (
        ("google.com/tpu", "cloud.google.com/gke-tpu-")
        if tpu
        else ("nvidia.com/gpu", "cloud.google.com/gke-accelerator")
    )
    assert list(container["resources"]["limits"]) == [resource]
    assert all(label.startswith(prefix) for label in pod["nodeSelector"])
    assert ("annotations" in jobset["metadata"]) == tpu


def test_jobset_ends_with_bad_input_and_restarts_otherwise() -> None:
    jobset = documents(tpu=False)["JobSet"]["spec"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": job["template"]["spec"]["containers"][0]["name"],
        "operator": "In",
        "values": [2, 132, 135, 136, 139],
    }
    assert jobset["failurePolicy"]["maxRestarts"] > 0
    # A Job that fails for this reason would be restarted without this rule.
    (rule,) = jobset["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert re.fullmatch(r"[A-Za-z]\w*", rule["name"])


def test_role_allows_what_jax_asks() -> None:
    objects = documents(tpu=False)
    allowed = {
        (group, resource, verb)
        for rule in objects["Role"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {("", "pods", "list"), ("batch", "jobs", "get")}
    binding = objects["RoleBinding"]
    assert binding["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == objects["ServiceAccount"]["metadata"]["name"]


# Several processes here.

# Notes its signals and takes half a second to save. ENDS is the status with which
# process 0 ends at once; with `all` every process does, with 0, and with `none` none.
PROCESS = """
trap 'echo "$6 INT" >> signals; sleep 0.5; exit 130' INT
trap 'echo "$6 TERM" >> signals; sleep 0.5; exit 143' TERM
echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $*" >> started
[ "$ENDS" = all ] && exit 0
[ "$ENDS" != none ] && [ "$6" = 0 ] && exit "$ENDS"
for i in $(seq 300); do sleep 0.1; done
"""


def test_local_starts_all(tmp_path) -> None:
    program(tmp_path, "elmojax", PROCESS)
    done = call(tmp_path, "local.sh", 3, 2, "--rows", 8, ENDS="all", PORT="4711")
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "started").read_text().splitlines()) == [
        "cpu 2 pretrain --distributed --coordinator 127.0.0.1:4711 "
        f"--process-id {i} --process-count 3 --rows 8"
        for i in range(3)
    ]


def test_local_ends_all_when_one_fails(tmp_path) -> None:
    program(tmp_path, "elmojax", PROCESS)
    done = call(tmp_path, "local.sh", 3, 1, ENDS="75")
    assert done.returncode == 75
    assert done.stderr == "local.sh: process 0 ended with status 75.\n"
    heard = (tmp_path / "signals").read_text().splitlines()
    assert sorted(heard) == ["1 TERM", "2 TERM"]


def test_local_kills_who_does_not_end(tmp_path) -> None:
    program(tmp_path, "elmojax", '[ "$6" = 0 ] && exit 2\ntrap "" TERM\nsleep 50')
    begin = time.monotonic()
    assert call(tmp_path, "local.sh", 2, 1, GRACE="1").returncode == 2
    assert time.monotonic() - begin < 30


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """In the background of a script SIGINT is ignored, and bash would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_forwards_signals_once(tmp_path, number: signal.Signals) -> None:
    program(tmp_path, "elmojax", PROCESS)
    with subprocess.Popen(
        ["bash", FOLDER / "local.sh", "2", "1"],
        cwd=tmp_path,
        env=environment(tmp_path, ENDS="none"),
        stderr=subprocess.PIPE,
    ) as running:
        wait_for(tmp_path / "started", "--process-id 0")
        wait_for(tmp_path / "started", "--process-id 1")
        running.send_signal(number)
        assert running.wait(timeout=30) == 128 + number
    name = number.name.removeprefix("SIG")
    heard = (tmp_path / "signals").read_text().splitlines()
    assert sorted(heard) == [f"0 {name}", f"1 {name}"]


# Cloud TPU.


@pytest.mark.parametrize(
    ("statuses", "restarts", "expected"),
    [
        ([0], 5, 0),
        ([75, 143, 137, 0], 5, 0),
        ([75, 2], 5, 2),
        ([130], 5, 130),
        ([75, 75, 75], 2, 75),
        ([134, 134, 134, 134], 100, 134),  # without a new checkpoint
    ],
)
def test_tpu_loop(tmp_path, statuses: list[int], restarts: int, expected: int) -> None:
    (tmp_path / "statuses").write_text("".join(f"{s}\n" for s in statuses))
    program(tmp_path, "elmojax", NEXT_STATUS)
    done = call(
        tmp_path, "tpu-pod.sh", "loop", "--rows", 8, PAUSE="0", RESTARTS=str(restarts)
    )
    assert done.returncode == expected, done.stderr
    command = "elmojax pretrain --distributed --rows 8"
    assert calls(tmp_path) == [command] * len(statuses)


def test_tpu_start_and_stop_on_a_worker(tmp_path) -> None:
    """gcloud's command is run here, in place of a worker, and again while it runs."""
    program(tmp_path, "gcloud", 'echo "${*: -1}" > sent; exec bash -c "${*: -1}"')
    program(
        tmp_path,
        "elmojax",
        "trap 'echo TERM >> signals; sleep 0.5; exit 143' TERM\n"
        'printf "%s\\n" "$@" >> started\n'
        "for i in $(seq 300); do sleep 0.1; done\n",
    )
    shutil.copy(FOLDER / "tpu-pod.sh", tmp_path)

    def act(action: str, *flags: str) -> subprocess.CompletedProcess[str]:
        arguments = (action, "name", "zone", *flags)
        return call(tmp_path, "tpu-pod.sh", *arguments, HOME=str(tmp_path))

    flags = ["--data", "a b", "--workdir", "it's"]
    started, log = tmp_path / "started", tmp_path / "elmojax.log"
    try:
        assert act("start", *flags).returncode == 0
        wait_for(started, flags[-1])
        assert started.read_text().splitlines() == ["pretrain", "--distributed", *flags]
        assert act("start", *flags).returncode == 0
        wait_for(log, "already runs")
    finally:
        assert act("stop").returncode == 0
    wait_for(log, "status 143 after 0 restarts")
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len(started.read_text().splitlines()) == 6


def test_tpu_install_names_all_workers(tmp_path) -> None:
    program(tmp_path, "gcloud", 'printf "%s|" "$@" >> calls; echo >> calls')
    done = call(
        tmp_path, "tpu-pod.sh", "install", "n", "z", "dist/e.whl", "10.0.0.2:/s"
    )
    assert done.returncode == 0, done.stderr
    copied, connected, *_ = calls(tmp_path)
    assert copied.startswith("compute|tpus|tpu-vm|scp|dist/e.whl|")
    assert copied.endswith("tpu-pod.sh|n:|--zone|z|--worker=all|")
    assert connected.startswith("compute|tpus|tpu-vm|ssh|n|--zone|z|--worker=all|")
    assert "mount -t nfs 10.0.0.2:/s /mnt/shared" in "\n".join(calls(tmp_path))


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("slurm.sbatch", []),
        ("slurm.sbatch", ["--rows", "8"]),  # not under Slurm
        ("local.sh", []),
        ("local.sh", ["2"]),
        ("local.sh", ["0", "1"]),
        ("local.sh", ["--rows", "8"]),
        ("tpu-pod.sh", []),
        ("tpu-pod.sh", ["start"]),
        ("tpu-pod.sh", ["start", "name", "zone"]),
        ("tpu-pod.sh", ["install", "name", "zone", "e.whl"]),
        ("tpu-pod.sh", ["dance", "name", "zone"]),
    ],
)
def test_usage(tmp_path, script: str, arguments: list[str]) -> None:
    done = call(tmp_path, script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert done.stdout == ""
