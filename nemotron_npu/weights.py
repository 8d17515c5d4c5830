"""``model_weights.ckpt`` of a ``.nemo`` file -> tensors by name, without torch.load."""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

from .checkpoint import find_member, opened
from .errors import SetupError, first_line

BROKEN = (  # what zipfile, pickle and torch raise for bytes that make no sense
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    ValueError,
)


class Tensors(dict):
    """Tensors by name, and the file mapping that they lie in; None if it is memory of their own."""

    mapping: mmap.mmap | None = None

    def release(self) -> None:
        """Give the mapping's resident pages back; they are read again when they are needed again."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)


def read_weights(path: Path) -> Tensors:
    """Every tensor of ``model_weights.ckpt`` by its name, on the CPU, in the dtype that it was saved in.

    A plain tar is mapped: torch's zip inside stores each tensor uncompressed and aligned, so that the tensors lie in
    the page cache, are read when they are first used, and are shared between processes.  Of a gzipped tar they are
    unpacked into memory once.  Nothing is written to disk.  Only tensors can come out: see ``_Unpickler``.
    Raises SetupError when the weights are missing or broken, or hold anything but tensors.
    """
    import torch  # here: what its import raises is not the checkpoint's fault

    name = "model_weights.ckpt"
    with opened(path) as archive:
        member = find_member(path, archive, name)
        try:
            if not isinstance(archive.fileobj, io.BufferedReader):  # compressed
                buffer = _Memory(-1, max(member.size, 1))
                archive.extractfile(member).readinto(buffer)
                zipped, start = buffer, 0
            else:
                with open(path, "rb") as file:
                    buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
                zipped, start = archive.extractfile(member), member.offset_data
            with zipfile.ZipFile(zipped) as records:
                offsets = {
                    _record(info.filename): start + _data_offset(buffer, start, info) for info in _stored(records)
                }
                pickled = next(info for info in records.infolist() if _record(info.filename) == "data.pkl")
                with records.open(pickled) as file:
                    weights = _Unpickler(file, buffer, offsets).load()
        except SetupError as error:
            raise SetupError(f"{path}: {name} inside {error}") from error
        except BROKEN as error:
            raise SetupError(f"{path}: {name} inside is broken ({first_line(error)}): download it again") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise SetupError(f"{path}: {name} inside holds something else than named tensors")
    weights = Tensors(weights)
    weights.mapping = None if isinstance(buffer, _Memory) else buffer
    return weights


class _Memory(mmap.mmap):
    """Memory that zipfile can read."""

    def seekable(self) -> bool:  # mmap's own from Python 3.13 on
        return True


class Weights:
    """The tensors of a checkpoint on their way to their place: by name, in ``dtype`` on ``device``."""

    def __init__(self, tensors: Tensors, device, dtype, prefix: str = "", taken: set | None = None):
        self.tensors, self.device, self.dtype, self.prefix = tensors, device, dtype, prefix
        self.taken = set() if taken is None else taken

    def inside(self, prefix: str) -> Weights:
        """Those whose names begin with ``prefix``, without it."""
        return Weights(self.tensors, self.device, self.dtype, self.prefix + prefix, self.taken)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor; asked for is as good as taken."""
        self.taken.add(self.prefix + name)
        return self.prefix + name in self.tensors

    def __call__(self, name: str):
        """Raises SetupError when it is missing."""
        if not self.has(name):
            raise SetupError(f"the weights lack {self.prefix + name}: download the checkpoint again")
        return self.tensors[self.prefix + name].to(self.device, self.dtype)

    def release(self) -> None:
        """Let the kernel take back the pages that were read: what was copied from them is not held twice."""
        self.tensors.release()

    def left(self) -> list[str]:
        """The names that nobody asked for."""
        return [name for name in self.tensors if name not in self.taken]


def _stored(records: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The records that lie in the file as they are; torch compresses none."""
    return [info for info in records.infolist() if info.compress_type == zipfile.ZIP_STORED]


def _record(name: str) -> str:
    """A record's name without the archive's own: ``model_weights/data/0`` -> ``data/0``."""
    return name.partition("/")[2]


def _data_offset(buffer, start: int, info: zipfile.ZipInfo) -> int:
    """Where a record's bytes begin: behind its local header of 30 bytes, its name and its padding (PKWARE, 4.3.7)."""
    name, extra = struct.unpack_from("<HH", buffer, start + info.header_offset + 26)
    return info.header_offset + 30 + name + extra


class _Unpickler(pickle.Unpickler):
    """What ``torch.load(weights_only=True)`` does for a dictionary of tensors, on tensors that stay where they lie.

    A pickle may name any function to be called.  Here only the names below mean anything; all others are refused.
    """

    DTYPES = {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
    }

    def __init__(self, file, buffer, offsets: dict[str, int]):
        super().__init__(file)
        self.buffer, self.offsets = buffer, offsets

    def find_class(self, module: str, name: str):
        import torch

        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in self.DTYPES:
            return getattr(torch, self.DTYPES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        raise SetupError(f"names {module}.{name}: weights hold tensors only, this is not safe to load")

    def persistent_load(self, reference):
        import torch

        _, dtype, key, _, count = reference
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=self.offsets[f"data/{key}"])
