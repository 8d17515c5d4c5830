"""Apply, check or revert the triton patches of this folder in the running Python environment.

    python patches/apply.py              apply both patches; running it again changes nothing
    python patches/apply.py --check      exit 0 if both are applied, 1 if not
    python patches/apply.py --revert     give triton its own files back

Patch 1 (triton/backends/__init__.py): a backend that cannot be loaded is skipped with a warning instead of taking
``import triton`` down with it. Patch 2 (triton/runtime/driver.py): without any active driver, as on an NPU machine, the
driver is None instead of an error.

Each patch comes in a variant per layout of triton's source, named after the releases it was cut from. No version is
looked up: the variant whose context is found, exactly and exactly once, is the one. triton itself is never imported,
for that is what may fail. The standard library is all this needs, not even a ``patch`` program.
"""

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path


def read_patch(path):
    """The file that a unified diff changes, and its hunks as (text before, text after)."""
    target, hunks = None, []
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
    return target, hunks


def substitute(text, hunks):
    """`text` with each hunk's first half replaced by its second, or None unless each is there exactly once."""
    text = "\n" + text  # so that a hunk can be asked to begin at the start of a line
    for old, new in hunks:
        before, *after = text.split("\n" + old)
        if len(after) != 1:
            return None
        text = before + "\n" + new + after[0]
    return text[1:]


def both_states(text, variants):
    """(original, patched) of a file that is in one of these states, or None when no variant fits."""
    for hunks in variants:
        if (patched := substitute(text, hunks)) is not None:
            return text, patched
        if (original := substitute(text, [(new, old) for old, new in hunks])) is not None:
            return original, text
    return None


def write_all(contents):
    """Give all files their new contents, or on failure none."""
    previous = {path: path.read_bytes() for path in contents}
    try:
        for path, text in contents.items():
            replace(path, text.encode())
    except OSError:
        for path, data in previous.items():
            if path.read_bytes() != data:
                replace(path, data)
        raise


def replace(path, data):
    """Write a file in one step, keeping its mode. A package cache that it is hard-linked to stays as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def find_triton():
    """The triton folder of this environment, found without importing it, or None."""
    spec = importlib.util.find_spec("triton")
    return Path(spec.origin).parent if spec and spec.origin else None


def survey(triton):
    """Each file to patch: name -> its path, and its (original, patched) text or None where no variant fits."""
    variants = {}  # per file, the hunks of each variant
    for patch in sorted(Path(__file__).parent.glob("*.patch")):
        target, hunks = read_patch(patch)
        variants.setdefault(target, []).append(hunks)
    found = {}
    for target, hunks in variants.items():
        path = triton.parent / target
        found[target] = path, both_states(path.read_bytes().decode(), hunks) if path.is_file() else None
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description="Apply, check or revert the triton patches of this folder.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only say what is applied: exit 0 if all is, else 1")
    action.add_argument("--revert", action="store_true", help="take the patches out again")
    parser.add_argument("--root", type=Path, help="the folder that holds triton/ (default: where Python finds it)")
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    args = parser.parse_args(argv)

    triton = args.root / "triton" if args.root else find_triton()
    if triton is None or not triton.is_dir():
        if not args.quiet:
            print("triton is not installed: nothing to patch")
        return 0

    changes, settled = {}, True
    for target, (path, states) in survey(triton).items():
        if states is None:
            print(f"no triton patch fits {path}: unknown triton version, nothing was changed", file=sys.stderr)
            return 2
        original, patched = states
        wanted = original if args.revert else patched
        done = path.read_bytes() == wanted.encode()
        settled &= done
        if not done:
            changes[path] = wanted
        if args.check or (done and not args.quiet):
            print(f"{target}: {'original' if done == args.revert else 'patched'}")

    if args.check:
        return 0 if settled else 1
    try:
        write_all(changes)
    except OSError as error:
        print(f"cannot write the triton patches, nothing was changed: {error}", file=sys.stderr)
        return 2
    for path in changes:
        print(f"{path}: {'original again' if args.revert else 'patched'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
