"""Run command lines over the real torch_npu on the stub of CANN: ``python over_stub.py RUNS.json OUT.json``.

RUNS.json holds a list of ``{"args": [...], "environ": {...}}``, or of ``{"pool": streams, "model": ..., "clip": ...}``
for a pool of live streams that all hear the clip.  Each operator first goes through torch_npu, which
decides what to launch; the stub logs that and computes nothing.  Its value is then computed by the CPU over the same
bytes.  So what is seen here is torch_npu's own: operators that it has, falls back from or refuses, dtypes, launches,
copies, synchronizations, graph capture.  What cannot be seen is the NPU's: its values, its speed, its memory.

OUT.json holds for each run the exit code, stdout, stderr and ``steps``: {phase: {"calls": n, "operators":
{operator: {line of the stub's log: n}}}}.  Replayed graphs are computed too.
"""

import collections
import ctypes
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import torch
from fused_operators import REFERENCES
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NATIVE = {"empty", "empty_strided", "is_pinned", "set_", "resize_", "_pin_memory", "record_stream"}
"""Operators without values of their own: torch_npu's result stands."""
CASTS = {"_npu_dtype_cast", "npu_dtype_cast"}

cann = ctypes.CDLL("libascendcl.so")
cann.stub_log.restype = ctypes.c_char_p


def on_host(t: torch.Tensor) -> torch.Tensor:
    """Return the CPU's view of a tensor of the NPU: the stub's memory is the host's."""
    if t.device.type != "npu":
        return t
    storage = t.untyped_storage()
    if not storage.nbytes():
        return torch.empty(t.shape, dtype=t.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    view = torch.empty(0, dtype=t.dtype).set_(flat, t.storage_offset(), t.shape, t.stride())
    view.kept = memory, t
    return view


class OverStub(TorchDispatchMode):
    """Sends operators on tensors of the NPU through torch_npu and then computes them on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "start"
        self.graphs = collections.defaultdict(list)
        self.restart()

    def restart(self) -> None:
        """Forget what was logged."""
        self.steps = collections.defaultdict(lambda: {"calls": 0, "operators": {}})

    def note(self, operator: str, more: list[str] | None = None) -> None:
        """Move the lines of the stub's log to ``operator`` in the current phase."""
        lines = cann.stub_log().decode().splitlines() + (more or [])
        cann.stub_clear()
        if lines:
            self.steps[self.phase]["operators"].setdefault(operator, collections.Counter()).update(lines)

    def replay(self, graph: int) -> None:
        """Compute the operators of a captured graph."""
        for compute in self.graphs[graph]:
            compute()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, _ = pytree.tree_flatten((args, kwargs))
        device = kwargs.get("device")
        wanted = torch.device(device).type if device is not None else None
        if wanted != "npu" and not any(isinstance(t, torch.Tensor) and t.device.type == "npu" for t in flat):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        if func.is_view or func._schema.name.split("::")[-1] in NATIVE:
            return func(*args, **kwargs)
        return self.compute(func, args, kwargs, self.launch(func, args, kwargs))

    def launch(self, func, args, kwargs):
        """Run torch_npu's operator, note what it did, and restore what a copy may already have written."""
        written = []
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                if isinstance(value, torch.Tensor):
                    written.append((on_host(value), on_host(value).clone()))
        self.note("between operators")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = func(*args, **kwargs)
        self.note(str(func), [f"WARNING {warning.message}" for warning in caught])
        for tensor, before in written:
            tensor.copy_(before)
        return result

    def compute(self, func, args, kwargs, result):
        """Compute the operator on the CPU into torch_npu's result and return that; if captured, at each replay."""
        flat, spec = pytree.tree_flatten((args, kwargs))
        args, kwargs = pytree.tree_unflatten([on_host(t) if isinstance(t, torch.Tensor) else t for t in flat], spec)
        if str(kwargs.get("device", "")).startswith("npu"):
            kwargs["device"] = "cpu"
        if func._schema.name.split("::")[-1] in CASTS:
            func, args, kwargs = torch.Tensor.to, (args[0], args[1] if len(args) > 1 else kwargs["dtype"]), {}
        func = REFERENCES.get(func._schema.name, func) if hasattr(func, "_schema") else func
        places, structure = pytree.tree_flatten(result)

        def compute() -> list:
            values, _ = pytree.tree_flatten(func(*args, **kwargs))
            for place, value in zip(places, values, strict=True):
                if isinstance(place, torch.Tensor) and place.numel() and value.data_ptr() != place.data_ptr():
                    on_host(place).copy_(value)
            return values

        if graph := cann.stub_capturing():
            self.graphs[graph].append(compute)
            return result
        values = compute()
        results = [
            place if isinstance(place, torch.Tensor) else value for place, value in zip(places, values, strict=True)
        ]
        return pytree.tree_unflatten(results, structure)


class Inline:
    """A pool without threads: a dispatch mode belongs to its thread."""

    def __init__(self, *args, **kwargs) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def map(self, call, *items):
        return map(call, *items)


def watch(mode: OverStub, owner: type, name: str, phase) -> None:
    """Log what ``owner.name`` launches under the name that ``phase`` gives to each call."""
    call = getattr(owner, name)

    def watched(*args, **kwargs):
        before, mode.phase = mode.phase, phase(*args, **kwargs)
        mode.steps[mode.phase]["calls"] += 1
        try:
            return call(*args, **kwargs)
        finally:
            mode.phase = before

    setattr(owner, name, watched)


def encoder_phase(encoder, features, state, ends) -> str:
    steady = min(state.position) >= max(encoder.keep, 1) and all(end is None for end in ends)
    kind = "steady step" if steady else "step"
    return f"{kind} of {features.shape[1] // encoder.factor} frames, {features.shape[0]} slots"


def run(mode: OverStub, args: list[str], environ: dict[str, str]) -> dict:
    """Run one command line with the file descriptors 1 and 2 in files, so that C++ output counts as well."""
    import inference

    mode.restart()
    os.environ.update(environ)
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            code = inference.main(args)
        except SystemExit as stop:
            code = stop.code
        mode.note("between operators")
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(saved, 1):
            os.dup2(old, number)
            os.close(old)
        for name in environ:
            del os.environ[name]
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return {"args": args, "code": code, "stdout": texts[0], "stderr": texts[1], "steps": mode.steps}


def run_pool(mode: OverStub, streams: int, model: str, clip: str) -> dict:
    """Transcribe a clip in each of these streams, a chunk at a time."""
    from nemotron_npu import load_recognizer
    from nemotron_npu.audio import read_audio

    mode.restart()
    recognizer = load_recognizer(model, device="npu:0")
    pool = recognizer.pool(streams)
    opened = [pool.stream() for _ in range(streams)]
    for samples in torch.from_numpy(read_audio(clip)).split(recognizer.chunk_samples):
        for stream in opened:
            stream.feed(samples)
        pool.step()
    for stream in opened:
        stream.end()
    while not all(stream.is_done for stream in opened):
        pool.step()
    texts = [stream.text for stream in opened]
    mode.note("between operators")
    return {"stdout": "\n".join(texts), "steps": mode.steps}


def main() -> None:
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import nemotron_npu.decoder as decoder
    import nemotron_npu.encoder as encoder
    import nemotron_npu.pool as pool

    encoder.ThreadPoolExecutor = Inline
    mode = OverStub()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(mode.replay)
    cann.stub_on_replay(callback)
    watch(mode, encoder.Encoder, "_encode", encoder_phase)
    watch(mode, encoder.Encoder, "__init__", lambda *args: "encoder's start")
    watch(mode, encoder.Encoder, "_projected_positions", lambda *args: "encoder's start")
    watch(mode, decoder.Decoder, "step", lambda *args: "decoder")
    watch(mode, pool.Pool, "_step", lambda *args, **kwargs: "step of a pool")
    results = []
    with mode:
        for each in json.loads(Path(sys.argv[1]).read_text()):
            if "pool" in each:
                results.append(run_pool(mode, each["pool"], each["model"], each["clip"]))
            else:
                results.append(run(mode, each["args"], each.get("environ", {})))
    Path(sys.argv[2]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
