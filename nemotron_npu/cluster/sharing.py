"""A recognizer that the processes of a host share: loaded once, its tensors lie in memory that all of them map.

The recognizer is pickled without its tensors.  These go into a file in memory (memfd), as they lie: also the weights
that oneDNN has laid out for its kernels, which torch itself cannot pickle.  No name is given to the file: it is gone,
whatever ends them, with the last process that has it open or mapped.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
import struct
from pathlib import Path

import torch

ALIGNMENT = 64  # bytes, of torch's own memory
END = struct.Struct("<q")  # the last bytes: where the tensors end and the rest begins


def share(recognizer) -> int:
    """The descriptor of the memory that now holds a recognizer on the CPU: its tensors and, at the end, the rest.

    FBGEMM's int8 weights cannot be seen from outside: they are part of the rest, and each process lays them out anew.
    """
    memory, rest = os.memfd_create("recognizer"), io.BytesIO()
    pickler = _Pickler(rest, memory)
    pickler.dump(recognizer)
    with open(memory, "wb", closefd=False) as file:
        file.seek(pickler.end)
        file.write(rest.getvalue())
        file.write(END.pack(pickler.end))
    return memory


def adopt(memory: str):
    """The recognizer that another process shares; ``memory`` is a path, ``/proc/PID/fd/N``.

    Pages that are written to become this process's own.  Raises OSError when that process has ended.
    """
    with open(memory, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (end,) = END.unpack(mapping[-END.size :])
    recognizer = _Unpickler(io.BytesIO(mapping[end : -END.size]), mapping).load()
    recognizer.mapping = mapping  # its packed tensors do not keep it
    return recognizer


class _Pickler(pickle.Pickler):
    def __init__(self, file, memory: int):
        super().__init__(file)
        self.memory, self.end = memory, 0
        self.places: dict[int, int] = {}  # by address: what two tensors share is there once

    def persistent_id(self, value):
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            return None
        shape = tuple(value.shape)
        if value.is_mkldnn:
            at = self._place(torch.ops.mkldnn.data_ptr(value), torch.ops.mkldnn._nbytes(value))
            layout = torch.ops.mkldnn._get_mkldnn_serialized_md(value).numpy().tobytes()
            return at, value.dtype, shape, layout
        storage = value.untyped_storage()
        at = self._place(storage.data_ptr(), storage.nbytes())
        return at, value.dtype, shape, (value.stride(), value.storage_offset(), storage.nbytes())

    def _place(self, address: int, size: int) -> int:
        if address not in self.places:
            self.places[address] = self.end
            data = memoryview((ctypes.c_char * size).from_address(address)) if size else b""
            while data:
                data = data[os.pwrite(self.memory, data, self.end + size - len(data)) :]
            self.end += -(-size // ALIGNMENT) * ALIGNMENT
        return self.places[address]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, mapping: mmap.mmap):
        super().__init__(file)
        self.mapping = mapping
        self.address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()

    def persistent_load(self, reference):
        at, dtype, shape, layout = reference
        if isinstance(layout, bytes):
            return _packed(self.address + at, dtype, shape, layout)
        stride, offset, size = layout
        count = size // dtype.itemsize
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.mapping, dtype=dtype, count=count, offset=at).as_strided(shape, stride, offset)


def _packed(address: int, dtype: torch.dtype, shape: tuple, layout: bytes) -> torch.Tensor:
    """A oneDNN tensor of memory that is there already: what compiled models do with their weights
    (torch/csrc/inductor/aoti_torch/c/shim.h)."""
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    size = len(shape)
    stride = [torch.Size(shape[i + 1 :]).numel() for i in range(size)]
    handle = ctypes.c_void_p()
    failed = torch_cpu.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(size),
        (ctypes.c_int64 * size)(*shape),
        (ctypes.c_int64 * size)(*stride),
        ctypes.c_int64(0),
        getattr(torch_cpu, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")(),
        torch_cpu.aoti_torch_device_type_cpu(),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        torch_cpu.aoti_torch_layout__mkldnn(),
        layout,
        ctypes.c_int64(len(layout)),
    )
    if failed:
        raise RuntimeError(f"torch {torch.__version__} takes no packed weights from shared memory")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(capsule(handle, None, None))
