#!/usr/bin/env python3
"""Run the commands of README and docs as written, on files made for them.

    python tests/docs_commands.py                       # every page
    python tests/docs_commands.py docs/usage.md         # one page
    python tests/docs_commands.py --list                # what would run, and what is left out and why

A command is a line of a ``sh`` block.  One whose comment says what it needs (an NPU, the published checkpoint, the
internet, minutes) is left out.  The others run one after the other in a folder with this repository's files and the
recordings, folders and manifests that the pages name.  The CI runs ``source setup_env.sh``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import CLIP, CLIP_WORDS, ROOT

PAGES = [
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
]
NEEDS = re.compile(r"#.*?(needs|需要) ?(.*)")
LEFT_OUT = {  # the first words of commands that change this environment, or need what no page can promise
    "source setup_env.sh": "run by the CI",
    "pip ": "changes this environment",
    "hf download": "needs internet",
    "HF_ENDPOINT": "needs internet",
    "ray ": "needs a cluster",
    "kubectl": "needs a cluster",
    "export ": "a setting for the lines after it",
    "python -m pytest": "run by the CI",
    "ruff": "run by the CI",
    ".ci/run": "the CI",
    "sudo ": "needs root",
    "python -m venv": "makes an environment",
    "for file in tests": "needs hours",
    "target=": "a setting for the lines after it",
    "grep -v ^torch": "a step of making a wheelhouse",
}
CHECKPOINT = re.compile(r"--model_path nemotron-speech\S+|--model_path full\.nemo|--data FSDD|corpus\.jsonl")


def commands(page: Path) -> list[str]:
    """Return the lines of the page's ``sh`` blocks, continued lines joined."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        command = ""
        for line in lines:
            command = f"{command}\n{line}" if command else line.strip()
            if command.count('"') % 2 == 0 and command.count("'") % 2 == 0:
                found.append(command)
                command = ""
    return [command for command in found if command and not command.startswith("#")]


def reason_to_skip(command: str) -> str:
    """Return why this command is left out; nothing if it runs."""
    marked = NEEDS.search(command)
    if marked:
        return f"needs {marked[2]}".strip()
    for start, reason in LEFT_OUT.items():
        if command.startswith(start):
            return reason
    if CHECKPOINT.search(command):
        return "needs a checkpoint or data that is not in the repository"
    return ""


def make_folder(folder: Path) -> None:
    """Put there what the commands name: the repository's files, recordings, a folder, manifests and lists."""
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "out"):
            (folder / path.name).symlink_to(path)
    import numpy as np
    import soundfile
    from media_files import media_bytes

    samples, rate = soundfile.read(CLIP)
    for name in ("talk.wav", "talk.mp3", "a.wav", "b.wav", "b.flac", "c.mp3", "calls/mon/a.flac", "calls/b.wav"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate)
    soundfile.write(folder / "call.wav", np.stack([samples, samples[::-1]], axis=1), rate)
    (folder / "talk.mp4").write_bytes(media_bytes("mp4", video=True))
    data = (samples * 32767).astype("<i2").tobytes()
    (folder / "call.raw").write_bytes(data)
    entry = {"audio_filepath": "talk.wav", "duration": None, "text": CLIP_WORDS}
    (folder / "test.json").write_text(json.dumps(entry) + "\n")
    (folder / "words.txt").write_text("nine\nseven\t2\n")
    (folder / "more.txt").write_text("talk.wav\n")


def run(command: str, folder: Path) -> tuple[int, str, float]:
    """Run one command in bash; return the exit code, what it printed last, and the seconds it took."""
    began = time.monotonic()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    shell = ["bash", "-o", "pipefail", "-c", command]
    result = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    printed = (result.stderr.strip() or result.stdout.strip()).splitlines()
    last = printed[-1] if printed else ""
    return result.returncode, last, time.monotonic() - began


def main() -> int:
    """Run the commands and report each; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE")
    parser.add_argument("--list", action="store_true", help="run nothing")
    args = parser.parse_args()
    failed = ran = 0
    seen = set()
    folder = Path(tempfile.mkdtemp(prefix="docs-commands-"))
    make_folder(folder)
    for page in args.pages:
        print(page)
        for command in commands(ROOT / page):
            words = command.partition("  #")[0].strip()
            if words in seen:
                continue
            seen.add(words)
            reason = reason_to_skip(command)
            if reason or args.list:
                print(f"  {reason or 'runs':<40.40} {words}")
                continue
            code, last, seconds = run(words, folder)
            ran += 1
            print(f"  exit {code}, {seconds:5.1f} s {'':<24} {words}", flush=True)
            if code:
                failed += 1
                print(f"      {last}")
    shutil.rmtree(folder)
    print(f"{ran} commands ran, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
