"""Download a ``.nemo`` file from Hugging Face.  Importing this module imports huggingface_hub, which may be missing."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import SetupError, first_line, shown

FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, ValueError)
try:
    from httpx import HTTPError  # of the client of huggingface_hub 1.0 and later; before, it raised OSErrors

    FAILURES += (HTTPError,)
except ModuleNotFoundError:
    pass


def download(repo: str, name: str, revision: str | None = None) -> Path:
    """Return the file ``name`` of a model on Hugging Face, from the cache if it was downloaded before.

    ``revision`` is a branch, tag or commit; None is the main branch.
    Raises SetupError when there is no such model, revision or file, or it cannot be downloaded.
    """
    cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
    if isinstance(cached, str):  # the hub would be asked first, and without a connection many times
        return Path(cached)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
    except GatedRepoError as error:
        raise SetupError(repo, "gated on Hugging Face", "accept its terms there and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise SetupError(repo, "no such model on Hugging Face, or it is private", "check the id") from error
    except RevisionNotFoundError as error:
        raise SetupError(f"{repo}@{revision}", "no such revision on Hugging Face") from error
    except EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # nothing is cached and the hub cannot be reached
            raise _unreachable(repo, name, "no connection to Hugging Face") from error
        raise SetupError(
            repo, f"has no file {name}{_others(repo, revision)}", "download one and give its path"
        ) from error
    except FAILURES as error:
        raise _unreachable(repo, name, first_line(error)) from error


def _others(repo: str, revision: str | None) -> str:
    """Return ", but a.nemo, b.nemo" for the files of a repository that could be meant; empty if there are none."""
    try:
        files = huggingface_hub.list_repo_files(repo, revision=revision)
    except FAILURES:
        return ""
    found = [shown(file) for file in files if file.endswith(".nemo")]
    return f", but {', '.join(found[:10])}" if found else ", nor another .nemo file"


def _unreachable(repo: str, name: str, reason: str) -> SetupError:
    hint = f"go online, or fetch {name} elsewhere and give its path"
    if not os.environ.get("HF_ENDPOINT"):
        hint += "; HF_ENDPOINT selects a mirror"
    return SetupError(repo, f"cannot be downloaded: {reason}", hint)
