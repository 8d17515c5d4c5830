#!/usr/bin/env python3
"""What a dtype costs in accuracy: the bundled model on the test strings of ``demo/train.py``, native engine, CPU.

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

import jiwer  # noqa: E402
import torch  # noqa: E402
import train  # noqa: E402

from nemotron_npu.dtypes import instructions, offered_dtypes  # noqa: E402
from nemotron_npu.engine import ModelOptions  # noqa: E402
from nemotron_npu.precision.compare import difference  # noqa: E402
from nemotron_npu.recognizer import Recognizer  # noqa: E402

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--strings", type=int, default=240)
    args = parser.parse_args()
    strings = train.test_strings(train.read_digits(args.data, "test"), args.strings)
    texts = [text for _, text in strings]
    print(f"on a CPU with {instructions()}")
    print("dtype     chunk  max error  relative error  tokens equal  WER")
    for chunk_ms in (80, 160, 560, 1120):
        reference, said = [], []
        for dtype in offered_dtypes(CPU):
            recognizer = Recognizer(
                ROOT / "demo" / "demo.nemo", CPU, options=ModelOptions(chunk_ms=chunk_ms, dtype=dtype)
            )
            transcripts = recognizer.transcribe([samples for samples, _ in strings])
            encoded = [recognizer.encode(*recognizer.preprocess([samples]))[0] for samples, _ in strings[:40]]
            if dtype == "float32":
                reference, said = encoded, [t.tokens for t in transcripts]
            errors = [difference(a, b) for a, b in zip(encoded, reference, strict=True)]
            equal = sum([x.id for x in t.tokens] == [x.id for x in r] for t, r in zip(transcripts, said, strict=True))
            print(
                f"{dtype:9} {chunk_ms:5}  {max(e.max_error for e in errors):9.2g}  "
                f"{sum(e.relative_error_percent for e in errors) / len(errors):12.3f} %  "
                f"{100 * equal / len(texts):10.1f} %  {100 * jiwer.wer(texts, [t.text for t in transcripts]):.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
