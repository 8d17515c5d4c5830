#!/usr/bin/env python3
"""Delay of the emission times of words: the bundled model against joins whose times are known.

    python benchmarks/word_times.py --data FSDD

Each of the demo's test strings is joined from recordings of single digits, so the begin and end of each word's
recording are known (the recording may have some silence around the word).  Strings with a word error are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "demo")]

import recordings  # noqa: E402
import torch  # noqa: E402

from nemotron_npu.host.table import format_table  # noqa: E402
from nemotron_npu.recognizer import Recognizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the free-spoken-digit-dataset")
    args = parser.parse_args()
    strings = recordings.timed_strings(recordings.read_digits(args.data, "test"), 240)
    recognizer = Recognizer(ROOT / "demo" / "demo.nemo", torch.device("cpu"))
    rows = [["chunk, ms", "strings right", "words", "start - beginning, s", "end - end, s"]]
    for chunk_ms in (80, 160, 560, 1120):
        transcripts = recognizer.at_chunk(chunk_ms).transcribe([samples for samples, _, _ in strings], slots=16)
        starts, ends, right = [], [], 0
        for (_, text, spans), transcript in zip(strings, transcripts, strict=True):
            if transcript.text != text:
                continue
            right += 1
            for (start, end), word in zip(spans, transcript.words, strict=True):
                starts.append(word.start - start)
                ends.append(word.end - end)
        rows.append([str(chunk_ms), str(right), str(len(starts)), *(_spread(late) for late in (starts, ends))])
    print(format_table(rows, title="median (5th .. 95th percentile)"))


def _spread(late: list[float]) -> str:
    low, median, high = np.percentile(late, [5, 50, 95])
    return f"{median:+.2f} ({low:+.2f} .. {high:+.2f})"


if __name__ == "__main__":
    main()
