"""A GPU gives the CPU's tokens, with eager steps and with captured graphs.  Skipped without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import CLIP, ROOT

from nemotron_npu.audio import read_audio
from nemotron_npu.engine import ModelOptions
from nemotron_npu.recognizer import Recognizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1120])
def test_recordings_and_streams_give_the_tokens_of_the_cpu(chunk_ms, record):
    demo, clip = ROOT / "demo" / "demo.nemo", np.tile(read_audio(str(CLIP)), 4)
    recognizer = Recognizer(demo, torch.device("cuda:0"), options=ModelOptions(chunk_ms=chunk_ms, graph=record))
    expected = Recognizer(demo, torch.device("cpu"), options=ModelOptions(chunk_ms=chunk_ms)).transcribe(
        [clip, clip[5000:], clip[:50000]]
    )
    heard = recognizer.transcribe([clip, clip[5000:], clip[:50000]], 2)
    with recognizer.stream() as stream:
        for first in range(0, len(clip), 1280):
            stream.feed(clip[first : first + 1280])
    for ours, theirs in zip([*heard, stream.finish()], [*expected, expected[0]], strict=True):
        assert [(t.id, t.frame) for t in ours.tokens] == [(t.id, t.frame) for t in theirs.tokens]
