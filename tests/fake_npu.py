"""A fake ``npu`` device for machines without Ascend hardware or CANN; its arithmetic and speed are the CPU's.

    python tests/fake_npu.py inference.py --device npu:0 ...    # run a script with the fake in place of torch_npu
    FAKE_NPU_MEMORY=20000000 python tests/fake_npu.py ...       # the same with so many bytes on each device
    FAKE_NPU_HF32_BITS=10 python tests/fake_npu.py ...          # HF32 with a mantissa of 10 bits instead of 11
    FAKE_NPU_HF32=conv python tests/fake_npu.py ...             # HF32 in convolutions only, whatever is allowed
    ASCEND_RT_VISIBLE_DEVICES=1 python tests/fake_npu.py ...    # one card of the two, as npu:0

``install()`` renames torch's PrivateUse1 backend to ``npu`` and backs every tensor on it by a CPU tensor that nothing
else can see.  It shows which tensor is on which device, what is moved when, which dtypes reach the device and which
``torch.npu`` functions are called.

torch_npu's fused operators compute what their documentation tells, see ``fused_operators.py``.

As on a real NPU, float32 convolutions compute in HF32 unless ``torch.npu.conv.allow_hf32`` is False, and matrix
products do if ``torch.npu.matmul.allow_hf32`` is True.  HF32 is emulated: both factors are rounded to its mantissa, and
the products are summed in float32.

What it cannot show: other Ascend numerics (all else is the CPU's own, so a comparison with the CPU passes by nature),
speed, which operators CANN has, torch_npu's kernels, autocast and streams.  A figure that it gives is a
fake's.  An ``NPUGraph`` is a list of operators: recording computes nothing that lasts, a replay runs them on the same
memory, and what a real one refuses (waiting for the device, a copy from or to the host) is refused while it records.

What it refuses, as the real device does: an operation that mixes ``npu`` tensors with CPU tensors of one or more
dimensions, ``.numpy()`` on an ``npu`` tensor, device indices that do not exist, arithmetic on float64, and with
``FAKE_NPU_MEMORY`` tensors for which there is no room beside those that are alive (a real allocator's caches and
fragments take more).
``x_npu.double()`` gives float32 with torch_npu's own warning.  It must run before anything else has renamed
PrivateUse1, and cannot be undone: tests that use it run in processes of their own.  torch 2.9 takes a backend's device
guard in C++ only, so that a compiler is needed there: see ``missing()``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
import weakref
from importlib.machinery import ModuleSpec
from pathlib import Path

import fused_operators
import torch
from torch._decomp import decompositions
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

aten = torch.ops.aten
CARDS = 2
REAL_MEMORY = 64 << 30
MEMORY = int(os.environ.get("FAKE_NPU_MEMORY", REAL_MEMORY))  # bytes of each device
HF32_BITS = int(os.environ.get("FAKE_NPU_HF32_BITS", 11))  # of the mantissa; CANN's documentation names 11
HF32_SWITCHES = os.environ.get("FAKE_NPU_HF32", "conv,matmul").split(",")  # of torch.npu, those that have an effect
CALLS: list[str] = []  # every torch.npu.* call, in order, e.g. "set_device(0)"
OPS: dict[str, int] = {}  # aten operator -> number of executions on the device
COPIES: list[tuple[str, int]] = []  # ("h2d" | "d2h", bytes) for every transfer
DTYPES: set[torch.dtype] = set()  # of every tensor that was ever on the device
DENY: set[str] = set()  # aten operators ("aten.stft") that shall fail as "not implemented on npu"
_live: weakref.WeakSet[NpuTensor] = weakref.WeakSet()
_current = 0
_recording: NPUGraph | None = None
_recorder = 0  # the thread that records
_lib: list = []

# metadata, views and copies: any dtype is fine, nothing is computed
_PASSIVE = {
    "view", "_unsafe_view", "as_strided", "as_strided_", "slice", "select", "expand", "permute", "transpose", "t",
    "unsqueeze", "squeeze", "detach", "alias", "clone", "copy_", "_to_copy", "_copy_from", "empty", "empty_strided",
    "empty_like", "new_empty", "new_empty_strided", "resize_", "set_", "_reshape_alias", "lift_fresh", "is_pinned",
    "view_as_real", "view_as_complex", "split", "split_with_sizes", "unbind", "diagonal", "unfold", "new_zeros",
    "zeros_like", "ones_like", "new_ones", "full_like", "new_full", "zero_", "fill_", "_local_scalar_dense", "item",
    "cat", "stack", "contiguous", "is_same_size", "equal", "_has_compatible_shallow_copy_type", "_pin_memory",
}  # fmt: skip
_TRANSFER = {"copy_", "_copy_from", "_to_copy"}
_HF32 = {
    "convolution": ("conv", 0), "mm": ("matmul", 0), "bmm": ("matmul", 0), "addmm": ("matmul", 1),
    "baddbmm": ("matmul", 1),
}  # fmt: skip
"""Operators that HF32 applies to: the switch in torch.npu, and the position of the first of two factors."""
_CPU_INDEX_OK = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}


def visible_cards(value: str | None) -> list[int]:
    """Return the cards that ASCEND_RT_VISIBLE_DEVICES leaves, in the order of npu:0, npu:1 ...; all if it is not set.

    As CANN documents it: IDs in ascending order, and only those before the first character or ID that does not belong.
    """
    if value is None:
        return list(range(CARDS))
    cards: list[int] = []
    known = re.match(r"(\d+(,\d+)*)?", value)[0]
    for card in map(int, filter(None, known.split(","))):
        if not max(cards, default=-1) < card < CARDS:
            break
        cards.append(card)
    return cards


DEVICE_COUNT = len(visible_cards(os.environ.get("ASCEND_RT_VISIBLE_DEVICES")))  # CANN reads it once, too


class NpuTensor(torch.Tensor):
    """Wrapper with device ``npu:i``; ``_raw`` is the hidden CPU tensor."""

    __slots__ = ["_raw"]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw, index=0):
        if not 0 <= index < DEVICE_COUNT:
            raise RuntimeError(f"exchangeDevice: NPU function error: SetDevice({index}), error code is 107001 "
                               f"[fake npu: {DEVICE_COUNT} device(s)]")  # fmt: skip
        self = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            layout=raw.layout, device=torch.device("npu", index), requires_grad=False)  # fmt: skip
        self._raw = raw
        DTYPES.add(raw.dtype)
        own = raw.untyped_storage()
        if MEMORY < REAL_MEMORY and own.nbytes() >= 1 << 16:  # it is slow to count: not for every small one
            held = _storages(index)
            if own.data_ptr() not in held and sum(held.values()) + own.nbytes() > MEMORY:
                size = f"{own.nbytes() / (1 << 20):.2f} MiB"
                raise RuntimeError(f"NPU out of memory. Tried to allocate {size} (NPU {index}) [fake npu]")
        _live.add(self)
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def numpy(self, *, force=False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the "
                        "tensor to host memory first.")  # fmt: skip

    def __array__(self, *a, **k):
        return self.numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        with torch._C._DisableTorchDispatch():
            torch.Tensor.data.__set__(self, value)
        self._raw = value._raw

    def data_ptr(self):
        return self._raw.data_ptr()

    def npu(self, device=None, non_blocking=False):
        return self.to(torch.device("npu", _index(device)))

    def __repr__(self, *, tensor_contents=None):
        body = repr(self._raw.detach())
        return f"{body[:-1]}, device='{self.device}')"


def _storages(index) -> dict[int, int]:
    """Bytes by address of what is alive on a device."""
    storages = (t._raw.untyped_storage() for t in list(_live) if t.device.index == index)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _index(device) -> int:
    if device is None:
        return _current
    if isinstance(device, int):
        return device
    device = torch.device(device)
    return _current if device.index is None else device.index


def _refresh(wrapper, raw):
    """After an operation that changed the metadata in place (resize_, unsqueeze_, out=)."""
    if (wrapper.shape, wrapper.stride(), wrapper.storage_offset()) != (raw.shape, raw.stride(), raw.storage_offset()):
        fresh = NpuTensor(raw, wrapper.device.index)
        with torch._C._DisableTorchDispatch():
            torch.Tensor.data.__set__(wrapper, fresh)
    wrapper._raw = raw
    return wrapper


def _run(func, args, kwargs):
    name = func._schema.name.split("::")[1]
    flat, spec = pytree.tree_flatten((args, kwargs))
    on_npu = [t for t in flat if isinstance(t, NpuTensor)]
    device = kwargs.get("device")
    target = torch.device(device) if device is not None else None

    if name == "_has_compatible_shallow_copy_type":  # asked by nn.Module.to()
        return False  # nn.Module.to()/half() then make new Parameters instead of assigning .data
    if on_npu and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)  # inference tensors: .to(), .reshape() ... arrive whole
    if DENY and (f"aten.{name}" in DENY or str(func) in DENY):
        raise NotImplementedError(f"aten::{name} is not implemented on the npu device [fake npu: DENY]")
    if on_npu and name not in _TRANSFER:
        indices = {d.device.index for d in on_npu}
        host = [t for t in flat if isinstance(t, torch.Tensor) and not isinstance(t, NpuTensor) and t.dim() > 0]
        if name in _CPU_INDEX_OK and isinstance(args[0], NpuTensor):
            host = [t for t in host if t.dtype not in (torch.long, torch.int, torch.bool, torch.uint8)]
        if host or len(indices) > 1:
            other = "cpu" if host else f"npu:{max(indices)}"
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices, "
                               f"npu:{min(indices)} and {other}! (aten::{name})")  # fmt: skip
    if name not in _PASSIVE and any(t.dtype in (torch.float64, torch.complex128) for t in on_npu):
        raise RuntimeError(f"aten::{name}: float64 is not supported on the npu device [fake npu]")
    if name == "_to_copy" and on_npu and target is None and kwargs.get("dtype") == torch.float64:
        warnings.warn("Device do not support double dtype now, dtype cast replace with float.", stacklevel=2)
        kwargs = {**kwargs, "dtype": torch.float32}
        flat, spec = pytree.tree_flatten((args, kwargs))

    back = {id(t._raw): t for t in on_npu}
    raw_args, raw_kwargs = pytree.tree_unflatten([t._raw if isinstance(t, NpuTensor) else t for t in flat], spec)
    if target is not None:
        raw_kwargs["device"] = "cpu" if target.type == "npu" else target
    if name == "set_" and any(isinstance(a, torch.UntypedStorage) for a in flat):
        raise NotImplementedError("storages on the npu device [fake npu]")
    if on_npu or (target is not None and target.type == "npu"):
        OPS[f"aten.{name}"] = OPS.get(f"aten.{name}", 0) + 1
    if name == "_copy_from":  # (self, dst)
        name, func, raw_args, args = "copy_", aten.copy_.default, (raw_args[1], raw_args[0]), (args[1], args[0])
    _note_copy(name, args, target)

    if _recording and _recorder == threading.get_ident() and (on_npu or target is not None):
        out = _recording.run(func, raw_args, raw_kwargs)
    else:
        out = _compute(func, raw_args, raw_kwargs)

    index = next((t.device.index for t in on_npu), _current)
    if target is not None:
        index = _index(target) if target.type == "npu" else None
    elif name == "copy_" and not isinstance(args[0], NpuTensor):
        index = None

    def wrap(t):
        if not isinstance(t, torch.Tensor) or isinstance(t, NpuTensor):
            return t
        if id(t) in back:
            return _refresh(back[id(t)], t)
        if index is None or not (on_npu or target is not None):
            return t
        # under inference_mode() a view of an ordinary tensor stays an ordinary tensor
        ordinary_view = func.is_view and not on_npu[0].is_inference()
        with torch.inference_mode(torch.is_inference_mode_enabled() and not ordinary_view):
            return NpuTensor(t, index)

    for t in on_npu:  # out= and in-place arguments that are not returned
        _refresh(t, t._raw)
    return pytree.tree_map(wrap, out)


def _compute(func, args, kwargs):
    """Call an operator on the raw tensors, with the factors of its products in HF32 where the switches allow that."""
    switch, first = _HF32.get(func._schema.name.split("::")[1].removesuffix("_"), (None, 0))
    if switch in HF32_SWITCHES and getattr(torch.npu, switch).allow_hf32:
        factors = [_to_hf32(t) if t.dtype == torch.float32 else t for t in args[first : first + 2]]
        args = (*args[:first], *factors, *args[first + 2 :])
    return func(*args, **kwargs)


def _to_hf32(t):
    """Round float32 to a mantissa of HF32_BITS, to the nearest, ties to even."""
    dropped = 23 - HF32_BITS
    bits = t.contiguous().view(torch.int32)
    half = (1 << (dropped - 1)) - 1 + (bits >> dropped & 1)
    return torch.where(t.isfinite(), (bits + half >> dropped << dropped).view(torch.float32), t)


def _note_copy(name, args, target):
    if name == "copy_":
        src, dst = isinstance(args[1], NpuTensor), isinstance(args[0], NpuTensor)
    elif name == "_to_copy" and target is not None:
        src, dst = isinstance(args[0], NpuTensor), target.type == "npu"
    else:
        return
    if src != dst:
        _refuse_while_recording("a copy between host and device")
        COPIES.append(("d2h" if src else "h2d", args[0].numel() * args[0].element_size()))


def _refuse_while_recording(what):
    if _recording and (_recorder == threading.get_ident() or _recording.error_mode == "global"):
        raise RuntimeError(f"{what} is not permitted while a stream is captured [fake npu]")


class NPUGraph:
    """Operators on the raw tensors of one recording."""

    def __init__(self):
        self.operators = []  # (function, args, kwargs, what it returned)
        self.before = {}  # what the recording overwrote: storage address -> (a view of all of it, its contents)
        self.made = set()  # addresses of storages that came with the recording

    def run(self, func, args, kwargs):
        if func is aten._local_scalar_dense.default:
            _refuse_while_recording("waiting for a value")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._save(argument, value)
        for argument in func._schema.arguments:
            self._save(argument, kwargs.get(argument.name))
        out = _compute(func, args, kwargs)
        given = {
            t.untyped_storage().data_ptr() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        self.made |= {t.untyped_storage().data_ptr() for t in _tensors(out)} - given
        if not func.is_view:
            self.operators.append((func, args, kwargs, out))
        return out

    def _save(self, argument, value):
        if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        if storage.data_ptr() not in self.made | self.before.keys():
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self.before[storage.data_ptr()] = whole, whole.clone()

    def end(self):
        for whole, contents in self.before.values():
            whole.copy_(contents)

    def replay(self):
        CALLS.append("replay()")
        for func, args, kwargs, out in self.operators:
            for kept, fresh in zip(_tensors(out), _tensors(_compute(func, args, kwargs)), strict=True):
                if kept.data_ptr() != fresh.data_ptr():
                    kept.copy_(fresh)


def _tensors(tree):
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


@contextlib.contextmanager
def graph(npu_graph, capture_error_mode="global"):
    global _recording, _recorder
    npu_graph.error_mode = capture_error_mode
    _recording, _recorder = npu_graph, threading.get_ident()
    try:
        yield
    finally:
        _recording = None
        npu_graph.end()


def _logged(fn):
    def call(*args, **kwargs):
        CALLS.append(f"{fn.__name__}({', '.join([repr(a) for a in args] + [f'{k}={v!r}' for k, v in kwargs.items()])})")
        return fn(*args, **kwargs)

    call.__name__ = fn.__name__
    return call


class Stream:
    def __init__(self, device=None, priority=0, **kw):
        self.device, self.device_index, self.npu_stream = torch.device("npu", _index(device)), _index(device), 0

    def synchronize(self): ...
    def wait_stream(self, stream): ...
    def wait_event(self, event): ...
    def query(self): return True  # fmt: skip

    def record_event(self, event=None): return event or Event()  # fmt: skip

    def __enter__(self): return self  # fmt: skip

    def __exit__(self, *a): ...


class Event:
    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self.enable_timing, self._t = enable_timing, None

    def record(self, stream=None):
        self._t = time.perf_counter()

    def wait(self, stream=None): ...
    def synchronize(self): ...
    def query(self): return True  # fmt: skip

    def elapsed_time(self, end): return (end._t - self._t) * 1e3  # fmt: skip


def _make_module():
    npu = types.ModuleType("torch.npu")

    def set_device(device):
        global _current
        if not 0 <= _index(device) < DEVICE_COUNT:
            raise RuntimeError(f"NPU function error: SetDevice({device}), error code is 107001 [fake npu]")
        _current = _index(device)

    @contextlib.contextmanager
    def device(d):
        global _current
        old, _current = _current, _index(d)
        try:
            yield
        finally:
            _current = old

    def is_available(): return DEVICE_COUNT > 0  # fmt: skip

    def device_count(): return DEVICE_COUNT  # fmt: skip

    def current_device(): return _current  # fmt: skip

    def synchronize(device=None):
        _refuse_while_recording("waiting for the device")
        _index(device)

    def empty_cache(): ...
    def memory_allocated(device=None):
        return sum(_storages(_index(device)).values())

    def get_device_name(device=None): return "Ascend-fake (CPU)"  # fmt: skip

    def mem_get_info(device=None):
        return (MEMORY - sum(_storages(_index(device)).values()), MEMORY)

    def get_device_properties(device=None):
        return types.SimpleNamespace(name=get_device_name(), total_memory=MEMORY)

    def manual_seed(seed): torch.manual_seed(seed)  # fmt: skip

    def manual_seed_all(seed): ...  # called by torch.manual_seed
    def get_rng_state(device="npu"): return torch.get_rng_state()  # fmt: skip

    def set_rng_state(state, device="npu"): torch.set_rng_state(state)  # fmt: skip

    def get_amp_supported_dtype(): return [torch.float16, torch.bfloat16]  # fmt: skip

    def is_bf16_supported(): return True  # fmt: skip

    def current_stream(device=None): return Stream(device)  # fmt: skip

    def default_stream(device=None): return Stream(device)  # fmt: skip

    def stream(s): return s or contextlib.nullcontext()  # fmt: skip

    def is_initialized(): return True  # fmt: skip

    def init(): ...
    def set_compile_mode(jit_compile): npu.jit_compile = jit_compile  # fmt: skip

    def is_jit_compile_false(): return not npu.jit_compile  # fmt: skip

    for fn in (is_available, device_count, set_device, current_device, synchronize, empty_cache, memory_allocated,
               get_device_name, mem_get_info, get_device_properties, manual_seed, current_stream, default_stream,
               stream, init, set_compile_mode, is_bf16_supported):  # fmt: skip
        setattr(npu, fn.__name__, _logged(fn))
    for fn in (manual_seed_all, get_rng_state, set_rng_state, get_amp_supported_dtype, is_initialized,
               is_jit_compile_false):  # fmt: skip
        setattr(npu, fn.__name__, fn)
    npu.max_memory_allocated = npu.memory_reserved = npu.max_memory_reserved = npu.memory_allocated
    npu.reset_peak_memory_stats = npu.reset_max_memory_allocated = lambda device=None: None
    npu.device, npu.Stream, npu.Event, npu._is_in_bad_fork = device, Stream, Event, lambda: False
    npu.NPUGraph, npu.graph = NPUGraph, graph
    npu.conv, npu.matmul = types.SimpleNamespace(allow_hf32=True), types.SimpleNamespace(allow_hf32=False)
    npu.config = types.SimpleNamespace(allow_internal_format=True)  # these are torch_npu 2.9.0's own defaults
    npu.jit_compile = True  # that of a 310P or 910A
    return npu


IN_PYTHON = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
COMPILER = os.environ.get("CXX") or "c++"


def missing() -> str:
    """What keeps the fake from being installed here, or an empty string."""
    if IN_PYTHON or shutil.which(COMPILER):
        return ""
    return f"the fake npu needs a C++ compiler with torch {torch.__version__} ({COMPILER} was not found)"


def _register(npu):
    """Rename PrivateUse1 to ``npu`` and give it a device guard, hooks and the module ``torch.npu``."""
    if IN_PYTHON:
        backend_registration._setup_privateuseone_for_python_backend("npu", backend_module=npu)
        return
    if missing():
        raise RuntimeError(missing())
    torch.utils.rename_privateuse1_backend("npu")
    torch.utils.generate_methods_for_privateuse1_backend()
    torch._register_device_module("npu", npu)
    torch.ops.load_library(_compiled_guard())


def _one_layer_lstm(theirs, inp, hidden, *args, **kwargs):
    """torch's formula of an LSTM layer; that of 2.9 and 2.10 adds a dimension to the last states of two sequences."""
    out, last = theirs(inp, hidden, *args, **kwargs)
    return out, tuple(new.reshape(old.shape) for new, old in zip(last, hidden, strict=True))


def _compiled_guard() -> Path:
    """fake_npu_guard.cpp as a library for this torch, compiled (2 seconds) where there is none or an older one."""
    source = Path(__file__).with_name("fake_npu_guard.cpp")
    library = source.parent / "__pycache__" / f"{source.stem}.torch-{torch.__version__}.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        library.parent.mkdir(exist_ok=True)
        root = Path(torch.__file__).parent
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # several processes may compile it at once
            made = Path(folder) / library.name
            command = [COMPILER, "-std=c++17", "-shared", "-fPIC", f"-I{root / 'include'}", source, "-o", made]
            subprocess.run([*command, f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
            made.replace(library)
    return library


def _refuse_location(storage, location):
    if str(location).startswith("npu"):
        raise NotImplementedError("torch.load(map_location='npu') [fake npu]: load to 'cpu', then .to('npu')")


def install():
    """Register the device once; put a marked fake ``torch_npu`` into ``sys.modules``."""
    if "torch_npu" in sys.modules:
        if getattr(sys.modules["torch_npu"], "__fake__", False):
            return sys.modules["torch_npu"]
        raise RuntimeError("the real torch_npu is already imported")
    npu = _make_module()
    _register(npu)
    decompositions.one_layer_lstm = functools.partial(_one_layer_lstm, decompositions.one_layer_lstm)
    torch.serialization.register_package(1, lambda obj: None, _refuse_location)  # else torch.load segfaults
    torch.Tensor.pin_memory = lambda self, *a, **k: self  # DataLoader(pin_memory=True): no pinned allocator here
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(lambda op, *a, **k: _run(op, a, k), "PrivateUse1")
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast('npu') casts nothing here
    fused = torch.library.Library("npu", "DEF")
    for schema in fused_operators.SCHEMAS:
        name = fused.define(schema)
        fused.impl(name, fused_operators.REFERENCES[f"npu::{name}"], "CPU")
    direct = torch.library.Library("aten", "IMPL")  # reached with __torch_dispatch__ switched off (torch.tensor)
    direct.impl("_copy_from", lambda *a, **k: _run(aten._copy_from.default, a, k), "PrivateUse1")
    _lib.extend([fallback, fused, direct])
    module = types.ModuleType("torch_npu")
    options = {"ALLOW_INTERNAL_FORMAT": lambda: b"enable" if npu.config.allow_internal_format else b"disable"}
    module._C = types.SimpleNamespace(_npu_getOption=lambda name: options[name]())
    module.__fake__, module.__version__, module.npu = True, f"{torch.__version__.split('+')[0]}+fake", npu
    module.__spec__, npu.__spec__ = ModuleSpec("torch_npu", None), ModuleSpec("torch_npu.npu", None)  # find_spec()
    sys.modules["torch_npu"], sys.modules["torch_npu.npu"] = module, npu
    return module


def main() -> None:
    """Run the script ``sys.argv[1]`` with the rest as its arguments, the fake installed."""
    script = sys.argv[1]
    del sys.argv[0]
    sys.path[0] = str(Path(script).resolve().parent)
    sys.modules["fake_npu"] = sys.modules["__main__"]
    install()
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))  # the doctor's child has none of its threads
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
