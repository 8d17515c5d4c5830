"""``model_weights.ckpt`` of a ``.nemo`` file -> tensors by name, without torch.load and without trusting the file."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from ..errors import SetupError, shown
from .archive import WEIGHTS, Member, is_gzipped, opened_weights, read_into
from .refusal import AGAIN, NOT_FLOATS, UNSAFE, Refusal
from .torch_zip import Window, read_records, reading_zip
from .unpickler import TensorUnpickler

SCALES = ".scales"
"""Follows the name of a weight that is stored in int8."""


class Quantized(NamedTuple):
    """The weight of a matrix product in int8."""

    levels: torch.Tensor
    """int8 [out, in]."""
    scales: torch.Tensor
    """float32 [out]."""


class Mappings(tuple[mmap.mmap, ...]):
    """The file mappings that tensors lie in; none if they have memory of their own."""

    def release(self) -> None:
        """Give the resident pages back to the kernel; they are read again when they are used again."""
        for mapping in self:
            mapping.madvise(mmap.MADV_DONTNEED)

    def release_one(self, tensor: torch.Tensor) -> None:
        """Give back the pages of this tensor alone, if it lies in a mapping."""
        for mapping in self:
            first = tensor.data_ptr() - torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
            if 0 <= first < len(mapping):
                start, end = -(-first // mmap.PAGESIZE), (first + tensor.nbytes) // mmap.PAGESIZE
                if start < end:
                    mapping.madvise(mmap.MADV_DONTNEED, start * mmap.PAGESIZE, (end - start) * mmap.PAGESIZE)

    def __reduce__(self) -> tuple[type[Mappings], tuple[()]]:
        """Leave them out of a pickle: a mapping is valid in this process only."""
        return Mappings, ()


class Tensors(dict[str, torch.Tensor]):
    """Tensors by name, and where they come from."""

    mappings: Mappings = Mappings()
    member: str = WEIGHTS
    """The file that has them, for messages."""
    quantized: bool = False
    """Whether the weights of matrix products are int8, each with a tensor of scales."""


def read_weights(path: Path) -> Tensors:
    """Return every tensor of ``model_weights.ckpt`` by its name, on the CPU, in the dtype in which it was saved.

    A plain tar is mapped: torch's zip in it stores each tensor uncompressed and aligned, so the tensors lie in the page
    cache, are read at their first use, and are shared between processes.  A gzipped tar is unpacked into memory once.
    Nothing is written to disk.  The tensors have no more bytes than the file.  ``Weights`` looks at their values.

    Raises SetupError when the weights are missing or broken or hold anything but tensors, and for any member of the
    archive that a checkpoint does not have.
    """
    buffer, start, size, is_mapped = _load_member(path)
    with reading_zip(path):
        pickled, records = read_records(Window(buffer, start, size))
        storages = {key: (start + offset, length) for key, (offset, length) in records.items()}
        weights = TensorUnpickler(pickled, buffer, storages).load()
        tensors = _check_tensors(weights, size)
    tensors.mappings = Mappings([buffer] if is_mapped else [])
    return tensors


def _load_member(path: Path) -> tuple[mmap.mmap, int, int, bool]:
    """Return a buffer that has the member, where in it the member starts, its size, and whether a file is mapped."""
    with opened_weights(path) as (file, start, size):
        if size and not is_gzipped(file):
            return map_file(file), start, size, True
        buffer = mmap.mmap(-1, max(size, 1))
        if size:
            read_into(path, file, Member(WEIGHTS, start, size), buffer)
        return buffer, 0, size, False


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map a file into memory, privately, because torch wants it writable."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _check_tensors(weights: object, size: int) -> Tensors:
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise Refusal("holds something other than named tensors")
    if sum(weight.nbytes for weight in weights.values()) > 2 * size:  # two layers may share some
        raise Refusal("gives the same bytes many names", UNSAFE)
    return Tensors(weights)


def check_finite(name: str, tensor: torch.Tensor, member: str = WEIGHTS) -> None:
    """Raise SetupError unless ``tensor`` has finite values.

    The sum is not finite if a number is not: one pass over pages that have to be read anyway.
    """
    if not tensor.sum().isfinite() and not tensor.isfinite().all():
        raise SetupError(member, f"{shown(name)} has NaN or infinite values", AGAIN)


def check_floats(name: str, tensor: torch.Tensor, shape: Sequence[int | None], member: str = WEIGHTS) -> None:
    """Raise SetupError unless ``tensor`` has floats in this shape; None stands for any length."""
    if not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise SetupError(member, f"{shown(name)} has dtype {dtype}, not a float", NOT_FLOATS)
    check_shape(name, tensor, shape, member)


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None], member: str = WEIGHTS) -> None:
    """Raise SetupError unless ``tensor`` has this shape; None stands for any length."""
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(b not in (None, a) for a, b in zip(sizes, shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise SetupError(member, f"{shown(name)} has shape {list(sizes)}, the config requires [{expected}]", AGAIN)


class Weights:
    """The tensors of a checkpoint on the way to the layers: by name, in ``dtype`` on ``device``.

    ``dtype`` None keeps the saved one.  ``prefix`` comes before every name; ``taken`` collects the names in use.
    """

    def __init__(
        self,
        tensors: Tensors,
        device: torch.device,
        dtype: torch.dtype | None,
        prefix: str = "",
        taken: set[str] | None = None,
    ) -> None:
        self.tensors = tensors
        self.device = device
        self.dtype = dtype
        self.prefix = prefix
        self.taken: set[str] = set() if taken is None else taken

    def inside(self, prefix: str) -> Weights:
        """Return those whose names begin with ``prefix``, without it."""
        return Weights(self.tensors, self.device, self.dtype, self.prefix + prefix, self.taken)

    def has(self, name: str) -> bool:
        """Return whether there is such a tensor, and count it as taken."""
        self.taken.add(self.prefix + name)
        return self.prefix + name in self.tensors

    def __call__(self, name: str, *shape: int | None) -> torch.Tensor:
        """Return the tensor of this name and shape; None stands for any length.

        Raises SetupError when it is missing or has another shape, another kind of dtype or non-finite values.
        """
        return self.converted(self.stored(name, *shape))

    def stored(self, name: str, *shape: int | None) -> torch.Tensor:
        """Return the same as it is stored, on the CPU."""
        tensor = self._unchecked(name, *shape)
        check_finite(self.prefix + name, tensor, self.tensors.member)
        return tensor

    def _unchecked(self, name: str, *shape: int | None) -> torch.Tensor:
        tensor = self._find(name)
        check_floats(self.prefix + name, tensor, shape, self.tensors.member)
        return tensor

    def quantized_by(self, quantize: Callable[[torch.Tensor], Quantized], name: str, *shape: int) -> Quantized:
        """Return ``quantize`` of a weight, float32 [out, in], on the CPU.  Raises SetupError as ``__call__``.

        A scale is not finite if a number of its row is not, which saves a pass over the weight.
        """
        result = quantize(self._unchecked(name, *shape).float().view(shape[0], -1))
        check_finite(self.prefix + name, result.scales, self.tensors.member)
        return result

    def converted(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a stored tensor in ``dtype`` on ``device``."""
        return tensor.to(self.device, self.dtype)

    def _find(self, name: str) -> torch.Tensor:
        full_name = self.prefix + name
        if not self.has(name):
            raise SetupError(self.tensors.member, f"lacks {full_name}", AGAIN)
        return self.tensors[full_name]

    def quantized(self, name: str, *shape: int) -> Quantized:
        """Return a weight that is stored in int8, [out, in], on the CPU.  Raises SetupError as ``__call__``."""
        scales = self(name + SCALES, shape[0])
        tensor = self._find(name)
        check_shape(self.prefix + name, tensor, shape, self.tensors.member)
        return Quantized(tensor.view(len(tensor), -1), scales)

    def release(self) -> None:
        """Let the kernel drop the pages that were read, so that copied weights are not held twice."""
        self.tensors.mappings.release()

    def check_all_taken(self) -> None:
        """Raise SetupError if there are tensors that no layer asked for."""
        left = [shown(name) for name in self.tensors if name not in self.taken]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise SetupError(
                self.tensors.member, f"has {', '.join(left[:3])}{more}, which the config does not describe"
            )
