"""Weights that oneDNN has packed for its kernels, in memory that other processes map.

torch can neither pickle nor view such tensors by public means.  This module alone uses private ones: operators of
``torch.ops.mkldnn``, and the C function by which models compiled with AOTInductor take their packed weights
(torch/csrc/inductor/aoti_torch/c/shim.h).  A torch that lacks any of them raises ``CannotShare``.
"""

from __future__ import annotations

import ctypes
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch


class CannotShare(Exception):
    """This torch offers no access to packed weights."""


def memory_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address and the size in bytes of a packed tensor.  Raises CannotShare."""
    return _call("data_ptr", tensor), _call("_nbytes", tensor)


def layout_of(tensor: torch.Tensor) -> bytes:
    """Return oneDNN's description of a packed tensor.  Raises CannotShare."""
    return _call("_get_mkldnn_serialized_md", tensor).numpy().tobytes()


def _call(operator: str, tensor: torch.Tensor) -> Any:
    try:
        return getattr(torch.ops.mkldnn, operator)(tensor)
    except (AttributeError, RuntimeError) as error:  # it is missing, or refuses
        raise CannotShare(str(error)) from error


def tensor_at(address: int, dtype: torch.dtype, shape: tuple[int, ...], layout: bytes) -> torch.Tensor:
    """Return the packed tensor that lies at ``address``, without a copy: the memory has to outlive it.

    Raises CannotShare.
    """
    try:
        return _tensor_at(address, dtype, shape, layout)
    except (AttributeError, OSError, RuntimeError) as error:  # a function or the library is missing, or refuses
        raise CannotShare(str(error)) from error


def _tensor_at(address: int, dtype: torch.dtype, shape: tuple[int, ...], layout: bytes) -> torch.Tensor:
    library = _library()
    rank = len(shape)
    stride = [torch.Size(shape[i + 1 :]).numel() for i in range(rank)]
    type_name = str(dtype).removeprefix("torch.")
    handle = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(rank),
        (ctypes.c_int64 * rank)(*shape),
        (ctypes.c_int64 * rank)(*stride),
        ctypes.c_int64(0),
        getattr(library, f"aoti_torch_dtype_{type_name}")(),
        library.aoti_torch_device_type_cpu(),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        layout,
        ctypes.c_int64(len(layout)),
    )
    if failed:
        raise CannotShare(f"torch {torch.__version__} takes no packed weights from memory")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    capsule = new_capsule(handle, None, None)
    new_tensor = attrgetter("_C._aoti.alloc_tensor_by_stealing_from_void_ptr")(torch)
    return new_tensor(capsule)


@cache
def _library() -> Any:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
