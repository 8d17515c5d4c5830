"""Share one recognizer among the processes of a host: it is loaded once, and all of them map its tensors.

The recognizer is pickled without its tensors.  Their bytes go into an anonymous file in memory (memfd), those of packed
weights included.  The kernel frees it with the last process that has it open or mapped, however that process ends.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import pickle
import struct
from typing import Any, BinaryIO, NamedTuple

import torch

from . import packed

CannotShare = packed.CannotShare
ALIGNMENT = 64  # bytes, as of torch's own memory
END = struct.Struct("<q")  # the last bytes of the file: where the tensors end and the pickle begins


class _Strided(NamedTuple):
    """A tensor in the shared memory."""

    offset: int
    """Of its storage, in bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage_bytes: int


class _Packed(NamedTuple):
    """A tensor that oneDNN has packed, in the shared memory."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: bytes


def share(recognizer: Any) -> int:
    """Copy a recognizer on the CPU into new shared memory and return its file descriptor.

    FBGEMM's int8 weights give no access to their memory: they go into the pickle, and each process packs them again.
    Raises ``CannotShare`` where this torch gives no access to oneDNN's.
    """
    memory = os.memfd_create("recognizer")
    try:
        file = io.BytesIO()
        pickler = _Pickler(file, memory)
        pickler.dump(recognizer)
        with open(memory, "wb", closefd=False) as target:
            target.seek(pickler.end)
            target.write(file.getvalue())
            target.write(END.pack(pickler.end))
    except BaseException:
        os.close(memory)
        raise
    return memory


def adopt(path: str, threads: int | None = None) -> Any:
    """Return the recognizer in the shared memory ``path``, ``/proc/PID/fd/N``.

    ``threads`` are the CPU threads that torch is to use in this process.  A page that this process writes to becomes
    its own.  Raises OSError when the process PID has ended.
    """
    if threads:
        torch.set_num_threads(threads)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (end,) = END.unpack(mapping[-END.size :])
    recognizer = _Unpickler(io.BytesIO(mapping[end : -END.size]), mapping).load()
    recognizer.mapping = mapping  # packed tensors do not keep it alive
    return recognizer


class _Pickler(pickle.Pickler):
    """Writes tensors to ``memory`` and everything else to ``file``."""

    def __init__(self, file: BinaryIO, memory: int) -> None:
        super().__init__(file)
        self.memory = memory
        self.end = 0
        self.offsets: dict[int, int] = {}  # by address: tensors of one storage share it again

    def persistent_id(self, value: Any) -> _Strided | _Packed | None:
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            return None
        shape = tuple(value.shape)
        if value.is_mkldnn:
            address, size = packed.memory_of(value)
            layout = packed.layout_of(value)
            packed.tensor_at(address, value.dtype, shape, layout)  # an error shows here, and not in each worker
            return _Packed(self._write(address, size), value.dtype, shape, layout)
        storage = value.untyped_storage()
        offset = self._write(storage.data_ptr(), storage.nbytes())
        return _Strided(offset, value.dtype, shape, value.stride(), int(value.storage_offset()), storage.nbytes())

    def _write(self, address: int, size: int) -> int:
        """Append ``size`` bytes, unless they have been written before, and return their offset in the memory."""
        if address not in self.offsets:
            offset = self.end
            self.offsets[address] = offset
            data = memoryview((ctypes.c_char * size).from_address(address)) if size else memoryview(b"")
            while data:
                written = os.pwrite(self.memory, data, offset + size - len(data))
                data = data[written:]
            self.end += math.ceil(size / ALIGNMENT) * ALIGNMENT
        return self.offsets[address]


class _Unpickler(pickle.Unpickler):
    """Reads a recognizer from ``file`` and makes its tensors of the mapped memory."""

    def __init__(self, file: BinaryIO, mapping: mmap.mmap) -> None:
        super().__init__(file)
        self.mapping = mapping
        self.address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()

    def persistent_load(self, reference: _Strided | _Packed) -> torch.Tensor:
        if isinstance(reference, _Packed):
            address = self.address + reference.offset
            return packed.tensor_at(address, reference.dtype, reference.shape, reference.layout)
        count = reference.storage_bytes // reference.dtype.itemsize
        if not count:
            return torch.empty(reference.shape, dtype=reference.dtype)
        storage = torch.frombuffer(self.mapping, dtype=reference.dtype, count=count, offset=reference.offset)
        return storage.as_strided(reference.shape, reference.stride, reference.storage_offset)
