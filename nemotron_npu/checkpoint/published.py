"""Checkpoints that NVIDIA has published, identified by content: published figures are shown only for these."""

from __future__ import annotations

from pathlib import Path

from ..host.provenance import sha256

PUBLISHED = {
    "283638054c44f6794e74fe9af9048d78a6d9d6c058c12131856c7859a62ac9cd": (
        2_473_041_920,
        "the published nemotron-speech-streaming-en-0.6b of March 2026",
    ),
}
"""SHA-256 of files on Hugging Face -> bytes, and what they are."""


def is_published(path: Path) -> bool:
    """Return whether a checkpoint is one of these.  A file of such a size is read as a whole, which takes seconds."""
    sizes = {size for size, _ in PUBLISHED.values()}
    return path.is_file() and path.stat().st_size in sizes and sha256(path) in PUBLISHED
