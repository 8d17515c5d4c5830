"""``--model_path`` -> a ``.nemo`` file on this disk -> its config, weights and tokenizer, without importing NeMo."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from ..errors import SetupError, first_line, shown
from ..host.packages import can_import
from .archive import read_member
from .config import context_sizes, parse_config, tokenizer_parts
from .weights import NAME as WEIGHTS
from .weights import Tensors, read_weights

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_EXAMPLE = "nvidia/nemotron-speech-streaming-en-0.6b"
CONFIG = "model_config.yaml"
MOST_CONFIG, MOST_TOKENIZER = 1 << 20, 32 << 20  # bytes: the real ones have 0.02 and 0.3 MB
OUTPUT = re.compile(r"joint\.joint_net\.\d+\.weight")
NO_HUB = "a Hugging Face id needs huggingface_hub: pip install huggingface_hub"
STRANGER = "it belongs to another checkpoint"


def find_checkpoint(model_path: str) -> Path:
    """The local ``.nemo`` file for a path or a Hugging Face id (downloaded once, then taken from the hub's cache).

    Raises SetupError when there is no such file or it cannot be downloaded.
    """
    path = Path(model_path).expanduser()
    try:
        os.stat(path)
        return path  # what kind of file it is shows when it is opened
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise SetupError(f"{model_path}: cannot be read: {error.strerror}") from error
    if is_hub_id(model_path):
        return _download(model_path)
    raise SetupError(f"{model_path}: no such file (a Hugging Face id looks like {HUB_EXAMPLE})")


def is_hub_id(model_path: str) -> bool:
    """Whether this names a model on Hugging Face rather than a file: ``owner/name`` where no such file is."""
    is_path = os.path.exists(model_path) or model_path.endswith(".nemo")
    return not is_path and HUB_ID.fullmatch(model_path) is not None


def _download(repo: str) -> Path:
    if not can_import("huggingface_hub"):
        raise SetupError(f"{repo}: {NO_HUB}")
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        from httpx import HTTPError  # the client of huggingface_hub 1.0 and later; that of earlier ones raises OSErrors
    except ModuleNotFoundError:
        HTTPError = OSError
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
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise SetupError(
            f"{repo}: cannot be downloaded ({first_line(error)}){mirror}: "
            f"go online, or fetch {name} elsewhere and give its path"
        ) from error


class Checkpoint(NamedTuple):
    """What is in a ``.nemo`` file, as far as it was checked without either engine."""

    config: dict
    tensors: Tensors
    tokenizers: list
    """``sentencepiece.SentencePieceProcessor``: one, or one for each language."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Everything in a ``.nemo`` file, checked: what comes out runs no code and takes no more memory than the file does.

    Both engines read a checkpoint by this.  Shape and values of each weight are checked when it is used.
    Raises SetupError that names the member and what is wrong with it.
    """
    config = read_config(path)
    tokenizers = [_tokenizer(path, name) for name in _tokenizer_names(config)]
    tensors = read_weights(path)
    _check_vocabulary(path, config, tensors, tokenizers)
    _check_sizes(path, config, tensors, max(tokenizer.get_piece_size() for tokenizer in tokenizers))
    return Checkpoint(config, tensors, tokenizers)


def read_config(path: Path) -> dict:
    """The ``model_config.yaml`` inside a ``.nemo`` (a tar, sometimes gzipped).

    Raises SetupError when the file is not such an archive, holds a model of another class, or a config that makes no
    sense or is not safe: see ``config.py``.
    """
    text = read_member(path, CONFIG, MOST_CONFIG)
    try:
        return parse_config(text)
    except SetupError as error:
        raise SetupError(f"{path}: {CONFIG} inside {error}") from error


def read_tokenizer(path: Path, config: dict):
    """The ``sentencepiece.SentencePieceProcessor`` inside; raises SetupError when it is missing or broken."""
    return _tokenizer(path, _tokenizer_names(config)[0])


def _tokenizer_names(config: dict) -> list[str]:
    """The members that have the sentencepiece models."""
    return [part["model_path"].removeprefix("nemo:") for part in tokenizer_parts(config)]


def _tokenizer(path: Path, name: str):
    import sentencepiece

    content = read_member(path, name, MOST_TOKENIZER)
    try:
        tokenizer = sentencepiece.SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(content)
        tokenizer.id_to_piece(list(range(tokenizer.get_piece_size())))  # all of them are text
        return tokenizer
    except (RuntimeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: {shown(name)} inside is not a sentencepiece model: download it again") from error


def _check_vocabulary(path: Path, config: dict, tensors: Tensors, tokenizers: list) -> None:
    """The tokenizer's pieces are those that NeMo wrote into the config when it saved, and the outputs but blank."""
    pieces = [p for tokenizer in tokenizers for p in tokenizer.id_to_piece(list(range(tokenizer.get_piece_size())))]
    tokenizer = f"{shown(_tokenizer_names(config)[0])} inside has"
    for piece in pieces:
        if any(unicodedata.category(character) == "Cc" for character in piece):
            raise SetupError(f"{path}: {tokenizer} a piece {shown(piece)}, which is not safe to print")
    if len(tokenizers) > 1:  # pieces of several languages may be one
        return
    outputs = len(pieces) + 1 + (config["joint"].get("num_extra_outputs") or 0)
    for name, tensor in tensors.items():
        if OUTPUT.fullmatch(name) and tensor.shape[:1] != (outputs,):
            raise SetupError(
                f"{path}: {tokenizer} {len(pieces)} pieces, {shown(name)} is {list(tensor.shape)}: {STRANGER}"
            )
    for place, labels in (("labels", config.get("labels")), ("joint.vocabulary", config["joint"].get("vocabulary"))):
        if labels is None or labels == pieces:
            continue
        if not isinstance(labels, list) or len(labels) != len(pieces):
            count = len(labels) if isinstance(labels, list) else shown(labels)
            raise SetupError(f"{path}: {tokenizer} {len(pieces)} pieces, {place} in {CONFIG} {count}: {STRANGER}")
        i = next(i for i, piece in enumerate(pieces) if labels[i] != piece)
        ours, theirs = shown(pieces[i]), shown(labels[i])
        raise SetupError(f"{path}: {tokenizer} {ours!r} as piece {i}, {place} in {CONFIG} {theirs!r}: {STRANGER}")


def _check_sizes(path: Path, config: dict, tensors: Tensors, pieces: int) -> None:
    """The config may not ask for a larger model than there are weights of: NeMo would allocate it first.

    Counted are the numbers of the large matrices, which are there in every kind of such a model.
    """
    encoder, prediction, defaults = config["encoder"], config["decoder"]["prednet"], config["model_defaults"]
    width, factor = encoder["d_model"], encoder.get("ff_expansion_factor", 4)
    layer = 4 * width * width * factor + 7 * width * width  # feed-forwards; attention and pointwise convolutions
    channels = encoder.get("subsampling_conv_channels", -1)
    channels = width if channels == -1 else channels
    hidden = prediction["pred_hidden"]
    cells = prediction.get("rnn_hidden_size") or -1
    recurrent = 8 * hidden * (cells if cells > 0 else hidden) * prediction["pred_rnn_layers"]
    recurrent = recurrent if config["decoder"]["_target_"].endswith(".RNNTDecoder") else 0
    outputs = pieces + 1 + (config["joint"].get("num_extra_outputs") or 0)
    asked = {
        "encoder.pre_encode.": channels * width,
        "encoder.layers.": layer * encoder["n_layers"],
        "decoder.prediction.": recurrent + pieces * hidden // 2,
        "joint.": config["joint"]["jointnet"]["joint_hidden"]
        * (defaults["enc_hidden"] + defaults["pred_hidden"] + outputs),
    }
    for part, count in asked.items():
        there = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(part))
        if there < count:
            raise SetupError(
                f"{path}: {WEIGHTS} inside has {there:,} numbers in {part}*, {CONFIG} asks for {count:,} or more: "
                "some are missing, or one of the two is of another checkpoint"
            )


def frame_seconds(config: dict) -> float:
    """Seconds of sound in one encoder frame: the mel stride times the encoder's subsampling."""
    return float(config["preprocessor"]["window_stride"]) * int(config["encoder"]["subsampling_factor"])


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
