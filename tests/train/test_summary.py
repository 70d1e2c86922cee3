"""The table at the start."""

from cocoseg.train.summary import table


def test_values_are_aligned_and_further_lines_indented() -> None:
    text = table({"data": "8 samples", "global batch": "16", "memory": "1 GB\n2 GB", "note": ""})
    assert text.splitlines() == [
        "data          8 samples",
        "global batch  16",
        "memory        1 GB",
        "              2 GB",
    ]


def test_nothing_to_tell_is_an_empty_text() -> None:
    assert table({}) == ""
