"""What is shown moves no cursor and turns no text around; what people write stays as it is."""

import json

import pytest
from cocoseg.printable import printable

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b1m\r\u202e\u2066\x7f\udcff"


@pytest.mark.parametrize("text", ["", "plain", "ü–漢字–🐈", "two\nlines", "می‌خواهم", "👩‍🔬"])
def test_what_people_write_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b1m\x07\x08\x7f", r"\x9b1m\x07\x08\x7f"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("\udcff.jpg", r"\udcff.jpg"),
        ("a\tb\rc\u00a0d", "a b c d"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text, expected):
    assert printable(text) == expected


def test_no_command_sends_it_to_a_terminal(run_cocoseg, tmp_path):
    failed = run_cocoseg("verify", tmp_path / HOSTILE)
    setting = ("--set", f"train.save_dir={json.dumps(HOSTILE[:-1])}")
    as_json = run_cocoseg("config", "show", *setting, "--json")
    assert (failed.code, as_json.code) == (2, 0)
    for told in (failed.err, as_json.out):
        assert "1b[2J" in told
        assert not set(HOSTILE) & set(told) - set(printable(HOSTILE))
    assert repr(HOSTILE[:-1])[1:-1] in repr(json.loads(as_json.out))
