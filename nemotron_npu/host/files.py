"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SetupError

PART = ".part"  # suffix of a file until it is complete


def replace_file(path: Path, data: bytes, part: Path) -> None:
    """Write ``data`` to ``part``, a path in the same file system, and rename it to ``path``.  Raises OSError."""
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of a temporary file next to it.  Raises SetupError."""
    try:
        replace_file(path, data, path.with_name(path.name + PART))
    except OSError as error:
        raise SetupError(f"{path}", f"cannot be written: {error.strerror}") from error
