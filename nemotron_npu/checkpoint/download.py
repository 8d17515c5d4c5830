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
from .archive import PORTED_CONFIG
from .config_reader import read_config
from .transformers_config import PROCESSOR, TOKENIZER, WEIGHTS

FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, ValueError, KeyError)
try:
    from httpx import HTTPError  # of the client of huggingface_hub 1.0 and later; before, it raised OSErrors

    FAILURES += (HTTPError,)
except ModuleNotFoundError:
    pass

PORTED = {PORTED_CONFIG, TOKENIZER, WEIGHTS}
"""The files of a model of transformers."""


def download(repo: str, name: str, revision: str | None = None) -> Path:
    """Return the file ``name`` of a model on Hugging Face, from the cache if it was downloaded before.

    If the model has no ``.nemo`` file but those of transformers, return the folder with them.
    ``revision`` is a branch, tag or commit; None is the main branch.
    Raises SetupError when there is no such model, revision or file, or it cannot be downloaded.
    """
    for wanted in (name, WEIGHTS):
        cached = huggingface_hub.try_to_load_from_cache(repo, wanted, revision=revision)
        if isinstance(cached, str):  # the hub would be asked first, and without a connection many times
            return Path(cached) if wanted == name else Path(cached).parent
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
            raise _unreachable(repo, name, _reason(error)) from error
        files = _list_files(repo, revision)
        found = [shown(file) for file in files if file.endswith(".nemo")]
        if not found and {*files} >= PORTED:
            return _download_ported(repo, [file for file in (PORTED_CONFIG, PROCESSOR) if file in files], revision)
        others = f", but {', '.join(found[:10])}" if found else ", nor another .nemo file"
        raise SetupError(
            repo, f"has no file {name}{others if files else ''}", "download one and give its path"
        ) from error
    except FAILURES as error:
        raise _unreachable(repo, name, _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return what kept a file from being downloaded: what the hub has answered, if it did."""
    causes = [error]
    while isinstance(cause := causes[-1].__cause__ or causes[-1].__context__, Exception):
        causes.append(cause)
    for cause in causes:
        response = getattr(cause, "response", None)
        if response is not None:
            return f"Hugging Face answers with status {response.status_code}"
        if isinstance(cause, KeyError):  # of the answer's headers
            return "Hugging Face answers with a redirect without a target"
    return "no connection to Hugging Face" if isinstance(error, EntryNotFoundError) else first_line(error)


def _list_files(repo: str, revision: str | None) -> list[str]:
    """Return the files of a repository; none if it does not list them."""
    try:
        return huggingface_hub.list_repo_files(repo, revision=revision)
    except FAILURES:
        return []


def _download_ported(repo: str, configs: list[str], revision: str | None) -> Path:
    """Return the folder with a model of transformers; its weights come last, and only if its config is supported."""
    try:
        for file in configs:
            folder = Path(huggingface_hub.hf_hub_download(repo, file, revision=revision)).parent
        read_config(folder)
        for file in (TOKENIZER, WEIGHTS):
            huggingface_hub.hf_hub_download(repo, file, revision=revision)
    except FAILURES as error:
        raise _unreachable(repo, WEIGHTS, first_line(error)) from error
    return folder


def _unreachable(repo: str, name: str, reason: str) -> SetupError:
    hint = f"go online, or fetch {name} elsewhere and give its path"
    if not os.environ.get("HF_ENDPOINT"):
        hint += "; HF_ENDPOINT selects a mirror"
    return SetupError(repo, f"cannot be downloaded: {reason}", hint)
