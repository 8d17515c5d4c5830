#!/usr/bin/env python3
"""A folder of recordings in one run: the native engine, all files in one call; a loop of single calls; stock NeMo.

    python benchmarks/folder.py calls/ --batch_size 8

Each round takes all candidates in turn, so that a machine that slows down slows all of them; medians are printed.
Every candidate starts from the files, longest first, as ``inference.py`` takes those of an output folder; the one
named "every format" also writes all results into a new folder.
Files that cannot be read are left out, since NeMo's ``transcribe`` ends at the first.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nemotron_npu import audio  # before torch: it says how long threads spin
from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.cli.run_info import RunSettings
from nemotron_npu.formats import FORMATS, to_document
from nemotron_npu.host.table import format_table
from nemotron_npu.recognizer import Recognizer
from nemotron_npu.sources import Recording, find_recordings

DEMO = Path(__file__).resolve().parent.parent / "demo" / "demo.nemo"


def readable(folder: str) -> list[Recording]:
    found = []
    for recording in find_recordings([folder]):
        try:
            audio.read_audio(recording)
            found.append(recording)
        except Exception as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def one_call(recognizer, recordings: list[Recording], slots: int) -> list[str]:
    return [transcript.text for transcript in recognizer.transcribe(recordings, slots)]


def single_calls(recognizer, recordings: list[Recording]) -> list[str]:
    return [recognizer.transcribe([recording.path])[0].text for recording in recordings]


def every_format(recognizer, recordings: list[Recording], slots: int, path: Path) -> list[str]:
    texts = [""] * len(recordings)
    settings = RunSettings(str(path), recognizer.chunk_ms, recognizer.dtype, None, None)
    with (
        tempfile.TemporaryDirectory() as target,
        OutputFolder(target, [*FORMATS], settings) as folder,
    ):
        folder.begin(recordings)
        for place, transcript in recognizer.results(recordings, slots):
            texts[place] = transcript.text
            folder.write(
                place, transcript, to_document(transcript, **recordings[place].document_fields(), **settings.as_dict())
            )
    return texts


def nemo_transcribe(model, recordings: list[Recording], batch_size: int) -> list[str]:
    paths = [recording.path for recording in recordings]
    # its lhotse loader averages no channels
    options = {"batch_size": batch_size, "channel_selector": "average", "use_lhotse": False, "verbose": False}
    hypotheses = model.transcribe(paths, **options)
    model.eval()
    return [hypothesis.text for hypothesis in hypotheses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--model_path", type=Path, default=DEMO)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    import torch
    from omegaconf import open_dict

    logging.disable(logging.CRITICAL)
    if args.threads:
        torch.set_num_threads(args.threads)
    from nemotron_npu.nemo_engine import NemoRecognizer

    recordings = sorted(readable(args.folder), key=lambda recording: recording.seconds, reverse=True)
    cpu = torch.device("cpu")
    recognizer = Recognizer(args.model_path, cpu)
    model = NemoRecognizer(args.model_path, cpu).model
    with open_dict(model.cfg):
        model.cfg.setdefault("validation_ds", {})  # transcribe looks into it; the bundled checkpoint has none
    slots = args.batch_size
    candidates = {
        f"native, one call, {slots} at a time": lambda: one_call(recognizer, recordings, slots),
        f"native, every format, {slots} at a time": lambda: every_format(
            recognizer, recordings, slots, args.model_path
        ),
        "native, one call, 1 at a time": lambda: one_call(recognizer, recordings, 1),
        "native, a loop of single calls": lambda: single_calls(recognizer, recordings),
        f"NeMo's transcribe, batches of {slots}": lambda: nemo_transcribe(model, recordings, slots),
    }
    seconds = {name: [] for name in candidates}
    texts = {}
    for _ in range(args.rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            texts[name] = run()
            seconds[name].append(time.perf_counter() - began)
    native = next(iter(texts.values()))
    sound = sum(recording.seconds for recording in recordings)
    rows = []
    for name, runs in seconds.items():
        median = statistics.median(runs)
        same = sum(a == b for a, b in zip(texts[name], native, strict=True))
        rows.append([name, f"{median:.2f}", f"{sound / median:.1f}", f"{same} of {len(native)}"])
    heading = ["", "seconds", "RTFx", "same text as the first"]
    title = f"{len(recordings)} files, {sound / 3600:.2f} h, {torch.get_num_threads()} threads"
    print(format_table([heading, *rows], title=title))


if __name__ == "__main__":
    main()
