"""``--model_path`` -> a ``.nemo`` file on this disk, downloaded from Hugging Face where it names a model there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import SetupError
from ..host.packages import can_import

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w][\w./-]*)?")
EXAMPLE = "nvidia/nemotron-speech-streaming-en-0.6b"


def find_checkpoint(model_path: str) -> Path:
    """Return the local ``.nemo`` file for a path or a Hugging Face id (downloaded once, then taken from the cache).

    ``owner/name@revision`` is a branch, tag or commit of the model.

    Raises SetupError when there is no such file or it cannot be downloaded.
    """
    path = Path(model_path).expanduser()
    try:
        os.stat(path)
        return path  # its format is checked when it is opened
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise SetupError(model_path, f"cannot be read: {error.strerror}") from error
    if is_hub_id(model_path):
        return _download(model_path)
    raise SetupError(model_path, "no such file", f"a Hugging Face id looks like {EXAMPLE}")


def is_hub_id(model_path: str) -> bool:
    """Return whether this names a model on Hugging Face, not a file: ``owner/name`` or ``owner/name@revision``."""
    is_path = os.path.exists(model_path) or model_path.endswith(".nemo")
    return not is_path and HUB_ID.fullmatch(model_path) is not None


def parse_hub_id(model_path: str) -> tuple[str, str, str | None]:
    """Return (repository, file, revision) of a Hugging Face id: NVIDIA names the file after the repository."""
    repo, _, revision = model_path.partition("@")
    return repo, repo.split("/")[1] + ".nemo", revision or None


def hub_is_missing(repo: str) -> SetupError:
    """Return the error for a Hugging Face id without the package that looks it up."""
    return SetupError(repo, "a Hugging Face id needs the package huggingface_hub", "pip install huggingface_hub")


def _download(model_path: str) -> Path:
    if not can_import("huggingface_hub"):
        raise hub_is_missing(model_path)
    from .download import download  # huggingface_hub is optional, and takes half a second

    return download(*parse_hub_id(model_path))
