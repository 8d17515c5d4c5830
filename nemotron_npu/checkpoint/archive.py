"""A ``.nemo`` file -> its members: a tar, plain or gzipped, that may come from anywhere, or a folder of the same files.

NeMo writes plain files into it, each once and in no folder.  Nothing else is accepted, and nothing is unpacked to disk.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import SetupError, shown
from ..host.files import is_of_kernel
from .refusal import AGAIN, UNSAFE, Refusal
from .safetensors_header import LENGTH, read_header

MAX_MEMBERS = 1000  # a checkpoint has 5
MAX_HEADER = 1 << 16  # bytes of a member's extended header, which tarfile reads into memory
MAX_HEADERS = 1 << 22  # bytes of all headers
MAX_EXPANSION = 8  # times its size that a gzipped archive may unpack to: weights shrink by a tenth
SPARE_BYTES = 16 << 20  # on top of that

FILE_TYPES = {
    stat.S_IFDIR: ("is a directory without model_config.yaml or config.json", "name the .nemo file in it"),
    stat.S_IFIFO: ("is a named pipe", "weights are read in place: save it to a file first"),
    stat.S_IFCHR: ("is a device, not a file", ""),
    stat.S_IFBLK: ("is a device, not a file", ""),
    stat.S_IFSOCK: ("is a socket, not a file", ""),
}
CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
PORTED_CONFIG = "config.json"  # of a model of transformers
SAVED_CONFIG = "model_config.json"  # in a file that --save has written
PARTS = (".yaml", ".ckpt", ".json", ".safetensors", ".model", ".vocab", ".txt")  # of a folder with a model
SAVED_MARK = b'{"__metadata__":{"nemotron_npu":'  # its header starts with it, and the format's version
SAVED_START = SAVED_MARK + b'"1"'
NAME_NEMO = "name the .nemo file"
UNPACK = "unpack it first: NeMo supports gzip only"
OTHER_FORMATS = (  # first bytes of what else is found under the name of a checkpoint
    (b"version https://git-lfs", "it is a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (b"PK\3\4", "it is a zip archive, as a .ckpt or .pt is", NAME_NEMO),
    (b"\x80\2", "it is a pickle, as an old .ckpt or .pt is", NAME_NEMO),
    (b"GGUF", "it is a .gguf file, for programs built on ggml", NAME_NEMO),
    (b"<", "it is a web page", "download it again, logged in where that is needed"),
    (b"IMOD", "it is an .om file, compiled for an NPU", NAME_NEMO),
    (b"BZh", "it is compressed with bzip2", UNPACK),
    (b"\xfd7zXZ", "it is compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd", UNPACK),
)
SAFETENSORS = re.compile(rb".{3}\0{5}\{", re.DOTALL)  # the length of a header of less than 16 MB, and its start
ONNX = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x3a\x42]")  # ir_version, and the tag of another field
MEMBER_TYPES = {
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
    """A file in the archive: ``size`` bytes from ``offset`` of the unpacked archive."""

    name: str
    offset: int
    size: int


def not_a_checkpoint(path: Path, problem: str, hint: str = AGAIN) -> SetupError:
    """Return the error for a file that is no ``.nemo`` checkpoint."""
    return SetupError(f"{path}", f"not a .nemo checkpoint: {problem}", hint)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open the archive at ``path``, unpacked on the fly if it is gzipped; raise SetupError for anything else."""
    with _open_file(path) as file:
        first = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if first[257:262] == b"ustar":
            yield file
        elif first[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]  # it has read, readinto, seek and tell
        else:
            raise _unknown_format(path, first)


def _open_file(path: Path) -> BinaryIO:
    try:
        problem, hint = FILE_TYPES.get(stat.S_IFMT(os.stat(path).st_mode), ("", ""))
        if problem:  # opening a pipe would block
            raise SetupError(f"{path}", problem, hint)
        if is_of_kernel(path):
            raise SetupError(f"{path}", "is a kernel file, not a file on disk")
        return open(path, "rb")
    except OSError as error:
        raise SetupError(f"{path}", f"cannot be read: {error.strerror}") from error


def _unknown_format(path: Path, start: bytes) -> SetupError:
    if start[LENGTH:].startswith(SAVED_MARK):
        return not_a_checkpoint(path, "it was saved by a later version", "update this program")
    if path.suffix in PARTS and (is_folder(path.parent) or is_ported(path.parent)):
        return not_a_checkpoint(path, "it is one file of a model's folder", "name that folder")
    if SAFETENSORS.match(start):
        return not_a_checkpoint(path, "it is a .safetensors file: weights without the rest", NAME_NEMO)
    if ONNX.match(start):
        return not_a_checkpoint(path, "it is an .onnx file", NAME_NEMO)
    start = start.lstrip()
    for first, problem, hint in OTHER_FORMATS:
        if start.startswith(first):
            return not_a_checkpoint(path, problem, hint)
    return not_a_checkpoint(path, "not a tar archive, or cut short" if start else "it is empty")


def is_folder(path: Path) -> bool:
    """Return whether this is an extracted archive: a folder with a config."""
    return os.path.lexists(path / CONFIG)


def is_ported(path: Path) -> bool:
    """Return whether this is the folder of a model of transformers."""
    return os.path.lexists(path / PORTED_CONFIG) and not is_folder(path)


def is_saved(path: Path) -> bool:
    """Return whether this is a file that ``--save`` has written: one of safetensors that starts with our mark."""
    if not os.path.isfile(path):  # a pipe must not be opened
        return False
    with _open_file(path) as file:
        return file.read(LENGTH + len(SAVED_START))[LENGTH:] == SAVED_START


@contextmanager
def opened_saved(path: Path) -> Iterator[BinaryIO]:
    """Open a file that ``is_saved``; what is refused of it is a SetupError."""
    with _open_file(path) as file:
        try:
            yield file
        except Refusal as refusal:
            raise SetupError(f"{path}", refusal.problem, refusal.hint) from refusal


@contextmanager
def opened_in_folder(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open the file ``name`` of an extracted archive, or of a folder of transformers.

    Raises SetupError if there is none, or it is in another folder.
    """
    if "/" in name or not os.path.lexists(path / name):
        if is_ported(path):
            raise SetupError(f"{path}", f"has no {shown(name)}", AGAIN)
        raise not_a_checkpoint(path, f"it has no {shown(name)}")
    with _open_file(path / name) as file:
        yield file


def is_gzipped(file: BinaryIO) -> bool:
    """Return whether an archive that is ``opened`` is gzipped."""
    return isinstance(file, gzip.GzipFile)


def members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """Yield the members of an archive that is ``opened``, in their order.

    Raises SetupError at the first one that NeMo would not have written.
    """
    seen: set[str] = set()
    with reading(path), tarfile.open(fileobj=_Headers(path, file), mode="r:") as archive:  # type: ignore[call-overload]
        packed = os.path.getsize(path)
        limit = MAX_EXPANSION * packed + SPARE_BYTES if is_gzipped(file) else packed
        for count, info in enumerate(archive):
            name = info.name.removeprefix("./")
            if info.isdir() and name == ".":
                continue
            if count > MAX_MEMBERS:
                raise not_a_checkpoint(path, f"it has more than {MAX_MEMBERS} members")
            subject = f"{path}: {shown(name)}"
            _check_member(subject, info, name)
            if name in seen:
                raise SetupError(subject, "is there twice", UNSAFE)
            if is_gzipped(file) and info.offset_data + info.size > limit:
                size = f"{info.size / 1e6:,.0f} MB"
                raise SetupError(subject, f"would unpack to {size}: a decompression bomb", UNSAFE)
            if info.size < 0 or info.offset_data + info.size > limit:
                raise SetupError(subject, "is cut short", AGAIN)
            seen.add(name)
            yield Member(name, info.offset_data, info.size)


@contextmanager
def opened_weights(path: Path) -> Iterator[tuple[BinaryIO, int, int]]:
    """Open the archive, or the file in its extracted folder; yield it, and offset and bytes of the weights in it.

    All members are checked, also those after the weights.  Raises SetupError.
    """
    if is_folder(path):
        with opened_in_folder(path, WEIGHTS) as file:
            yield file, 0, os.fstat(file.fileno()).st_size
        return
    with opened(path) as file:
        found = [member for member in members(path, file) if member.name == WEIGHTS]
        if not found:
            raise not_a_checkpoint(path, f"it has no {WEIGHTS}")
        yield file, found[0].offset, found[0].size


def _check_member(subject: str, info: tarfile.TarInfo, name: str) -> None:
    """Raise SetupError unless this is a plain file in no folder."""
    plain = "a checkpoint has plain files only: " + UNSAFE
    if info.type in MEMBER_TYPES:
        raise SetupError(subject, f"is {MEMBER_TYPES[info.type]}", plain)
    if info.sparse is not None:  # type: ignore[attr-defined]
        raise SetupError(subject, "is a sparse file", plain)
    if not info.isreg():
        raise SetupError(subject, "is not a file", plain)
    if "/" in name or name in ("", ".", ".."):
        raise SetupError(subject, "lies in another folder", "a checkpoint has no folders: " + UNSAFE)


def read_member(path: Path, name: str, limit: int) -> bytes:
    """Return the bytes of the member ``name``; raise SetupError if there is none, or more than ``limit`` bytes."""
    if is_folder(path) or is_ported(path):
        with opened_in_folder(path, name) as file:
            _check_size(path, name, os.fstat(file.fileno()).st_size, limit)
            return file.read(limit)
    if is_saved(path):
        return _read_saved(path, name, limit)
    with opened(path) as file:
        for member in members(path, file):
            if member.name == name:
                break
        else:
            raise not_a_checkpoint(path, f"it has no {shown(name)}")
        _check_size(path, name, member.size, limit)
        buffer = bytearray(member.size)
        read_into(path, file, member, buffer)
        return bytes(buffer)


def _read_saved(path: Path, name: str, limit: int) -> bytes:
    with opened_saved(path) as file:
        entries = read_header(file)
        if name not in entries:
            raise Refusal(f"has no {shown(name)}")
        _check_size(path, name, entries[name].size, limit)
        file.seek(entries[name].offset)
        return file.read(entries[name].size)


def _check_size(path: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise SetupError(f"{path}: {shown(name)}", f"has {size:,} bytes, more than {limit:,}", UNSAFE)


def read_into(path: Path, file: BinaryIO, member: Member, buffer: bytearray | mmap) -> None:
    """Fill ``buffer``, of the member's size or more, with the bytes of a member of an archive that is ``opened``."""
    with reading(path):
        file.seek(member.offset)
        view = memoryview(buffer)
        done = 0
        while done < member.size:
            count = file.readinto(view[done : member.size])  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            done += count


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while an archive is read into a SetupError."""
    try:
        yield
    except BROKEN as error:
        raise SetupError(f"{path}", "not a .nemo checkpoint, or cut short", AGAIN) from error


class _Headers:
    """What tarfile reads of an archive: headers, forwards and in small pieces.

    A crafted header can make older versions of tarfile loop (CVE-2025-8194), and all of them read what it claims.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.tell = file.tell
        self.left = MAX_HEADERS

    def read(self, size: int) -> bytes:
        self.left -= size
        if size > MAX_HEADER or self.left < 0:
            raise SetupError(f"{self.path}", f"has headers of {max(size, MAX_HEADERS):,} bytes or more", UNSAFE)
        return self.file.read(size)

    def seek(self, position: int) -> None:
        if position < self.file.tell():
            raise tarfile.ReadError("a member that ends before it begins")
        self.file.seek(position)
