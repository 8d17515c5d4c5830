"""The examples run as docs/streaming.md has them: a microphone, and a websocket over loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import sys
import threading
import types
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from live_audio import to_pcm
from support import CLIP_WORDS, ROOT

from nemotron_npu import Stream

SCHEMA = json.loads((ROOT / "nemotron_npu" / "events.schema.json").read_text())


def load(name: str) -> ModuleType:
    """Import an example by the name of its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_microphone_prints_a_line_an_utterance(monkeypatch, capsys, clip):
    """The microphone's blocks, int16 [n, 1] in memory that is used again, become lines; Ctrl-C ends with the rest."""

    class InputStream:
        def __init__(self, **options):
            self.call = options.pop("callback")
            assert options == {"samplerate": 16000, "channels": 1, "dtype": "int16"}
            self.thread = threading.Thread(target=self.speak)

        def __enter__(self):
            self.thread.start()

        def __exit__(self, *_):
            self.thread.join()

        def speak(self):
            samples, memory = np.frombuffer(to_pcm(clip), "<i2"), np.zeros((1600, 1), np.int16)
            for first in range(0, len(samples) // 1600 * 1600, 1600):
                memory[:, 0] = samples[first : first + 1600]
                self.call(memory, 1600, None, None)
            done.wait(60)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(InputStream=InputStream))
    module, done, feed = load("microphone"), threading.Event(), Stream.feed

    def counted(stream, samples):
        words = feed(stream, samples)
        if stream.seconds >= len(clip) // 1600 / 10:
            done.set()
        return words

    monkeypatch.setattr(Stream, "feed", counted)
    module.main()
    out, err = capsys.readouterr()
    assert out == "three one\nfour one five nine two\nsix\n" and err == "listening ...\n"


def test_websocket_clients_get_events_while_they_speak():
    """Two clients at once each get the lines of their own stream, before the end; bad ones are told."""
    client = pytest.importorskip("websockets.asyncio.client", reason="requirements-dev.txt has websockets")
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosedError

    from nemotron_npu import ModelOptions, load_recognizer
    from nemotron_npu.audio import read_audio

    server = load("websocket_server")
    recognizer = load_recognizer(server.ROOT / "demo" / "demo.nemo", "cpu", options=ModelOptions(chunk_ms=160))
    data = to_pcm(read_audio(str(ROOT / "demo" / "digits.wav")))

    async def speak(url: str) -> list[dict]:
        async with client.connect(url) as connection:
            for first in range(0, len(data), 6400):
                await connection.send(data[first : first + 6400])
            events = [json.loads(await connection.recv())]
            await connection.send("end")
            return events + [json.loads(line) async for line in connection]

    async def run() -> list[list[dict]]:
        async with serve(lambda one: server.transcribe(one, recognizer), "127.0.0.1", 0) as running:
            url = f"ws://127.0.0.1:{running.sockets[0].getsockname()[1]}"
            both = await asyncio.gather(speak(url), speak(url))
            async with client.connect(url) as connection:
                await connection.send(b"odd")
                with pytest.raises(ConnectionClosedError, match="send 16-bit PCM"):
                    await connection.recv()
            return both

    first, second = asyncio.run(run())
    for events in (first, second):
        for event in events:
            jsonschema.validate(event, SCHEMA)
        assert events[0]["type"] == "words" and events[-1]["type"] == "end" and events[-1]["text"] == CLIP_WORDS
    assert first[0]["audio"] != second[0]["audio"]
