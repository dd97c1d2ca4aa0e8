"""`elmojax embed` with a real model: what ends up in files, and what interrupts it."""

import filecmp
import json
import random
import re

import h5py
import numpy as np
import pytest
from toys import tiny_params

import elmojax
from elmojax import InputError
from elmojax.cli import main
from elmojax.vectors import parquet
from elmojax.vectors.jobs import Job, embed_files

pytestmark = pytest.mark.usefixtures("quick_compilation")

ENDINGS = ("vectors.hdf5", "vectors", "vectors.parquet")


@pytest.fixture(scope="module")
def params():
    return tiny_params()


@pytest.fixture(scope="module")
def model(params, tmp_path_factory):
    """A model's directory."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    elmojax.save_hdf5(params, directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = random.Random(0)
    lines = [
        " ".join(f"w{draw.randrange(90)}" for _ in range(draw.choice([0, 1, 5, 9, 70])))
        for _ in range(120)
    ]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def same(one, other):
    """Whether two files, or all files of two directories, are equal to the byte."""
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("pool", [None, "mean"])
def test_interrupted_anywhere_and_gone_on_with_it_is_the_same_file(
    params, text, tmp_path, name, pool, monkeypatch
):
    monkeypatch.setattr(parquet, "_PART", 20)
    job = Job(params, batch_tokens=100, pool=pool)
    whole, parts = tmp_path / "whole" / name, tmp_path / "parts" / name
    whole.parent.mkdir()
    parts.parent.mkdir()
    embed_files(job, [text], whole)
    calls = 0

    def stop(done, total):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt

    for _ in range(12):
        if parts.exists():
            break
        try:
            embed_files(job, [text], parts, report=stop)
        except KeyboardInterrupt:
            assert not parts.exists()
    assert calls > 14 and parts.exists()
    assert same(whole, parts)


@pytest.mark.parametrize("name", ENDINGS)
def test_another_request_does_not_go_on_with_it(params, text, tmp_path, name):
    out = tmp_path / name

    def stop(done, total):
        if done > 300:
            raise KeyboardInterrupt

    job = Job(params, batch_tokens=100)
    # What is left of Parquet is whole parts; these vectors all fit into the first.
    with pytest.raises(KeyboardInterrupt):
        embed_files(job, [text], out, report=stop)
    if name.endswith("parquet"):
        return
    with pytest.raises(InputError, match="another request"):
        embed_files(Job(params, batch_tokens=101), [text], out)
    with pytest.raises(InputError, match="another request"):
        embed_files(Job(tiny_params(seed=1), batch_tokens=100), [text], out)
    half = elmojax.cast(params, "bf16")
    with pytest.raises(InputError, match='precision "float32" there, "bf16" now'):
        embed_files(Job(half, batch_tokens=100), [text], out)
    embed_files(Job(params, batch_tokens=101), [text], out, overwrite=True)
    assert out.exists() and not out.with_name(f"{name}.partial").exists()


def test_odd_text(params, model, tmp_path):
    """Words past all bounds, control characters, blank lines: all have their place."""
    lines = [
        "x" * 100_000,
        "a \x0c b\x1c \x07\x1b[31m",
        "",
        "\ufeff\u200b 🙂 <S> </S> .",
        "tab\tand\u00a0no-break",
        "last",
    ]
    path, out = tmp_path / "text.txt", tmp_path / "out.hdf5"
    path.write_text("\n".join(lines), encoding="utf-8")
    main(["embed", str(model), "--text", str(path), "--out", str(out)])
    with h5py.File(out) as file:
        assert sorted(file) == [str(number) for number in range(len(lines))]
        for number, line in enumerate(lines):
            words = re.findall("[^ \t]+", line)
            columns = params.config.encoder.max_characters
            ids = elmojax.batch_to_ids([words or ["x"]], columns)
            wanted = elmojax.encode(params, ids).layers[0, :, : len(words)]
            np.testing.assert_allclose(file[str(number)][:], wanted, atol=2e-6)
            assert file[str(number)].attrs["sentence"] == " ".join(words)


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("pool", [None, "mean"])
def test_numbers_that_are_not_finite_are_no_vectors(params, tmp_path, name, pool):
    """Too large for float16: refused with the line and the remedy, nothing written."""
    path, out = tmp_path / "text.txt", tmp_path / name
    path.write_text("\nlast year\nthe bank\n")
    bias = params.encoder["projection_bias"] + 1e5
    large = params.replace(encoder={**params.encoder, "projection_bias": bias})
    with pytest.raises(InputError, match=r"Line 2 of .*text\.txt .* --dtype bfloat16"):
        embed_files(Job(large, dtype="float16", pool=pool), [path], out)
    assert not out.exists()
    with pytest.raises(InputError, match=r"Line 2 of .*finite numbers; look at the"):
        gammas = (1e38, 1e38, 1e38)
        embed_files(
            Job(large, layers="mix", gammas=gammas, pool=pool),
            [path],
            out,
            overwrite=True,
        )
    assert not out.exists()


def test_flags(params, model, text, tmp_path, capsys):
    sentences = [line.split() for line in text.read_text().splitlines()]
    common = ("embed", str(model), "--text", str(text), "--json", "--out")
    gammas = ("--layers", "mix", "--gammas", "0.5", "-1", "2")
    main([*common, str(tmp_path / "mix"), *gammas, "--pool", "max"])
    report = json.loads(capsys.readouterr().out)
    assert (report["lines"], report["words"]) == (120, sum(map(len, sentences)))
    got = elmojax.read_vectors(tmp_path / "mix")
    embedder = elmojax.Embedder(params, layers="mix", gammas=[0.5, -1, 2])
    for ours, vectors in zip(got, embedder.embed_sentences(sentences), strict=True):
        wanted = vectors.max(axis=0) if len(vectors) else np.zeros(vectors.shape[1])
        np.testing.assert_allclose(ours, wanted, atol=2e-6)
    main([*common, str(tmp_path / "half"), "--layers", "top", "--dtype", "bfloat16"])
    half = elmojax.read_vectors(tmp_path / "half")
    assert half[1].dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--layers", "mix"), "gammas belong to layers 'mix'"),
        (("--layers", "mix", "--gammas", "1"), "3 gammas"),
        (("--batch-tokens", "0"), "batch-tokens is 0"),
        (("--compression", "gzip:99"), "gzip takes a level from 0 to 9"),
        (("--ray-address", "auto"), "belong to --engine ray"),
        (("--workers", "2"), "belong to --engine ray"),
        (("--text", "{text}"), "only Parquet holds several"),
        (("--engine", "ray"), "Parquet"),
    ],
)
def test_flags_that_make_no_sense(model, text, tmp_path, capsys, flags, says):
    other = tmp_path / "other.txt"
    other.write_text("one line\n")
    flags = [flag.format(text=other) for flag in flags]
    out = tmp_path / "out.hdf5"
    assert says in refused(capsys, "embed", model, "--text", text, "--out", out, *flags)
    assert set(tmp_path.iterdir()) == {other}
    assert "--text" in refused(capsys, "embed", model, "--out", out)


def test_bad_bytes_are_found_before_anything_is_written(model, tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine\n" * 50 + b"caf\xe9\n")
    said = refused(capsys, "embed", model, "--text", path, "--out", tmp_path / "o.hdf5")
    assert "Line 51 of" in said and "not UTF-8" in said
    assert list(tmp_path.iterdir()) == [path]
