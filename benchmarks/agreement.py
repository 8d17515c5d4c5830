#!/usr/bin/env python3
"""Every stage, token and word of the native engine's dtypes against NeMo, float32, on a CPU, where the words are known.

    python benchmarks/agreement.py --data FSDD --strings 240 --dtypes float32,bfloat16,int8

The bundled model on the test strings of ``demo/``; what ``--precision_compare`` prints, and with ``--report
DIR`` what it writes, in ``DIR/DTYPE``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import recordings  # noqa: E402
import torch  # noqa: E402

from nemotron_npu.audio import sine  # noqa: E402
from nemotron_npu.dtypes import instructions, offered_dtypes  # noqa: E402
from nemotron_npu.engine import ModelOptions  # noqa: E402
from nemotron_npu.host.provenance import environment  # noqa: E402
from nemotron_npu.precision.compare import Precision  # noqa: E402
from nemotron_npu.precision.report import write_report  # noqa: E402
from nemotron_npu.precision.summary import format_precision  # noqa: E402
from nemotron_npu.recognizer import load_recognizer  # noqa: E402

CPU = torch.device("cpu")
DEMO = ROOT / "demo" / "demo.nemo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--strings", type=int, default=240)
    parser.add_argument("--dtypes", default=",".join(offered_dtypes(CPU)))
    parser.add_argument("--chunk_ms", type=int, help="stream at this chunk length only")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    strings = recordings.test_strings(recordings.read_digits(args.data, "test"), args.strings)
    reference = load_recognizer(DEMO, CPU, options=ModelOptions("nemo"))
    for dtype in args.dtypes.split(","):
        candidate = load_recognizer(DEMO, CPU, options=ModelOptions(dtype=dtype))
        precision = Precision(candidate, reference, chunk_ms=args.chunk_ms)
        precision.add_signal(sine())
        for index, (samples, text) in enumerate(strings):
            precision.add_recording(f"string {index}", samples, text=text)
        facts = {"engine": "native", "device": "cpu", "device_name": "cpu", "dtype": dtype, "model": str(DEMO)}
        facts |= {"parameters": candidate.parameters, "chunk_ms": candidate.chunk_ms}
        print(format_precision(precision, facts), flush=True)
        if args.report:
            write_report(precision, facts, environment(DEMO, instructions()), args.report / dtype)


if __name__ == "__main__":
    main()
