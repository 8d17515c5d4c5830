"""Apply, check or revert the triton patches of this folder in the running Python environment.

    python patches/apply.py              apply both patches; running it again changes nothing
    python patches/apply.py --check      exit 0 if both are applied, 1 if not
    python patches/apply.py --revert     restore triton's own files

Patch 1 (triton/backends/__init__.py) skips a backend that cannot be loaded, with a warning; without it
``import triton`` fails. Patch 2 (triton/runtime/driver.py) sets the driver to None where no driver is active, as on an
NPU host; without it triton raises an error.

Each patch has one variant for each layout of triton's source, named after the releases that it was made from. The
variant is selected by its context, which must occur exactly once, not by a version number. triton is never imported,
since that may fail. This script needs the standard library only, and no ``patch`` program.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

Hunks = list[tuple[str, str]]


def read_patch(path: Path) -> tuple[str, Hunks]:
    """Return the file that a unified diff changes, and its hunks as (text before, text after)."""
    target = ""
    hunks = []
    for line in path.read_bytes().decode().splitlines(keepends=True):
        if line.startswith("@@"):
            hunks.append(["", ""])
        elif hunks:
            if line[0] != "+":
                hunks[-1][0] += line[1:]
            if line[0] != "-":
                hunks[-1][1] += line[1:]
        elif line.startswith("+++ b/"):
            target = line.removeprefix("+++ b/").strip()
    return target, [(old, new) for old, new in hunks]


def substitute(text: str, hunks: Hunks) -> str | None:
    """Replace the first half of each hunk in `text` by its second; return None unless each occurs exactly once."""
    text = "\n" + text  # a hunk matches only at the start of a line
    for old, new in hunks:
        before, *after = text.split("\n" + old)
        if len(after) != 1:
            return None
        text = before + "\n" + new + after[0]
    return text[1:]


def both_states(text: str, variants: list[Hunks]) -> tuple[str, str] | None:
    """Return (original, patched) of a file that is in one of these states, or None if no variant fits."""
    for hunks in variants:
        if (patched := substitute(text, hunks)) is not None:
            return text, patched
        if (original := substitute(text, [(new, old) for old, new in hunks])) is not None:
            return original, text
    return None


def write_all(contents: dict[Path, str]) -> None:
    """Write the new contents of all files; after a failure restore all of them."""
    previous = {path: path.read_bytes() for path in contents}
    try:
        for path, text in contents.items():
            replace(path, text.encode())
    except OSError:
        for path, data in previous.items():
            if path.read_bytes() != data:
                replace(path, data)
        raise


def replace(path: Path, data: bytes) -> None:
    """Replace a file in one step and keep its mode. A package cache that it is hard-linked to stays unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_triton() -> Path | None:
    """Return the triton folder of this environment without importing it, or None."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def survey(triton: Path) -> dict[str, tuple[Path, tuple[str, str] | None]]:
    """Return name -> path and (original, patched) text of each file to patch; None if no variant fits."""
    variants: dict[str, list[Hunks]] = {}  # per file, the hunks of each variant
    for patch in sorted(Path(__file__).parent.glob("*.patch")):
        target, hunks = read_patch(patch)
        variants.setdefault(target, []).append(hunks)
    found = {}
    for target, candidates in variants.items():
        path = triton.parent / target
        states = both_states(path.read_bytes().decode(), candidates) if path.is_file() else None
        found[target] = path, states
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the script; return the exit code."""
    parser = argparse.ArgumentParser(description="Apply, check or revert the triton patches of this folder.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only report what is applied: exit 0 if all is, else 1")
    action.add_argument("--revert", action="store_true", help="restore the original files")
    parser.add_argument("--root", type=Path, help="folder that contains triton/ (default: where Python finds it)")
    parser.add_argument("--quiet", action="store_true", help="print nothing if there is nothing to do")
    args = parser.parse_args(argv)

    triton = args.root / "triton" if args.root else find_triton()
    if triton is None or not triton.is_dir():
        if not args.quiet:
            print("triton is not installed: nothing to patch")
        return 0

    changes = {}
    settled = True
    for target, (path, states) in survey(triton).items():
        if states is None:
            print(f"{path}: no patch fits this version of triton, nothing was changed", file=sys.stderr)
            return 2
        original, patched = states
        wanted = original if args.revert else patched
        done = path.read_bytes() == wanted.encode()
        settled &= done
        if not done:
            changes[path] = wanted
        if args.check or (done and not args.quiet):
            state = "original" if done == args.revert else "patched"
            print(f"{target}: {state}")

    if args.check:
        return 0 if settled else 1
    try:
        write_all(changes)
    except OSError as error:
        print(f"triton: cannot be patched, nothing was changed: {error}", file=sys.stderr)
        return 2
    for path in changes:
        state = "restored" if args.revert else "patched"
        print(f"{path}: {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
