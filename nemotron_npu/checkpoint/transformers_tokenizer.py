"""``tokenizer.json`` -> the sentencepiece model that it was made of, as its protocol buffer.

transformers writes every vocabulary as byte pair encoding.  Ids and texts are those of the original; of a Unigram model
the scores are lost, which only matters for how boosted phrases are spelled.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Any

from ..errors import shown
from .json_file import parse_json
from .refusal import Refusal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Types of a piece."""
BPE = 2
LANGUAGE = re.compile("<[a-z]{2,3}-[A-Za-z]{2}>")


def sentencepiece_model(text: bytes, tokens: int) -> bytes:
    """Return the sentencepiece model of the first ``tokens`` tokens of a ``tokenizer.json``; raise Refusal."""
    values = parse_json(text)
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise Refusal("has no vocabulary of byte pairs", "supported: what transformers makes of sentencepiece")
    names = {id: piece for piece, id in model["vocab"].items() if type(id) is int}
    missing = next((id for id in range(tokens) if id not in names), None)
    if missing is not None:
        raise Refusal(f"lacks token {missing} of {tokens}")
    pieces = [names[id] for id in range(tokens)]
    added: dict[str, bool] = {}
    for token in _list(values, "added_tokens"):
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            added[token["content"]] = bool(token.get("special"))
    ranks: dict[str, int] = {}
    merges = _list(model, "merges")
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise Refusal("has a merge that makes no sense")
        ranks.setdefault("".join(parts), rank)
    unknown = model.get("unk_token")
    content = b""
    for id, piece in enumerate(pieces):
        score = -float(ranks.get(piece, len(merges) + id))
        kind = UNKNOWN if piece == unknown else _kind(piece, added)
        content += _bytes(1, _bytes(1, _text(piece)) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    has_bytes = any(_is_byte(piece) for piece in pieces)
    trainer = _number(3, BPE) + _number(4, tokens) + _number(35, int(has_bytes)) + _bytes(45, _text(str(unknown)))
    normalizer = _bytes(2, _charsmap(values.get("normalizer")))
    return content + _bytes(2, trainer) + _bytes(3, normalizer)


def _list(values: dict[str, Any], key: str) -> list[Any]:
    found = values.get(key) or []
    if not isinstance(found, list):
        raise Refusal(f"has {key} that are no list")
    return found


def _kind(piece: str, added: dict[str, bool]) -> int:
    """Return the type of a piece: transformers marks control pieces as special, and so it does language tags."""
    if piece not in added:
        return BYTE if _is_byte(piece) else NORMAL
    return CONTROL if added[piece] and not LANGUAGE.fullmatch(piece) else USER_DEFINED


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _charsmap(normalizer: Any) -> bytes:
    """Return the table of characters of a normalizer, or of the one in its sequence that has a table."""
    if not isinstance(normalizer, dict):
        return b""
    for each in [normalizer, *_list(normalizer, "normalizers")]:
        if isinstance(each, dict) and each.get("type") == "Precompiled":
            try:
                return base64.b64decode(each.get("precompiled_charsmap") or "", validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise Refusal("has a table of characters that is not base64") from error
    return b""


def _text(piece: str) -> bytes:
    try:
        return piece.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise Refusal(f"has a token {shown(ascii(piece))}, which is not text") from error


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
