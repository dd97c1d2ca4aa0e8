"""Messages: what they may not hold."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from elmojax.cli.common import say
from elmojax.config import TrainConfig
from elmojax.errors import InputError, showable
from elmojax.training.record import RunRecord, create_run, read_record

DIGITS = 64 * "a"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:SECRET@h.org:80/a/b", "https://h.org:80/a/b"),
        ("HTTPS://SECRET@h/x", "HTTPS://h/x"),
        ("https://h/x?key=SECRET&X-Amz-Signature=SECRET", "https://h/x"),
        ("https://h/x#access_token=SECRET", "https://h/x"),
        (f"https://h/x?k=SECRET#sha256={DIGITS}", f"https://h/x#sha256={DIGITS}"),
        (f"https://h/x#sha256={DIGITS}?k=SECRET", f"https://h/x#sha256={DIGITS}"),
        # Characters that a password should have percent-encoded.
        ("https://me:SEC/RET@h/x", "https://h/x"),
        ("https://me:SEC?RE#T@h/x", "https://h/x"),
        ("s3://KEY:SE+C/RET@bucket/x", "s3://bucket/x"),
        ("https:/me:SECRET@h/x", "https:/h/x"),  # as pathlib writes it
        # In a sentence, and in JSON.
        ("'https://h/x?k=SECRET', (http://h?k=SECRET).", "'https://h/x', (http://h)."),
        ('{"a": "http://h?k=SECRET",\n "b": 1}', '{"a": "http://h",\n "b": 1}'),
        # What is none.
        ("https://h:80/x@v1/y", "https://h:80/x@v1/y"),
        ("mail me@h.org? C:/x or ratio 3:/4", "mail me@h.org? C:/x or ratio 3:/4"),
    ],
)
def test_addresses_are_without_secrets(text: str, shown: str, capsys):
    assert showable(text) == shown
    assert str(pickle.loads(pickle.dumps(InputError(text)))) == shown
    say(text)
    on_one_line = shown.replace("\n", "\\n")
    assert capsys.readouterr().err == f"elmojax: {on_one_line}\n"


def test_a_run_records_no_secret(tmp_path):
    train = TrainConfig.preset("mini")
    train = replace(train, init_from="https://me:SECRET@h/elmo?key=SECRET")
    create_run(tmp_path, RunRecord(train=train, corpus="", vocabulary=0), None)
    assert "SECRET" not in (tmp_path / "config.json").read_text()
    assert read_record(tmp_path).train == replace(train, init_from="https://h/elmo")
