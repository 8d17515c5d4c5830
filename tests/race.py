"""Race real runs for one output folder: while the first writes, others start all the time, and all of them are refused.

    python tests/race.py [--seconds 60]        # that long for each: with and without --resume, 0 and 2 workers

Prints a line for each; ends with an error where a first run fails, or any of its files is not whole.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from support import CLIP, INFERENCE, assert_whole, run_process

RECORDINGS = 250  # with 6 files each
STARTERS = 2  # runs that start at once
REFUSAL = "another run is writing to this folder"


def race(folder: Path, options: list[str]) -> tuple[int, int]:
    """Let one run transcribe ``folder/in``, and start others until it has ended.

    Returns how many were refused while it ran, and how many found it ended and confirmed that nothing is left to do.
    """
    output = folder / "out"
    command = [INFERENCE, folder / "in", "--device", "cpu", "--output_dir", output, *options]
    first = subprocess.Popen([sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True)
    while not (output / "results.jsonl").exists():  # until then another run may well be the first
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    others = []

    def start_others() -> None:
        while first.poll() is None:
            others.append(run_process(*command))

    threads = [threading.Thread(target=start_others) for _ in range(STARTERS)]
    for thread in threads:
        thread.start()
    _, errors = first.communicate()
    for thread in threads:
        thread.join()
    assert first.returncode == 0, errors
    assert f"{RECORDINGS} done, 0 failed" in errors.replace("0 done before, ", ""), errors
    refused = sum(other.returncode == 2 and REFUSAL in other.stderr for other in others)
    later = [other for other in others if REFUSAL not in other.stderr]
    assert all(other.returncode == 0 for other in later), [other.stderr for other in later]
    assert assert_whole(output) == RECORDINGS
    assert len(list(output.iterdir())) == RECORDINGS * 6 + 2 + (output / "results.jsonl~").exists()
    return refused, len(later)


def main() -> None:
    """Race for the given time in each of the four ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    for options in ([], ["--resume"], ["--num_workers", "2"], ["--num_workers", "2", "--resume"]):
        runs = refused = later = 0
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            with tempfile.TemporaryDirectory() as folder:
                inputs = Path(folder, "in")
                inputs.mkdir()
                for number in range(RECORDINGS):
                    (inputs / f"{number:04}.wav").symlink_to(CLIP)
                found = race(Path(folder), options)
            runs, refused, later = runs + 1, refused + found[0], later + found[1]
        name = " ".join(options) or "one process"
        print(
            f"{name}: {runs} runs of {RECORDINGS} recordings in {time.monotonic() - began:.0f} s, all files whole;"
            f" {refused} other runs refused, {later} came after the end",
            flush=True,
        )


if __name__ == "__main__":
    main()
