#!/usr/bin/env python3
"""Native engine against stock NeMo in one run: encoder steps of a live stream, and whole recordings.

    python benchmarks/steps.py full.nemo --threads 1

Steps of all candidates are taken in turn, so that a machine that slows down slows all of them; the medians and their
ratio to NeMo's are printed, and the machine's own rates beside them.  ``full.nemo`` is made by
``python tests/checkpoints.py full full.nemo``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from nemotron_npu.audio import SAMPLE_RATE
from nemotron_npu.benchmark import steady_step
from nemotron_npu.recognizer import Recognizer

CPU = torch.device("cpu")


def timed(call) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def nemo_step(path: Path, chunk_ms: int):
    """What ``steady_step`` is, by NeMo's ``cache_aware_stream_step``."""
    from nemotron_npu.nemo_engine import NemoRecognizer

    encoder = NemoRecognizer(path, CPU, chunk_ms).model.encoder
    settings = encoder.streaming_cfg
    frames = settings.chunk_size[1] + settings.pre_encode_cache_size[1]
    caches = encoder.get_initial_cache_state(batch_size=1)
    features, length = torch.randn(1, encoder._feat_in, frames), torch.tensor([frames])

    @torch.inference_mode()
    def step():
        nonlocal caches
        caches = encoder.cache_aware_stream_step(
            processed_signal=features,
            processed_signal_length=length,
            cache_last_channel=caches[0],
            cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
            keep_all_outputs=False,
            drop_extra_pre_encoded=settings.drop_extra_pre_encoded,
        )[2:]

    for _ in range(-(-settings.last_channel_cache_size // (settings.chunk_size[1] // 8))):
        step()
    return step


def machine() -> dict[str, float]:
    """GB/s of reading, and GFLOP/s of large float32 and bfloat16 products, medians of 5."""
    big = torch.ones(1 << 28)  # not zeros: untouched memory is one page
    rates = {"read_gb_s": big.numel() * 4 / 1e6 / statistics.median(timed(big.sum) for _ in range(5))}
    for name in ("float32", "bfloat16"):
        a = torch.randn(2048, 2048).to(getattr(torch, name))
        product = statistics.median(timed(functools.partial(torch.mm, a, a)) for _ in range(5))
        rates[f"{name}_gflop_s"] = 2 * 2048**3 / 1e6 / product
    return {name: round(rate, 1) for name, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk_ms", type=int, nargs="*", default=[80, 560, 1120])
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no_nemo", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(args.threads)
    rates = machine()
    print(f"{args.threads} thread(s), torch {torch.__version__}, {rates}")
    rows, rtfx = {}, {}
    sound = np.random.default_rng(0).normal(0, 0.05, 60 * SAMPLE_RATE).astype(np.float32)
    for chunk_ms in args.chunk_ms:
        recognizers = {dtype: Recognizer(args.model, CPU, chunk_ms, dtype) for dtype in args.dtype}
        calls = {dtype: steady_step(recognizer) for dtype, recognizer in recognizers.items()}
        if not args.no_nemo:
            calls = {"NeMo": nemo_step(args.model, chunk_ms), **calls}
        times = {name: [] for name in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                times[name].append(timed(call))
        row = rows[chunk_ms] = {
            name: {"median": statistics.median(t), "p95": float(np.percentile(t, 95)), "max": max(t)}
            for name, t in times.items()
        }
        nemo = row.get("NeMo", {}).get("median")
        for name, figures in row.items():
            ratio = f", NeMo / this {nemo / figures['median']:.1f}" if nemo else ""
            print(f"{chunk_ms:5} ms  {name:9} " + "  ".join(f"{k} {v:.1f}" for k, v in figures.items()) + ratio)
        if chunk_ms == args.chunk_ms[-1]:
            for name, recognizer in recognizers.items():
                recognizer.transcribe([sound[: 10 * SAMPLE_RATE]])
                rtfx[name] = 60_000 / timed(lambda recognizer=recognizer: recognizer.transcribe([sound]))
                print(f"60 s recording at {chunk_ms} ms  {name:9} RTFx {rtfx[name]:.1f}")
        del recognizers, calls
        gc.collect()
    print(json.dumps({"threads": args.threads, "machine": rates, "steps_ms": rows, "rtfx_60_s": rtfx}))


if __name__ == "__main__":
    main()
