"""Plain text tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

COLUMNS = 80  # that the lines of a report take at most


def format_table(rows: Iterable[Sequence[str]], *, title: str = "", left: int = 1) -> str:
    """Align the cells of ``rows`` in columns, and indent them by two spaces below ``title``.

    The first ``left`` columns are aligned to the left, the others to the right.  A heading is simply the first row.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [title] if title else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
