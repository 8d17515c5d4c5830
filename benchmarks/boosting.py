#!/usr/bin/env python3
"""Word error rates with --boost_words: the bundled model on the demo's test strings, at 80 ms.

    python benchmarks/boosting.py --data FSDD

The phrases are once the 240 strings themselves, which is the best case, and once 240 other strings of digits, which
shows the cost of phrases that nobody speaks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import recordings  # noqa: E402
import torch  # noqa: E402

from nemotron_npu.boosting import Phrase  # noqa: E402
from nemotron_npu.engine import ModelOptions  # noqa: E402
from nemotron_npu.evaluation.report import percent  # noqa: E402
from nemotron_npu.evaluation.wer import evaluate  # noqa: E402
from nemotron_npu.host.table import format_table  # noqa: E402
from nemotron_npu.recognizer import Recognizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the free-spoken-digit-dataset")
    args = parser.parse_args()
    digits = recordings.read_digits(args.data, "test")
    strings = recordings.test_strings(digits, 240)
    spoken = {text for _, text in strings}
    others = [text for _, text in recordings.test_strings(digits, 400, seed=1) if text not in spoken][:240]
    recognizer = Recognizer(ROOT / "demo" / "demo.nemo", torch.device("cpu"), options=ModelOptions(chunk_ms=80))

    def rate(phrases, alpha: float) -> str:
        recognizer.boost([Phrase(text) for text in phrases], alpha)
        transcripts = recognizer.transcribe([samples for samples, _ in strings], slots=8)
        results = zip(strings, transcripts, strict=True)
        return percent(evaluate(("", text, t.text, t.duration) for (_, text), t in results).overall.words.rate)

    rows = [["--boost_alpha", "WER, phrases spoken", "WER, other phrases"]]
    rows.append(["none", *[rate([], 1)] * 2])
    rows += [[f"{alpha:g}", rate(spoken, alpha), rate(others, alpha)] for alpha in (0.5, 1, 2, 3)]
    print(format_table(rows))


if __name__ == "__main__":
    main()
