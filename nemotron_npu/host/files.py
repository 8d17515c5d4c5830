"""Write files in a folder that other users may change: each is written whole or not at all, never through a link."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import SetupError

PART = re.compile(r"\.[0-9a-f]{16}\.part")  # name of a file until it is complete; no two runs use the same
TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
WRITABLE_BY_OWNER = 0o666  # less the bits of the umask


def is_of_kernel(path: str | Path) -> bool:
    """Return whether a path leads to a file of /proc or /sys: a regular file by its type, but it may never end."""
    return os.path.realpath(path).startswith(("/proc/", "/sys/"))


class Folder:
    """A folder to write to.  Its own path may lead through links, the names below it may not.

    A name is a path relative to the folder.  All methods raise OSError; its ``strerror`` names what is in the way.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    @classmethod
    def alone(cls, path: Path) -> Folder:
        """Open a folder for this process alone, see ``lock``, and check that it is writable."""
        folder = cls(path)
        try:
            folder.lock()
            folder.check_writable()
        except BaseException:
            folder.close()
            raise
        return folder

    def close(self) -> None:
        """Close the folder, which also gives up its lock."""
        os.close(self.descriptor)

    def lock(self) -> None:
        """Take the folder for this process alone, then remove what a killed run has left unfinished.

        Raises BlockingIOError, before anything in the folder is touched, where another process holds the lock.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return  # a file system without locks: the unfinished files may be those of a run that is alive
        for name in filter(PART.fullmatch, os.listdir(self.descriptor)):
            with suppress(OSError):
                os.unlink(name, dir_fd=self.descriptor)

    def write(self, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file; it has its name once all of it is written.  Folders on the way are created."""
        part = f".{secrets.token_hex(8)}.part"
        try:
            with self._open(self.descriptor, part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb") as file:
                for block in blocks:
                    file.write(block)
            with self._parent(name, create=True) as (folder, last):
                os.replace(part, last, src_dir_fd=self.descriptor, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=self.descriptor)
            raise

    def check_writable(self) -> None:
        """Create a file and remove it."""
        part = f".{secrets.token_hex(8)}.part"
        self._open(self.descriptor, part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb").close()
        os.unlink(part, dir_fd=self.descriptor)

    def append(self, name: str) -> BinaryIO:
        """Open a file to append to, unbuffered; it is created if it is missing."""
        with self._parent(name, create=True) as (folder, last):
            return self._open(folder, last, os.O_WRONLY | os.O_CREAT | os.O_APPEND, "ab")

    def read(self, name: str) -> BinaryIO:
        """Open a file to read."""
        with self._parent(name) as (folder, last):
            return self._open(folder, last, os.O_RDONLY, "rb")

    def rename(self, old: str, new: str) -> None:
        """Rename a file of the folder itself; one that is there is replaced."""
        os.replace(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def has(self, names: Iterable[str], *, with_content: bool) -> bool:
        """Return whether all names are files; a loss of power can leave empty ones, which are none ``with_content``."""
        try:
            for name in names:
                with self._parent(name) as (folder, last):
                    status = os.stat(last, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode) or (with_content and not status.st_size):
                    return False
        except OSError:
            return False
        return True

    @contextmanager
    def _parent(self, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """Yield a descriptor of the folder that ``name`` is in, and its last part."""
        parts = name.split("/")
        if not set(parts).isdisjoint({"", ".", ".."}):  # an absolute path has an empty part
            raise OSError(errno.EINVAL, "the name leads out of the folder")
        folder = os.dup(self.descriptor)
        try:
            for part in parts[:-1]:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                below = _open_at(folder, part, os.O_RDONLY | os.O_DIRECTORY)
                os.close(folder)
                folder = below
            yield folder, parts[-1]
        finally:
            os.close(folder)

    @staticmethod
    def _open(folder: int, name: str, flags: int, mode: str) -> BinaryIO:
        descriptor = _open_at(folder, name, flags)
        try:
            _check_type(name, os.fstat(descriptor).st_mode)
            return os.fdopen(descriptor, mode, buffering=0 if "a" in mode else -1)  # type: ignore[return-value]
        except OSError:
            os.close(descriptor)
            raise


def _open_at(folder: int, name: str, flags: int) -> int:
    """Open ``name`` in a folder without following it and without waiting; return the descriptor."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags, WRITABLE_BY_OWNER, dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not (flags & os.O_DIRECTORY and stat.S_ISDIR(mode)):
                _check_type(name, mode)
        raise


def _check_type(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENOTDIR, f"{name} is {TYPES[stat.S_IFMT(mode)]}")


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all; a link at ``path`` is replaced.  Raises SetupError."""
    try:
        folder = Folder(path.parent)
        try:
            folder.write(path.name, [data])
        finally:
            folder.close()
    except OSError as error:
        raise SetupError(f"{path}", f"cannot be written: {error.strerror}") from error
