#!/usr/bin/env python3
"""Live transcription over a websocket: audio in, the JSON lines of ``--output_format events`` out.

    pip install websockets
    python examples/websocket_server.py [MODEL.nemo] [DEVICE] [PORT]

A client sends binary messages of 16-bit little-endian mono PCM at 16 kHz, of any length, and the text ``end`` after the
last one.  Each connection is a stream of its own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from websockets.asyncio.server import ServerConnection, serve  # noqa: E402

from nemotron_npu import ModelOptions, Recognizer, Stream, load_recognizer  # noqa: E402
from nemotron_npu.formats import to_document, to_event, to_json  # noqa: E402


async def transcribe(connection: ServerConnection, recognizer: Recognizer) -> None:
    """Serve one client: feed what arrives, and send what becomes known.  The model runs in a thread."""
    name = "{}:{}".format(*connection.remote_address[:2])
    stream = recognizer.stream()
    async for message in connection:
        if message == "end":
            transcript = await asyncio.to_thread(stream.finish)
            await send_events(connection, stream, name)
            await connection.send(to_json({"type": "end", "source": name, **to_document(transcript, audio=name)}))
            return
        if isinstance(message, str) or len(message) % 2:
            await connection.close(1003, "send 16-bit PCM, then the text: end")
            return
        await asyncio.to_thread(stream.feed, np.frombuffer(message, "<i2"))
        await send_events(connection, stream, name)


async def send_events(connection: ServerConnection, stream: Stream, name: str) -> None:
    """Send the events since the last call."""
    for event in stream.events():
        await connection.send(to_json(to_event(event.type, event.segment, event.number, source=name, audio=name)))


async def main(model: str = str(ROOT / "demo" / "demo.nemo"), device: str = "cpu", port: str = "8765") -> None:
    recognizer = load_recognizer(model, device, options=ModelOptions(chunk_ms=160))
    async with serve(lambda connection: transcribe(connection, recognizer), "127.0.0.1", int(port)) as server:  # type: ignore[arg-type]
        print(f"listening on port {server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
