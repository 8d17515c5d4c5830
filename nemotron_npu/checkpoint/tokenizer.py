"""The sentencepiece models of a ``.nemo`` file, checked against its config and weights."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import SetupError, shown
from .archive import CONFIG, is_ported, read_member
from .config import ModelConfig
from .refusal import AGAIN, STRANGER, Refusal
from .transformers_tokenizer import sentencepiece_model
from .weights import Tensors

MAX_TOKENIZER = 32 << 20  # bytes; the published one has 0.3 MB
OUTPUT = re.compile(r"joint\.joint_net\.\d+\.weight")


def read_tokenizers(path: Path, config: ModelConfig) -> list[SentencePieceProcessor]:
    """Return the tokenizer, or one for each language; raise SetupError when one is missing or broken."""
    return [_read_tokenizer(path, tokenizer.member, config) for tokenizer in config.tokenizers]


def _read_tokenizer(path: Path, name: str, config: ModelConfig) -> SentencePieceProcessor:
    content = read_member(path, name, MAX_TOKENIZER)
    try:
        if is_ported(path):
            content = sentencepiece_model(content, config.raw["decoder"]["vocab_size"])
        tokenizer = SentencePieceProcessor()
        tokenizer.LoadFromSerializedProto(content)
        pieces_of(tokenizer)  # all of them are text
        return tokenizer
    except Refusal as refusal:
        raise refusal.of(path, name) from refusal
    except (RuntimeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path}: {shown(name)}", "is not a sentencepiece model", AGAIN) from error


def pieces_of(tokenizer: SentencePieceProcessor) -> list[str]:
    """Return the text of every token, by its id."""
    return tokenizer.id_to_piece(list(range(tokenizer.get_piece_size())))


def check_vocabulary(
    path: Path, config: ModelConfig, tensors: Tensors, tokenizers: Sequence[SentencePieceProcessor]
) -> None:
    """Raise SetupError unless config, weights and tokenizer have the same vocabulary, and it is safe to print."""
    pieces = [piece for tokenizer in tokenizers for piece in pieces_of(tokenizer)]
    subject = f"{path}: {shown(config.tokenizers[0].member)}"
    for piece in pieces:
        if any(unicodedata.category(character) == "Cc" for character in piece):
            raise SetupError(subject, f"has a token {shown(piece)}, which is not safe to print")
    if len(tokenizers) > 1:  # several languages may share a token
        return
    outputs = len(pieces) + 1 + (config.joint.num_extra_outputs or 0)  # the blank is one
    for name, tensor in tensors.items():
        if OUTPUT.fullmatch(name) and tensor.shape[:1] != (outputs,):
            raise SetupError(subject, f"has {len(pieces)} tokens, {shown(name)} is {list(tensor.shape)}", STRANGER)
    _check_labels(subject, "labels", config.labels, pieces)
    _check_labels(subject, "joint.vocabulary", config.joint.vocabulary, pieces)


def _check_labels(subject: str, key: str, labels: object, pieces: list[str]) -> None:
    """Raise SetupError unless ``labels``, if there are any, are the tokenizer's tokens, as NeMo saves them."""
    if labels is None or labels == pieces:
        return
    if not isinstance(labels, list):
        raise SetupError(subject, f"has {len(pieces)} tokens, {key} in {CONFIG} {shown(labels)}", STRANGER)
    if len(labels) != len(pieces):
        raise SetupError(subject, f"has {len(pieces)} tokens, {key} in {CONFIG} {len(labels)}", STRANGER)
    index = next(i for i, piece in enumerate(pieces) if labels[i] != piece)
    ours = shown(pieces[index])
    theirs = shown(labels[index])
    raise SetupError(subject, f"has {ours!r} as token {index}, {key} in {CONFIG} {theirs!r}", STRANGER)
