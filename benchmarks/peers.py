#!/usr/bin/env python3
"""Steps of live streams against NeMo, transformers, ONNX Runtime and sherpa-onnx: same weights, one thread, in turn.

    python benchmarks/export_onnx.py full.nemo onnx    # see there; for ONNX Runtime and sherpa-onnx only
    python benchmarks/peers.py --model_path full.nemo --onnx onnx --peer nemo --peer transformers=TF/bin/python \\
        --peer onnxruntime=ORT/bin/python --peer sherpa-onnx=ORT/bin/python

A peer runs in the environment of the given Python (by default this one): transformers 5.13 or later beside this
package's requirements, or onnxruntime or sherpa-onnx alone.  Each engine is a process of its own; the peer and the
native engine in float32 and int8 take one step each in turn, never two at once.  The step is that of the encoder for a
chunk with full left context, except for sherpa-onnx, which has only whole steps: from samples to text.  Times are the
CPU time of the process: with one thread the time on the clock, less that of other programs on the same core.  A ratio
is that of the medians, and says how many times faster the native engine is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "nv_one_logger_mock")]
CONTEXT_SECONDS = 6.0
"""Audio after which the left context is full: 70 frames of 80 ms."""


class Files(NamedTuple):
    """What the engines read."""

    nemo: Path
    onnx: Path
    waveform: Path
    """float32 [samples] at 16 kHz, of numpy."""


Step = Callable[[], object]
Load = Callable[[Files, str], Callable[[int], Step]]
"""From files and dtype to a function of the chunk in ms that returns a call for one step of a stream."""


def load_native(files: Files, dtype: str, *, live: bool) -> Callable[[int], Step]:
    import torch

    from nemotron_npu.benchmark.steps import live_step, steady_step
    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import Recognizer

    model = Recognizer(files.nemo, torch.device("cpu"), options=ModelOptions(dtype=dtype))
    if live:
        return lambda chunk_ms: live_step(model.at_chunk(chunk_ms), np.load(files.waveform))
    return lambda chunk_ms: steady_step(model.at_chunk(chunk_ms))


def load_nemo(files: Files, dtype: str) -> Callable[[int], Step]:
    import torch

    from nemotron_npu.benchmark.steps import nemo_step
    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.nemo_engine import NemoRecognizer

    engine = NemoRecognizer(files.nemo, torch.device("cpu"), options=ModelOptions("nemo"))

    def at_chunk(chunk_ms: int) -> Step:
        engine.model.encoder.set_default_att_context_size(engine.config.choose_context(chunk_ms)[1])
        return nemo_step(engine)

    return at_chunk


def load_transformers(files: Files, dtype: str) -> Callable[[int], Step]:
    import torch
    import transformers
    from golden_transformers import encoder_config, hub_tensors

    from nemotron_npu.checkpoint.load import read_checkpoint

    checkpoint = read_checkpoint(files.nemo)
    encoder = transformers.NemotronAsrStreamingEncoder(encoder_config(checkpoint.config.raw["encoder"])).eval()
    tensors = hub_tensors(checkpoint.tensors).items()
    encoder.load_state_dict({name[8:]: tensor for name, tensor in tensors if name.startswith("encoder.")})

    def at_chunk(chunk_ms: int) -> Step:
        ahead = chunk_ms // 80 - 1
        state: dict = {"cache": None, "padding_cache": None}
        mels = encoder.config.num_mel_bins

        def step(frames: int = 8 * (ahead + 1)) -> None:
            features = torch.randn(1, frames, mels)
            with torch.inference_mode():
                output = encoder(features, num_lookahead_tokens=ahead, use_cache=True, **state)
            state.update(cache=output.cache, padding_cache=output.padding_cache)

        step(1 + 8 * ahead)  # the first chunk of a stream
        return filled(step, chunk_ms)

    return at_chunk


def load_onnxruntime(files: Files, dtype: str) -> Callable[[int], Step]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def at_chunk(chunk_ms: int) -> Step:
        path = onnx_file(files, chunk_ms, "encoder", dtype)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        of = {
            name: int(number)
            for name, number in session.get_modelmeta().custom_metadata_map.items()
            if number.isdigit()
        }
        frames, layers, width = of["window_size"], of["cache_last_channel_dim1"], of["cache_last_channel_dim3"]
        inputs = {
            "audio_signal": np.random.default_rng(0).standard_normal((1, of["feat_dim"], frames), np.float32),
            "length": np.array([frames]),
            "cache_last_channel": np.zeros((1, layers, of["cache_last_channel_dim2"], width), np.float32),
            "cache_last_time": np.zeros((1, layers, width, of["cache_last_time_dim3"]), np.float32),
            "cache_last_channel_len": np.array([0]),
        }
        caches = [name for name in inputs if name.startswith("cache")]

        def step() -> None:
            inputs.update(zip(caches, session.run(None, inputs)[2:], strict=True))

        return filled(step, chunk_ms)

    return at_chunk


def load_sherpa(files: Files, dtype: str) -> Callable[[int], Step]:
    import sherpa_onnx

    waveform = np.load(files.waveform)

    def at_chunk(chunk_ms: int) -> Step:
        parts = {part: onnx_file(files, chunk_ms, part, dtype) for part in ("encoder", "decoder", "joiner")}
        tokens = str(files.onnx / str(chunk_ms) / "tokens.txt")
        recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(tokens=tokens, num_threads=1, **parts)
        stream = recognizer.create_stream()
        samples, position = 16 * chunk_ms, 0

        def step() -> None:
            nonlocal position
            stream.accept_waveform(16000, np.take(waveform, range(position, position + samples), mode="wrap"))
            position += samples
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)

        return filled(step, chunk_ms)

    return at_chunk


def onnx_file(files: Files, chunk_ms: int, part: str, dtype: str) -> str:
    suffix = ".int8.onnx" if dtype == "int8" else ".onnx"
    return str(files.onnx / str(chunk_ms) / (part + suffix))


def filled(step: Step, chunk_ms: int) -> Step:
    """Fill the left context of a stream, and return its step."""
    for _ in range(round(CONTEXT_SECONDS * 1000 / chunk_ms)):
        step()
    return step


class Peer(NamedTuple):
    package: str
    load: Load
    dtypes: tuple[str, ...] = ("float32",)
    live: bool = False


PEERS = {
    "nemo": Peer("nemo-toolkit", load_nemo),
    "transformers": Peer("transformers", load_transformers),
    "onnxruntime": Peer("onnxruntime", load_onnxruntime, ("float32", "int8")),
    "sherpa-onnx": Peer("sherpa_onnx", load_sherpa, ("float32", "int8"), live=True),
}
NATIVE = "native"


def serve(name: str, dtype: str, live: bool, files: Files) -> None:
    """Load an engine; then, for each line: set up the chunk of so many ms, or take a step and print its CPU ms."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # engines print
    if name == NATIVE:
        at_chunk, what = load_native(files, dtype, live=live), "this package"
    else:
        at_chunk, what = PEERS[name].load(files, dtype), f"{name} {version(PEERS[name].package)}"
    print(f"{what}, {dtype}", file=answers)
    step: Step = int
    for line in sys.stdin:
        if line.strip():
            step = at_chunk(int(line))
        began = time.process_time()
        step()
        print(1000 * (time.process_time() - began), file=answers)


class Engine:
    """An engine in a process of its own, which sleeps until it is asked."""

    def __init__(self, python: str, name: str, dtype: str, live: bool, files: Files) -> None:
        command = [python, __file__, "--serve", name, dtype, str(int(live)), *map(str, files)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.title = self.answer()

    def ask(self, line: object = "") -> float:
        """Send a chunk in ms, or nothing for a step; return the CPU ms of a step."""
        print(line, file=self.process.stdin, flush=True)
        return float(self.answer())

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{self.process.args[0]}: the engine ended, with status {self.process.wait()}")
        return line

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        name, dtype, live, *paths = sys.argv[2:]
        return serve(name, dtype, bool(int(live)), Files(*map(Path, paths)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, default=ROOT / "demo" / "demo.nemo")
    parser.add_argument("--onnx", type=Path, default=Path("onnx"), help="folder of export_onnx.py")
    parser.add_argument("--peer", action="append", required=True, metavar="NAME[=PYTHON]", help=", ".join(PEERS))
    parser.add_argument("--chunk_ms", type=int, nargs="+", default=[80, 160, 560, 1120])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each engine (default: %(default)s)")
    args = parser.parse_args()

    from nemotron_npu.audio import read_audio
    from nemotron_npu.dtypes import instructions

    print(f"one thread, {instructions()}; {args.rounds} steps: median, 95th percentile, CPU ms", flush=True)
    print(f"| {' | '.join(['', *(f'{chunk_ms} ms' for chunk_ms in args.chunk_ms)])} |")
    print("|---" * (1 + len(args.chunk_ms)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = Files(args.model_path, args.onnx, Path(folder) / "waveform.npy")
        np.save(files.waveform, read_audio(ROOT / "demo" / "digits.wav"))
        for peer in args.peer:
            name, _, python = peer.partition("=")
            for dtype in PEERS[name].dtypes:
                compare(name, dtype, python or sys.executable, files, args.chunk_ms, args.rounds)


def compare(name: str, dtype: str, python: str, files: Files, chunks: list[int], rounds: int) -> None:
    """Time a peer and the native engine in turn, and print a row of the table for each."""
    live = PEERS[name].live
    engines = [Engine(python, name, dtype, live, files)]
    engines += [Engine(sys.executable, NATIVE, own, live, files) for own in ("float32", "int8")]
    cells: list[list[str]] = [[f"{engine.title}, {'whole step' if live else 'encoder'}"] for engine in engines]
    for chunk_ms in chunks:
        for engine in engines:
            engine.ask(chunk_ms)
        times = np.array([[engine.ask() for engine in engines] for _ in range(rounds)])
        medians, highs = np.median(times, axis=0), np.quantile(times, 0.95, axis=0)
        for row, median, high in zip(cells, medians, highs, strict=True):
            ratio = "" if row is cells[0] else f" ({medians[0] / median:.1f} x)"
            row.append(f"{median:.1f}, {high:.1f}{ratio}")
    for row in cells:
        print(f"| {' | '.join(row)} |", flush=True)
    for engine in engines:
        engine.close()


if __name__ == "__main__":
    main()
