"""``--model_path`` -> a ``.nemo`` file on this disk -> its config and tokenizer, without importing NeMo."""

from __future__ import annotations

import os
import re
import tarfile
from contextlib import contextmanager
from pathlib import Path

from .errors import SetupError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_EXAMPLE = "nvidia/nemotron-speech-streaming-en-0.6b"
MODEL_CLASS = "EncDecRNNTBPEModel"


def find_checkpoint(model_path: str) -> Path:
    """The local ``.nemo`` file for a path or a Hugging Face id (downloaded once, then taken from the hub's cache).

    Raises SetupError when there is no such file or it cannot be downloaded.
    """
    path = Path(model_path).expanduser()
    if path.is_dir():
        raise SetupError(f"{model_path}: is a directory: name the .nemo file in it")
    if path.exists():
        return path
    if is_hub_id(model_path):
        return _download(model_path)
    raise SetupError(f"{model_path}: no such file (a Hugging Face id looks like {HUB_EXAMPLE})")


def is_hub_id(model_path: str) -> bool:
    """Whether this names a model on Hugging Face rather than a file: ``owner/name`` where no such file is."""
    is_path = os.path.exists(model_path) or model_path.endswith(".nemo")
    return not is_path and HUB_ID.fullmatch(model_path) is not None


def _download(repo: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name = repo.split("/")[1] + ".nemo"  # NVIDIA names the file after the repository
    mirror = "" if os.environ.get("HF_ENDPOINT") else " (HF_ENDPOINT selects a mirror)"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name))
    except GatedRepoError as error:
        raise SetupError(f"{repo}: gated on Hugging Face: accept its terms there and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise SetupError(f"{repo}: no such model on Hugging Face, or it is private: check the id") from error
    except EntryNotFoundError as error:
        # raised too when nothing is cached and the hub cannot be reached
        if isinstance(error, FileNotFoundError):
            raise SetupError(
                f"{repo}: cannot be downloaded: no connection to Hugging Face{mirror}: "
                f"go online, or fetch {name} elsewhere and give its path"
            ) from error
        raise SetupError(f"{repo}: has no file {name}: download its .nemo file and give the path") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SetupError(
            f"{repo}: cannot be downloaded ({first_line(error)}){mirror}: "
            f"go online, or fetch {name} elsewhere and give its path"
        ) from error


def read_config(path: Path) -> dict:
    """The ``model_config.yaml`` inside a ``.nemo`` (a tar, sometimes gzipped).

    Raises SetupError when the file is not such an archive or holds a model of another class.
    """
    import yaml

    try:
        config = yaml.safe_load(read_member(path, "model_config.yaml"))
    except yaml.YAMLError as error:
        raise SetupError(f"{path}: model_config.yaml inside is not valid YAML") from error
    if not isinstance(config, dict) or not isinstance(config.get("encoder"), dict):
        raise SetupError(f"{path}: model_config.yaml inside describes no encoder")
    target = str(config.get("target", "")).rsplit(".", 1)[-1]
    if target != MODEL_CLASS:
        raise SetupError(f"{path}: holds a {target or 'model of unknown class'}: {MODEL_CLASS} is what runs here")
    return config


def read_tokenizer(path: Path, config: dict):
    """The ``sentencepiece.SentencePieceProcessor`` inside; raises SetupError when it is missing or broken."""
    import sentencepiece

    name = str(config["tokenizer"]["model_path"]).removeprefix("nemo:")
    try:
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(read_member(path, name))
        return tokenizer
    except RuntimeError as error:
        raise SetupError(f"{path}: {name} inside is not a sentencepiece model: download it again") from error


def read_member(path: Path, name: str) -> bytes:
    with opened(path) as archive:
        return archive.extractfile(find_member(path, archive, name)).read()


def find_member(path: Path, archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    member = next((m for m in archive if os.path.basename(m.name) == name and m.isfile()), None)
    if member is None:
        raise SetupError(f"{path}: not a .nemo checkpoint: no {name} inside")
    return member


@contextmanager
def opened(path: Path):
    """The tar archive at ``path``; what goes wrong while it is read is a SetupError."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a tar archive, or cut short"
        raise SetupError(f"{path}: not a .nemo checkpoint ({reason}): download it again") from error


def frame_seconds(config: dict) -> float:
    """Seconds of sound in one encoder frame: the mel stride times the encoder's subsampling."""
    return float(config["preprocessor"]["window_stride"]) * int(config["encoder"]["subsampling_factor"])


def context_sizes(sizes: list | None) -> list[list[int]]:
    """``att_context_size``, one [left, right] or several, as several; -1, and none at all, is no limit."""
    sizes = sizes or [-1, -1]
    return sizes if isinstance(sizes[0], list) else [sizes]


def attention_contexts(config: dict) -> dict[int, list[int]]:
    """Chunk length in ms -> [left, right] attention context in encoder frames, in the checkpoint's order.

    A chunk of right context R is R + 1 encoder frames.  The first is the default.  Empty for a checkpoint that does
    not attend in chunks.
    """
    encoder = config["encoder"]
    if encoder.get("att_context_style") != "chunked_limited":
        return {}
    sizes = context_sizes(encoder["att_context_size"])
    return {round((right + 1) * frame_seconds(config) * 1000): [left, right] for left, right in sizes}


def choose_context(config: dict, chunk_ms: int | None) -> tuple[int | None, list[int] | None]:
    """(chunk_ms, [left, right]) for the chunk size asked for, or the checkpoint's default for None.

    Raises SetupError that names the sizes on offer.
    """
    contexts = attention_contexts(config)
    if chunk_ms is None:
        return next(iter(contexts.items()), (None, None))
    if chunk_ms not in contexts:
        offered = ", ".join(str(ms) for ms in sorted(contexts)) or "none: it does not attend in chunks"
        raise SetupError(f"--chunk_ms {chunk_ms}: this checkpoint offers {offered}")
    return chunk_ms, contexts[chunk_ms]
