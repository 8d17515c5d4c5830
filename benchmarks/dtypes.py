#!/usr/bin/env python3
"""Accuracy of each dtype: the bundled model on the test strings of ``demo/recordings.py``, native engine, CPU.

    python benchmarks/dtypes.py --data FSDD --strings 240

For each dtype and chunk size: the largest and the mean relative error of the encoder output against float32, the share
of recordings whose tokens are those of float32, and the word error rate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import recordings  # noqa: E402
import torch  # noqa: E402

from nemotron_npu.dtypes import instructions, offered_dtypes  # noqa: E402
from nemotron_npu.engine import ModelOptions  # noqa: E402
from nemotron_npu.evaluation.report import percent  # noqa: E402
from nemotron_npu.evaluation.wer import evaluate  # noqa: E402
from nemotron_npu.host.table import format_table  # noqa: E402
from nemotron_npu.precision.metrics import difference  # noqa: E402
from nemotron_npu.recognizer import Recognizer  # noqa: E402

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--strings", type=int, default=240)
    args = parser.parse_args()
    strings = recordings.test_strings(recordings.read_digits(args.data, "test"), args.strings)
    rows = [["dtype", "chunk, ms", "max error", "relative error", "tokens equal", "WER"]]
    for chunk_ms in (80, 160, 560, 1120):
        encoded: dict[str, list[torch.Tensor]] = {}
        tokens: dict[str, list[list[int]]] = {}
        for dtype in offered_dtypes(CPU):
            options = ModelOptions(chunk_ms=chunk_ms, dtype=dtype)
            recognizer = Recognizer(ROOT / "demo" / "demo.nemo", CPU, options=options)
            transcripts = recognizer.transcribe([samples for samples, _ in strings])
            encoded[dtype] = [recognizer.encode(*recognizer.preprocess([samples]))[0] for samples, _ in strings[:40]]
            tokens[dtype] = [[token.id for token in transcript.tokens] for transcript in transcripts]
            errors = [difference(*pair) for pair in zip(encoded[dtype], encoded["float32"], strict=True)]
            equal = sum(own == other for own, other in zip(tokens[dtype], tokens["float32"], strict=True))
            results = zip(strings, transcripts, strict=True)
            words = evaluate(("", text, t.text, t.duration) for (_, text), t in results).overall.words
            figures = [
                f"{max(error.max_error for error in errors):.2g}",
                f"{sum(error.relative_error_percent for error in errors) / len(errors):.3f} %",
                f"{100 * equal / len(strings):.1f} %",
                percent(words.rate),
            ]
            rows.append([dtype, f"{chunk_ms}", *figures])
    print(format_table(rows, title=f"on a CPU with {instructions()}"))


if __name__ == "__main__":
    main()
