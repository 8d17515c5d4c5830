"""Download a ``.nemo`` file from Hugging Face.  Importing this module imports huggingface_hub, which may be missing."""

from __future__ import annotations

import os
from functools import partial
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
from .refusal import AGAIN
from .transformers_config import INDEX, PROCESSOR, TOKENIZER, WEIGHTS, find_weight_files

FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError, OSError, ValueError, KeyError)
try:
    from httpx import HTTPError  # of the client of huggingface_hub 1.0 and later; before, it raised OSErrors

    FAILURES += (HTTPError,)
except ModuleNotFoundError:
    pass


def download(repo: str, name: str, revision: str | None = None) -> Path:
    """Return the file ``name`` of a model on Hugging Face, from the cache if it was downloaded before.

    If the model has no ``.nemo`` file but those of transformers, return the folder with them.
    ``revision`` is a branch, tag or commit; None is the main branch.
    Raises SetupError when there is no such model, revision or file, or it cannot be downloaded.
    """
    if cached := _find_cached(repo, name, revision):  # the hub would be asked first, and offline many times
        return cached
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
        if not found and {*files} >= {PORTED_CONFIG, TOKENIZER} and {WEIGHTS, INDEX} & {*files}:
            return _download_ported(repo, files, revision)
        others = f", but {', '.join(found[:10])}" if found else ", nor another .nemo file"
        raise SetupError(
            repo, f"has no file {name}{others if files else ''}", "download one and give its path"
        ) from error
    except FAILURES as error:
        raise _unreachable(repo, name, _reason(error)) from error


def _find_cached(repo: str, name: str, revision: str | None) -> Path | None:
    """Return the path of the model that ``download`` has cached, if it is complete."""
    for wanted in (name, WEIGHTS, INDEX):
        cached = huggingface_hub.try_to_load_from_cache(repo, wanted, revision=revision)
        if not isinstance(cached, str):
            continue
        if wanted == name:
            return Path(cached)
        folder = Path(cached).parent
        if all((folder / file).exists() for file in find_weight_files(folder)):
            return folder
    return None


def _reason(error: Exception) -> str:
    """Return why a file could not be downloaded: the hub's answer, if there was one."""
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


def _download_ported(repo: str, files: list[str], revision: str | None) -> Path:
    """Return the folder with a model of transformers; its weights come last, and only if its config is supported.

    ``files`` are those of the repository: no index of weights is followed anywhere else.
    """
    fetch = partial(huggingface_hub.hf_hub_download, repo, revision=revision)
    try:
        for file in (PORTED_CONFIG, PROCESSOR):
            if file in files:
                folder = Path(fetch(file)).parent
        read_config(folder)
        for file in (TOKENIZER, WEIGHTS if WEIGHTS in files else INDEX):
            fetch(file)
        for file in find_weight_files(folder):
            if file not in files:
                raise SetupError(f"{repo}: {INDEX}", f"names {shown(file)}, which the repository lacks", AGAIN)
            if not (folder / file).exists():
                fetch(file)
    except FAILURES as error:
        raise _unreachable(repo, WEIGHTS, first_line(error)) from error
    return folder


def _unreachable(repo: str, name: str, reason: str) -> SetupError:
    hint = f"go online, or fetch {name} elsewhere and give its path"
    if not os.environ.get("HF_ENDPOINT"):
        hint += "; HF_ENDPOINT selects a mirror"
    return SetupError(repo, f"cannot be downloaded: {reason}", hint)
