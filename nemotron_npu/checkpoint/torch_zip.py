"""The zip that ``torch.save`` writes, read in place: its pickle, and the offsets of its storages."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ..errors import SetupError, shown
from .archive import WEIGHTS
from .refusal import AGAIN, UNSAFE, Refusal

OLD_START = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickle of torch's first magic number
MAX_PICKLE = 2 << 20  # bytes; 618 million parameters are listed in 126,108
MAX_DIRECTORY = 4 << 20  # bytes of the zip's list of records; that of the same checkpoint has 52,000
LOCAL_HEADER = 30  # bytes (PKWARE APPNOTE, 4.3.7), then the name and its padding
BROKEN = (  # errors of zipfile, pickletools and torch for invalid bytes
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

Buffer = Any
"""An mmap or bytearray."""
Storages = dict[str, tuple[int, int]]
"""Key of a storage -> (offset in the buffer, bytes)."""


class Window:
    """A part of a buffer as a read-only file for zipfile; one read gets at most what a list of records has.

    ``start`` and ``size`` are in bytes.
    """

    def __init__(self, buffer: Buffer, start: int, size: int) -> None:
        self.buffer = buffer
        self.start = start
        self.size = size
        self.position = 0

    def part(self, offset: int, size: int, limit: int = MAX_DIRECTORY) -> bytes:
        """Return ``size`` bytes from ``offset``; raise Refusal if they are more than ``limit``."""
        if size > limit:
            raise Refusal(f"has {size:,} bytes in its list of tensors, more than {limit:,}", UNSAFE)
        if not 0 <= offset <= offset + size <= self.size:
            raise ValueError("the file ends too early")
        return self.buffer[self.start + offset : self.start + offset + size]

    def read(self, size: int = -1) -> bytes:
        """Read as a file does."""
        left = max(self.size - self.position, 0)
        data = self.part(self.position, left if size < 0 else min(size, left))
        self.position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as a file does."""
        self.position = offset + (0, self.position, self.size)[whence]
        if self.position < 0:
            raise ValueError("a position before the start")
        return self.position

    def tell(self) -> int:
        """Return the position as a file does."""
        return self.position

    def seekable(self) -> bool:
        """Tell zipfile that this is not a stream."""
        return True


@contextmanager
def reading_zip(path: Path) -> Iterator[None]:
    """Turn errors while the weights of the archive ``path`` are read into a SetupError."""
    try:
        yield
    except Refusal as refusal:
        raise refusal.of(path, WEIGHTS) from refusal
    except BROKEN as error:
        raise SetupError(f"{path}: {WEIGHTS}", "is broken", AGAIN) from error


def read_checksums(window: Window) -> list[tuple[str, int, int]]:
    """Return (name, bytes, CRC-32) of the pickle and of each storage, by their names; raise as ``read_records``.

    The checksums are 0 where torch was told to compute none.
    """
    with _opened(window) as archive:
        records = [(info.filename.partition("/")[2], info.file_size, info.CRC) for info in archive.infolist()]
    return sorted(record for record in records if record[0].startswith("data"))


def read_records(window: Window) -> tuple[bytes, Storages]:
    """Return ``data.pkl``, and (offset in the window, bytes) of each storage by its key.

    Raises Refusal for a zip that torch would not write, and what zipfile raises for bytes that make no sense.
    """
    records = _find_records(window)
    end = 0
    for name, (offset, size) in sorted(records.items(), key=lambda record: record[1]):
        if offset < end or offset + size > window.size:
            raise Refusal(f"has a record {shown(name)} that overlaps others", UNSAFE)
        end = offset + size
    if "byteorder" in records and window.part(*records["byteorder"], limit=16) != b"little":
        raise Refusal("is of a big-endian machine", "save it again on a little-endian one")
    if "data.pkl" not in records:
        raise Refusal("is a zip, but not torch's: it has no data.pkl")
    pickled = window.part(*records["data.pkl"], limit=MAX_PICKLE)
    storages = {name.removeprefix("data/"): record for name, record in records.items() if name.startswith("data/")}
    return pickled, storages


def _opened(window: Window) -> zipfile.ZipFile:
    if window.part(0, min(len(OLD_START), window.size)) == OLD_START:
        raise Refusal("is in the format of torch before 1.6", "save it again with a newer torch or NeMo")
    return zipfile.ZipFile(cast("IO[bytes]", window))


def _find_records(window: Window) -> dict[str, tuple[int, int]]:
    """Return (offset, bytes) of each record by its name, without the archive's own name before it."""
    records: dict[str, tuple[int, int]] = {}
    with _opened(window) as archive:
        for info in archive.infolist():
            _, _, name = info.filename.partition("/")  # model_weights/data/0
            if name in records:
                raise Refusal(f"has two records {shown(name)}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise Refusal(f"has a record {shown(name)} that is compressed or encrypted", "torch writes none")
            records[name] = (_data_offset(window, info), info.file_size)
    return records


def _data_offset(window: Window, info: zipfile.ZipInfo) -> int:
    """Return where a record's bytes begin: after its local header, its name and its padding."""
    signature, name, extra = struct.unpack("<4s22xHH", window.part(info.header_offset, LOCAL_HEADER))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile(f"no record at {info.header_offset}")
    return info.header_offset + LOCAL_HEADER + name + extra
