#!/usr/bin/env python3
"""Live captions from a microphone, a line for each utterance; Ctrl-C ends them.

pip install sounddevice
python examples/microphone.py [MODEL.nemo] [DEVICE]
"""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sounddevice  # noqa: E402

from nemotron_npu import ModelOptions, Stream, load_recognizer  # noqa: E402


def main(model: str = str(ROOT / "demo" / "demo.nemo"), device: str = "cpu") -> None:
    recognizer = load_recognizer(model, device, options=ModelOptions(chunk_ms=160))
    blocks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def take(samples: Any, count: int, time: Any, status: Any) -> None:
        """Take int16 [count, 1]; a thread of sounddevice calls this, and uses the memory again."""
        if status:
            print(status, file=sys.stderr)
        blocks.put(samples.copy())

    stream = recognizer.stream()
    with sounddevice.InputStream(samplerate=16000, channels=1, dtype="int16", callback=take):
        print("listening ...", file=sys.stderr)
        try:
            while True:
                stream.feed(blocks.get())
                show(stream)
        except KeyboardInterrupt:
            pass
    stream.finish()
    show(stream)


def show(stream: Stream) -> None:
    """Print the utterances that have ended."""
    for event in stream.events():
        if event.type == "segment":
            print(event.segment.text, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
