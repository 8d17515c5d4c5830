"""Fixtures of all tests: checkpoints that are made once, and the command line in this process."""

from __future__ import annotations

import atexit
import copy
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # a torch_npu without CANN must not keep torch from being imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background; programs under test would too
    signal.signal(signal.SIGINT, signal.default_int_handler)

from live_audio import start_inference, to_pcm
from support import CLIP, CLIP_WORDS, DEMO, GUARD, PARITY, POISON

if str(GUARD) not in os.environ.get("PYTHONPATH", ""):  # else this is a pytest that a test has started
    os.environ["NETWORK_GUARD"] = tempfile.mkstemp(prefix="network-guard-")[1]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))
    atexit.register(os.unlink, os.environ["NETWORK_GUARD"])
    exec((GUARD / "sitecustomize.py").read_text())  # in this process too

from checkpoints import TINY_SIZE, make_random_checkpoint


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine():
    """A test fails if it, or a Python that it has started, looks up or connects to another machine: see guard/."""
    seen = Path(os.environ["NETWORK_GUARD"])
    before = seen.stat().st_size
    yield
    left = seen.read_text()[before:]
    assert not left, f"left this machine:\n{left}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny random checkpoint of the real one's class, keys and contexts."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.nemo"
    make_random_checkpoint(path, TINY_SIZE)
    return path


@pytest.fixture(scope="module")
def engines():
    """(native, NeMo) of a checkpoint at 160 ms on the CPU, made once: ``engines(path)``."""
    import torch

    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.nemo_engine import NemoRecognizer
    from nemotron_npu.recognizer import Recognizer

    cpu = torch.device("cpu")
    return functools.cache(
        lambda path: (
            Recognizer(path, cpu, options=ModelOptions(chunk_ms=160)),
            NemoRecognizer(path, cpu, options=ModelOptions(chunk_ms=160)),
        )
    )


@pytest.fixture(scope="module")
def tiny_native(tiny):
    """The tiny checkpoint in the native engine, loaded once for the tests of a file."""
    from nemotron_npu.recognizer import load_recognizer

    return load_recognizer(tiny, "cpu")


@pytest.fixture(scope="module")
def tiny_nemo(tiny):
    """The tiny checkpoint in NeMo, loaded once for the tests of a file."""
    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import load_recognizer

    return load_recognizer(tiny, "cpu", options=ModelOptions("nemo"))


@pytest.fixture(scope="session")
def demo_native():
    """The bundled model in the native engine, loaded once for all tests that do not change it."""
    from nemotron_npu.recognizer import load_recognizer

    return load_recognizer(DEMO, "cpu")


@pytest.fixture(scope="session")
def demo_nemo():
    """The bundled model in NeMo, loaded once for all tests that do not change it."""
    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import load_recognizer

    return load_recognizer(DEMO, "cpu", options=ModelOptions("nemo"))


@pytest.fixture(scope="session")
def clip():
    """The bundled clip: float32 [samples] at 16 kHz."""
    from nemotron_npu.audio import read_audio

    return read_audio(str(CLIP))


@pytest.fixture(scope="session")
def demo_560():
    """The bundled model in the native engine with chunks of 560 ms, loaded once: see ``demo``."""
    from nemotron_npu.engine import ModelOptions
    from nemotron_npu.recognizer import load_recognizer

    return load_recognizer(DEMO, "cpu", options=ModelOptions(chunk_ms=560))


@pytest.fixture
def demo(demo_560):
    """A copy of ``demo_560`` and of its encoder, which a test may change."""
    recognizer = copy.copy(demo_560)
    recognizer.encoder = copy.copy(demo_560.encoder)
    return recognizer


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of 12 copies of the bundled clip."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        shutil.copy(CLIP, folder / f"call{number:02}.wav")
    return folder


@pytest.fixture(scope="session")
def pcm(clip) -> bytes:
    """The bundled clip as raw PCM at 16 kHz."""
    return to_pcm(clip)


@pytest.fixture
def start():
    """Start the command line with a pipe as its stdin (``live_audio.start_inference``), and kill it after the test."""
    running = []

    def call(*args, **options) -> subprocess.Popen:
        running.append(start_inference(*args, **options))
        return running[-1]

    yield call
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()


@pytest.fixture(scope="session")
def comparison(demo_native, demo_nemo, clip):
    """The comparison of the bundled clip, at all chunk lengths."""
    from nemotron_npu.audio import sine
    from nemotron_npu.precision.compare import Precision

    precision = Precision(demo_native, demo_nemo)
    precision.add_signal(sine())
    precision.add_recording("digits.wav", clip, text=CLIP_WORDS)
    return precision


@pytest.fixture
def digits() -> tuple[np.ndarray, int]:
    """The bundled clip as recorded: float32 [samples] and its rate, 8000 Hz."""
    return soundfile.read(CLIP, dtype="float32")


@pytest.fixture
def stereo_mp3(tmp_path, digits) -> Path:
    """The bundled clip as a 44.1 kHz stereo mp3."""
    audio, rate = digits
    path = tmp_path / "stereo.mp3"
    resampled = soxr.resample(audio, rate, 44100)
    soundfile.write(path, np.stack([resampled, resampled * 0.8], 1), 44100)
    return path


@pytest.fixture
def poison(tmp_path) -> Path:
    """A recording that ``support.poison_the_encoder`` and its likes let fail."""
    path = tmp_path / "poison.wav"
    soundfile.write(path, np.zeros(POISON), 16000)
    return path


@pytest.fixture(scope="session")
def calls(tmp_path_factory) -> Path:
    """20 recordings of many formats in folders, and the five broken ones of ``support.BROKEN``."""
    folder = tmp_path_factory.mktemp("data") / "calls"
    audio, rate = soundfile.read(CLIP, dtype="float32")
    formats = [("wav", "PCM_16"), ("wav", "ULAW"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]
    for i in range(20):
        suffix, subtype = formats[i % 5]
        new_rate = (8000, 16000, 44100, 48000)[i % 4]
        samples = soxr.resample(audio[: rate if i % 3 == 0 else None], rate, new_rate).clip(-1, 1)
        if i % 2:
            samples = np.stack([samples, 0.8 * samples], 1)
        path = folder / f"day {i % 3}" / f"call{i:02d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, new_rate, subtype=subtype)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.mp3").write_text("not sound at all\n" * 50)
    soundfile.write(folder / "header.wav", np.zeros(0), 16000)
    soundfile.write(folder / "broken.flac", np.random.default_rng(0).uniform(-1, 1, 40000), 16000)
    os.truncate(folder / "broken.flac", 9000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    return folder


@pytest.fixture
def chromium(tmp_path):
    """Open a page in headless Chromium, if there is one: ``chromium(path, width)`` -> (its DOM, the browser's log)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]

    def show(page: Path, width: int) -> tuple[str, str]:
        place = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1000"]
        command = [browser, *options, *place, "--dump-dom", page.as_uri()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return result.stdout, result.stderr

    return show


@pytest.fixture
def no_torch_npu(monkeypatch):
    """An environment without torch_npu, whether it is installed or not."""
    real = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch_npu" else real(name, *rest)
    )


@pytest.fixture
def cli(capsys):
    """Run the command line in this process: ``cli("--device", "cpu", ...)`` -> (exit code, stdout, stderr)."""
    import inference

    def call(*args) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = inference.main([str(arg) for arg in args])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


QUICK = "audio boosting config checkpoints confidence device dtypes engine output_folder output_names"
QUICK += " live_input sources streaming transcript"


def pytest_collection_modifyitems(items):
    """Mark the tests of these files as quick."""
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK.split():
            item.add_marker("quick")


def pytest_configure(config):
    config.stash[PARITY] = {}


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one writes the summary
        session.config.workeroutput["parity"] = session.config.stash[PARITY]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    seen = node.config.stash[PARITY]
    for kind, difference in getattr(node, "workeroutput", {}).get("parity", {}).items():
        seen[kind] = max(difference, seen.get(kind, 0.0))


def pytest_terminal_summary(terminalreporter, config):
    """The largest differences between the native engine and NeMo that the parity tests saw."""
    seen = config.stash[PARITY]
    if seen:
        terminalreporter.section("largest difference from NeMo")
        for kind, difference in sorted(seen.items()):
            terminalreporter.write_line(f"{kind:<24} {difference:.2e}")
