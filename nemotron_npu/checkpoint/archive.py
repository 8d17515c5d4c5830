"""A ``.nemo`` file -> its members: a tar, plain or gzipped, that comes from anywhere and is not trusted.

NeMo writes plain files into it, each once and in no folder; nothing else is accepted, so that nothing else has to be
thought about.  Nothing is unpacked to disk here.
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import SetupError, shown

MOST_MEMBERS = 1000  # a checkpoint has 5
MOST_HEADER = 1 << 16  # bytes of a member's extended header, which tarfile reads into memory
MOST_HEADERS = 1 << 22  # of all headers
EXPANSION, SPARE = 8, 16 << 20  # a gzipped one may unpack to so many times its size: weights shrink by a tenth

KINDS = {
    stat.S_IFDIR: "a directory: name the .nemo file in it",
    stat.S_IFIFO: "a named pipe, not a file: weights are read in place: save it to a file first",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
    stat.S_IFSOCK: "a socket, not a file",
}
STRANGERS = (  # what else is found under the name of a checkpoint: its first bytes
    (b"version https://git-lfs", "it is a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"PK\3\4", "it is a zip archive, as a .ckpt or .pt is: name the .nemo file"),
    (b"<", "it is a web page: the download went wrong: download it again, logged in where that is needed"),
    (b"BZh", "it is compressed with bzip2: NeMo knows gzip only: unpack it first"),
    (b"\xfd7zXZ", "it is compressed with xz: NeMo knows gzip only: unpack it first"),
)
TYPES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.DIRTYPE: "a folder",
}
BROKEN = (
    tarfile.TarError,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,  # headers of headers
    ValueError,
)
"""What tarfile and gzip raise for bytes that make no sense."""


class Member(NamedTuple):
    name: str
    offset: int
    """Where its bytes begin in the (unpacked) archive."""
    size: int


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The archive at ``path``, unpacked on the fly if it is gzipped; raises SetupError for anything else."""
    with _file(path) as file:
        first = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if first[257:262] == b"ustar":
            yield file
        elif first[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            start = first.lstrip()
            stranger = next((what for begin, what in STRANGERS if start.startswith(begin)), None)
            what = stranger or f"{'not a tar archive, or cut short' if first else 'it is empty'}: download it again"
            raise SetupError(f"{path}: not a .nemo checkpoint: {what}")


def _file(path: Path) -> BinaryIO:
    try:
        kind = KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
        if kind:  # opening a pipe would wait for ever
            raise SetupError(f"{path}: is {kind}")
        return open(path, "rb")
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from error


def is_gzipped(file: BinaryIO) -> bool:
    return isinstance(file, gzip.GzipFile)


def members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """The members of an archive that is ``opened``, in their order; raises SetupError at the first that is not as NeMo
    writes them."""
    packed = os.path.getsize(path)
    compressed = is_gzipped(file)
    seen: set[str] = set()
    with sound(path), tarfile.open(fileobj=_Headers(path, file), mode="r:") as archive:
        for count, member in enumerate(archive):
            name = member.name.removeprefix("./")
            if member.isdir() and name == ".":
                continue
            inside = f"{path}: {shown(name)} inside"
            kind = TYPES.get(member.type) or ("a sparse file" if member.sparse is not None else None)
            if kind or not member.isreg():
                raise SetupError(
                    f"{inside} is {kind or 'no file'}: a checkpoint has plain files only: not safe to load"
                )
            if "/" in name or name in ("", ".", ".."):
                raise SetupError(f"{inside} lies in another folder: a checkpoint has none: not safe to load")
            if name in seen:
                raise SetupError(f"{inside} is there twice: not safe to load")
            if count > MOST_MEMBERS:
                raise SetupError(f"{path}: not a .nemo checkpoint: it has more than {MOST_MEMBERS} members")
            end = member.offset_data + member.size
            if compressed and end > EXPANSION * packed + SPARE:
                raise SetupError(
                    f"{inside} would unpack to {member.size / 1e6:,.0f} MB: a decompression bomb, not safe to load"
                )
            if member.size < 0 or not compressed and end > packed:
                raise SetupError(f"{inside} is cut short: download it again")
            seen.add(name)
            yield Member(name, member.offset_data, member.size)


def read_member(path: Path, name: str, most: int) -> bytes:
    """The member ``name``; raises SetupError if there is none, or if it has more than ``most`` bytes."""
    with opened(path) as file:
        member = next((member for member in members(path, file) if member.name == name), None)
        if member is None:
            raise SetupError(f"{path}: not a .nemo checkpoint: no {shown(name)} inside")
        if member.size > most:
            raise SetupError(f"{path}: {shown(name)} inside has {member.size:,} bytes, not {most:,}: not safe to load")
        buffer = bytearray(member.size)
        read_into(path, file, member, buffer)
        return bytes(buffer)


def read_into(path: Path, file: BinaryIO, member: Member, buffer) -> None:
    """Fill ``buffer`` with the bytes of a member of an archive that is ``opened``."""
    with sound(path):
        file.seek(member.offset)
        view, done = memoryview(buffer), 0
        while done < member.size:
            count = file.readinto(view[done : member.size])
            if not count:
                raise EOFError
            done += count


@contextmanager
def sound(path: Path):
    """What goes wrong while an archive is read is a SetupError."""
    try:
        yield
    except BROKEN as error:
        raise SetupError(f"{path}: not a .nemo checkpoint, or cut short: download it again") from error


class _Headers:
    """What tarfile reads of an archive: headers, forwards and in small pieces.

    A crafted header can make older versions of tarfile loop (CVE-2025-8194), and all of them read what it claims.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.tell, self.left = path, file, file.tell, MOST_HEADERS

    def read(self, size: int) -> bytes:
        self.left -= size
        if size > MOST_HEADER or self.left < 0:
            raise SetupError(f"{self.path}: has headers of {max(size, MOST_HEADERS):,} bytes or more: not safe to load")
        return self.file.read(size)

    def seek(self, position: int) -> None:
        if position < self.file.tell():
            raise tarfile.ReadError("a member that ends before it begins")
        self.file.seek(position)
