"""Plain text tables."""

from nemotron_npu.host.table import format_table


def test_table_columns_are_aligned_below_the_title():
    """The first column is aligned to the left, the others to the right; no line ends in spaces."""
    rows = [["", "WER", "words"], ["as written", "5.00 %", "1,000"], ["other", "-", ""]]
    assert format_table(rows, title="Errors").splitlines() == [
        "Errors",
        "                 WER  words",
        "  as written  5.00 %  1,000",
        "  other            -",
    ]


def test_table_of_labels_and_values_is_aligned_to_the_left():
    """With ``left=2`` both columns of label and value begin in the same column, and the title may be left out."""
    assert format_table([("a", "one"), ("long", "two words")], left=2) == "  a     one\n  long  two words"
