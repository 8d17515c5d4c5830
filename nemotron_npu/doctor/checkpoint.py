"""Check of ``--doctor`` that the checkpoint exists and its config can be read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checkpoint.config_reader import read_config
from ..checkpoint.hub import find_checkpoint, hub_is_missing, is_hub_id, parse_hub_id
from ..checkpoint.published import PUBLISHED
from ..errors import SetupError, first_line
from ..host.program import command
from ..host.provenance import files_of, sha256
from .finding import OK, PROBLEM, Context, Finding, anonymous, try_import

REPLACE = "download it again, or name another one: --model_path M.nemo"


def checkpoint(context: Context) -> list[Finding]:
    """Check the file and its config; report class, chunk lengths, size and hash."""
    try:
        path = find(context)
        config = read_config(path)
    except SetupError as error:
        fix = f"{command()} --model_path {context.path}   (downloads it)" if is_hub_id(context.path) else REPLACE
        return [Finding(PROBLEM, without_folders(context, error), fix)]
    lengths = ", ".join(str(ms) for ms in sorted(config.contexts))
    chunks = f"chunks of {lengths} ms" if lengths else "for whole recordings"
    size = sum(part.stat().st_size for part in files_of(path))
    found = f"{path.name}: {config.class_name}, {chunks}, {size:,} bytes"
    digest = sha256(path)
    name = f": {PUBLISHED[digest][1]}" if digest in PUBLISHED else ""
    return [Finding(OK, found), Finding(OK, f"SHA-256 {digest}{name}")]


def find(context: Context) -> Path:
    """Return the path of the checkpoint; a Hugging Face id is looked up among the downloaded files only.

    Raises SetupError when there is no such file.
    """
    if not is_hub_id(context.path):
        return find_checkpoint(context.path)
    hub: Any = try_import("huggingface_hub")
    if isinstance(hub, Exception):
        raise hub_is_missing(context.path)
    repo, name, revision = parse_hub_id(context.path)
    found = hub.try_to_load_from_cache(repo, name, revision=revision)
    if not isinstance(found, str):
        raise SetupError(f"{name} was not downloaded from Hugging Face yet")
    return Path(found)


def without_folders(context: Context, error: Exception) -> str:
    """Return the first line of an error, in which only the file name of the checkpoint appears."""
    text = first_line(error)
    with suppress(SetupError):
        path = str(find(context))
        text = text.replace(path, Path(path).name)
    return anonymous(text.replace(context.path, Path(context.path).name))
