"""The reference text of a recording in its JSON document, and the errors against it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..evaluation.wer import score
from ..sources import Recording

FIELDS = {"manifest", "reference", "errors"}


def reference_fields(recording: Recording, text: str, duration: float, normalizer: str) -> dict[str, Any]:
    """Return the fields of a document that follow from the reference text; none without one."""
    reference = recording.reference
    if reference is None:
        return {}
    errors = score(recording.name, reference, text, duration, normalizer)
    return {"reference": reference, "errors": errors.as_dict()}


def reference_digest(manifest: dict | None, reference: str | None) -> str:
    """Return a short digest of a manifest's line and the reference text, both of which a document repeats."""
    text = json.dumps([manifest or None, reference], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rescored(document: dict[str, Any], recording: Recording, normalizer: str) -> dict[str, Any]:
    """Return the document of an earlier run with the manifest's line, reference text and normalizer of this one."""
    own = {**recording.document_fields(), "audio": document["audio"]}  # its output is named after it
    result = dict(own)
    for name, value in {**document, "wer_normalizer": normalizer}.items():
        if name == "text":
            result |= reference_fields(recording, value, document["duration"], normalizer)
        if name not in own and name not in FIELDS:
            result[name] = value
    return result
