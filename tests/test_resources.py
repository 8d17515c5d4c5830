"""Memory and disks that fill, readers that go, signals, threads, what is not finite: nothing is lost, all is said."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch
from support import CLIP, CLIP_WORDS, ROOT

from nemotron_npu import nemo_engine
from nemotron_npu.audio import read_audio
from nemotron_npu.device import is_out_of_memory
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import ModelError
from nemotron_npu.live_input import LiveInput
from nemotron_npu.recognizer import Recognizer

INFERENCE = ROOT / "inference.py"
CPU = torch.device("cpu")
FORMATS = ("txt", "json", "srt", "vtt", "tsv", "ctm")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return read_audio(str(CLIP))


@pytest.fixture(scope="module")
def loaded() -> Recognizer:
    return Recognizer(ROOT / "demo" / "demo.nemo", CPU, options=ModelOptions(chunk_ms=560))


@pytest.fixture
def demo(loaded) -> Recognizer:
    """The bundled model; what a test changes of it is its own."""
    recognizer = copy.copy(loaded)
    recognizer.encoder = copy.copy(loaded.encoder)
    return recognizer


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """12 recordings of 7 s."""
    folder = tmp_path_factory.mktemp("calls")
    for number in range(12):
        shutil.copy(CLIP, folder / f"call{number:02}.wav")
    return folder


def tokens(transcript) -> list[tuple[int, int]]:
    return [(token.id, token.frame) for token in transcript.tokens]


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_whole(folder) -> int:
    """What the record has is there, whole, and nothing is half there; how many recordings these are."""
    record = lines(folder / "results.jsonl")
    assert len(lines(folder / "manifest.jsonl")) == len(record)
    for document in record:
        assert document["text"] == CLIP_WORDS
        assert all((folder / f"{document['output']}.{kind}").stat().st_size for kind in FORMATS)
        assert json.loads((folder / f"{document['output']}.json").read_text())["text"] == CLIP_WORDS
    assert not list(folder.glob("*.part"))
    return len(record)


# ---------------------------------------------------------------- memory


@pytest.fixture
def short_of_memory(demo):
    """``short_of_memory(frames, error)``: a step that encodes more, of all slots, raises it.  Returns what was asked of
    the encoder, (slots, frames) of each step, and what was said."""
    step, sizes, said = demo.encoder.step, [], []
    demo.announce = said.append

    def limit(frames: int, error: Exception):
        def limited(features, state, ends):
            sizes.append((features.shape[0], features.shape[1] // 8))
            if sizes[-1][0] * sizes[-1][1] > frames:
                raise error
            return step(features, state, ends)

        demo.encoder.step = limited
        return sizes, said

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_devices_and_hosts_tell_that_memory_ran_out_in_their_own_ways(error):
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError("out of memory"))


def test_memory_that_runs_out_is_answered_by_fewer_and_smaller_and_said_once(demo, clip, short_of_memory):
    waveforms = [clip, clip[9000:], np.tile(clip, 2), clip[:40000], clip[20000:]]
    expected = [tokens(demo.transcribe([waveform])[0]) for waveform in waveforms]
    sizes, said = short_of_memory(60, RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB)"))
    assert [tokens(t) for t in demo.transcribe(waveforms, 4)] == expected
    assert sizes[0][0] == 4 and sizes[0][0] * sizes[0][1] > 60
    assert said == ["cpu: out of memory (continuing with 1 recording at a time and blocks of 2240 ms)"]
    assert [tokens(t) for t in demo.transcribe(waveforms[:2], 4)] == expected[:2] and len(said) == 1, "it is remembered"


def test_where_even_a_chunk_is_too_much_each_recording_says_so(demo, clip, short_of_memory):
    _, said = short_of_memory(0, RuntimeError("NPU out of memory"))
    results = dict(demo.results([clip, clip, clip], 2))
    assert sorted(results) == [0, 1, 2] and said == []
    for result in results.values():
        assert isinstance(result, ModelError) and "for this recording alone: NPU out of mem" in str(result)


def test_a_stream_that_catches_up_goes_on_in_smaller_steps(demo, clip, short_of_memory):
    sound = np.tile(clip, 2)
    expected = tokens(demo.transcribe([sound])[0])
    sizes, said = short_of_memory(7, RuntimeError("NPU out of memory"))
    with demo.stream() as stream:
        stream.feed(sound[:100])
        stream.feed(sound[100:])
    assert tokens(stream.finish()) == expected and sizes[:2] == [(1, 14), (1, 7)]
    assert said == ["cpu: out of memory (continuing with blocks of 560 ms)"]


def test_the_command_line_says_it_on_stderr_and_results_are_the_same(cli, calls, monkeypatch, tmp_path):
    from nemotron_npu.encoder import Encoder

    step = Encoder.step

    def limited(self, features, *rest):
        if features.shape[0] > 2:
            raise RuntimeError("NPU out of memory")
        return step(self, features, *rest)

    monkeypatch.setattr(Encoder, "step", limited)
    code, _, err = cli(calls, "--output_dir", tmp_path, "--device", "cpu")
    assert code == 0 and assert_whole(tmp_path) == 12
    assert [line for line in err.splitlines() if "memory" in line] == [
        "cpu: out of memory (continuing with 2 recordings at a time and blocks of 2240 ms)"
    ]


def test_nemos_batches_are_halved(tiny, clip):
    said = []
    nemo = nemo_engine.NemoRecognizer(tiny, CPU, announce=said.append)
    transcribe, sizes = nemo._transcribe_batch, []

    def limited(waveforms):
        sizes.append(len(waveforms))
        if len(waveforms) > 2:
            raise RuntimeError("NPU out of memory")
        return transcribe(waveforms)

    nemo._transcribe_batch = limited
    waveforms = [clip[:20000], clip[20000:40000], clip[:30000], clip[:9000], clip[5000:25000], clip[7000:27000]]
    results = dict(nemo.results(waveforms, 4))
    assert sizes == [4, 2, 2, 2] and said == ["cpu: out of memory (continuing with 2 recordings at a time)"]
    assert all(tokens(results[i]) == tokens(transcribe([w])[0]) for i, w in enumerate(waveforms))

    # the same model: what is not finite names the first layer
    assert not any(isinstance(result, Exception) for result in results.values())
    with torch.no_grad():
        nemo.model.encoder.layers[1].feed_forward2.linear2.weight[0, 0] = float("nan")
    error = dict(nemo.results(waveforms[:1]))[0]
    assert isinstance(error, ModelError) and str(error).startswith("encoder output: not finite")
    assert "first in layer 1" in str(error)


# ---------------------------------------------------------------- numbers


def plant(weight: torch.Tensor, value: float = float("nan")) -> None:
    with torch.inference_mode():
        weight[(0,) * weight.dim()] = value


@pytest.fixture
def broken(tiny):
    """A tiny model of which a part is broken: ``broken(lambda recognizer: its tensor)``."""

    def load(part, value=float("nan")) -> Recognizer:
        recognizer = Recognizer(tiny, CPU, options=ModelOptions(chunk_ms=560))
        plant(part(recognizer), value)
        return recognizer

    return load


@pytest.mark.parametrize(
    "part, says",
    [
        (lambda r: r.encoder.subsampling.out.bias, "encoder output: not finite (NaN or infinity), first in the sub"),
        (lambda r: r.encoder.layers[0].norm_out[0], "first in layer 0, at 0.00 s"),
        (lambda r: r.encoder.layers[1].attention.bias_uv, "first in layer 1, at 0.00 s"),
        (lambda r: r.encoder.layers[1].feed_forward2.norm.bias, "first in layer 1, at 0.00 s"),
        (lambda r: r.decoder.output[1], "token scores: not finite (NaN or infinity), at 0.00 s"),
    ],
)
def test_what_is_not_finite_names_the_first_part_and_is_never_an_empty_text(broken, clip, part, says):
    recognizer = broken(part)
    (_, error) = next(recognizer.results([clip]))
    assert isinstance(error, ModelError) and says in str(error)
    with pytest.raises(ModelError, match=error.args[0].split(",")[0].split("(")[0]), recognizer.stream() as stream:
        stream.feed(clip)


def test_neighbours_of_what_is_not_finite_are_recognised_and_the_time_is_told(cli, tmp_path, monkeypatch, clip):
    from nemotron_npu.conformer import ConformerLayer
    from nemotron_npu.encoder import Encoder

    bad = tmp_path / "bad.wav"
    soundfile.write(bad, np.tile(clip, 3), 16000)
    features, encode, forward, running = 3 * len(clip) // 160, Encoder._encode, ConformerLayer.__call__, {}

    def noting(self, x, state, ends):
        running.update(layer=self.layers[2], ends=ends)
        return encode(self, x, state, ends)

    def overflowing(self, *args):
        x, ends = forward(self, *args), running["ends"]
        if self is running["layer"] and features in ends:
            x.view(-1, len(ends), x.shape[1])[1, ends.index(features), 7] = torch.inf
        return x

    monkeypatch.setattr(Encoder, "_encode", noting)
    monkeypatch.setattr(ConformerLayer, "__call__", overflowing)
    code, out, err = cli(CLIP, bad, CLIP, "--batch_size", 3, "--device", "cpu", "--quiet")
    assert code == 1 and out.splitlines() == [f"{CLIP}: {CLIP_WORDS}"] * 2
    assert err.startswith(f"inference.py: {bad}: cannot be transcribed: encoder output: not finite"), err
    assert "first in layer 2, at 18.00 s (the checkpoint may be damaged)" in err and len(err.splitlines()) == 1


def live(cli, monkeypatch, data: bytes, *args) -> tuple[int, str, str]:
    """The command line in this process on a pipe into which ``data`` is written."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "wb") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        threading.Thread(target=lambda: (pipe.write(data), pipe.close())).start()
        return cli("-", "--device", "cpu", "--quiet", *args)


def pcm(samples: np.ndarray) -> bytes:
    return np.round(samples * 32767).astype("<i2").tobytes()


def test_a_live_stream_that_becomes_not_finite_keeps_what_it_heard(cli, monkeypatch, clip):
    from nemotron_npu.encoder import Encoder

    step, steps = Encoder._encode, []

    def overflowing(self, *args):
        steps.append(args)
        return step(self, *args) * (torch.inf if len(steps) == 4 else 1)

    monkeypatch.setattr(Encoder, "_encode", overflowing)
    monkeypatch.setattr("nemotron_npu.live_input.os.read", lambda file, size, read=os.read: read(file, 4000))
    code, out, err = live(cli, monkeypatch, pcm(clip[:60000]), "--chunk_ms", 560)
    assert code == 1 and out == "three one\n"
    assert err.startswith("inference.py: stdin: cannot be transcribed: token scores: not finite"), err


@pytest.mark.parametrize("heard", [0, 30000])
def test_a_stdin_that_breaks_off_is_said_and_what_was_heard_is_kept(cli, monkeypatch, clip, heard):
    read, pieces = os.read, []

    def failing(file, size):
        pieces.append(read(file, 4000))
        if not pieces[-1]:
            raise OSError(5, "Input/output error")
        return pieces[-1]

    monkeypatch.setattr("nemotron_npu.live_input.os.read", failing)
    code, out, err = live(cli, monkeypatch, pcm(clip[:heard]))
    assert (code, err) == (1, "inference.py: stdin: cannot be read: Input/output error\n")
    assert out == ("three one\n" if heard else "")


@pytest.mark.parametrize("live", [False, True])
def test_sound_that_comes_faster_than_it_is_said_does_not_fill_the_memory(monkeypatch, live):
    """As from a file; of a speaker nothing may be lost, however late the recogniser is."""
    monkeypatch.setattr("nemotron_npu.live_input.BACKLOG_BYTES", 200_000)
    reading, writing = os.pipe()
    source = LiveInput(reading)
    if live:
        source.started = time.monotonic() - 100
    sound = threading.Thread(target=lambda: (os.write(writing, bytes(2_000_000)), os.close(writing)))
    sound.start()
    time.sleep(0.4)
    assert source.received == 2_000_000 if live else 200_000 <= source.received < 400_000
    assert sum(len(samples) for samples in source) == 1_000_000
    sound.join()
    os.close(reading)


# ---------------------------------------------------------------- disks and readers


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB, and a function that makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_loses_nothing_that_was_done_and_resume_goes_on(cli, calls, small_disk):
    disk, enlarge = small_disk
    folder = disk / "out"
    options = [calls, "--output_dir", folder, "--device", "cpu", "--batch_size", 2]
    code, _, err = cli(*options)
    done = assert_whole(folder)
    assert code == 2 and 0 < done < 12 and f"12 recordings: {done} done, 0 failed, {12 - done} left (--resume" in err
    last = err.splitlines()[-1]
    assert last.startswith(f"inference.py: {folder}/call") and last.endswith(
        "cannot be written: No space left on device"
    )
    code, _, err = cli(*options, "--resume")
    assert code == 2 and str(folder) in err.splitlines()[-1] and "No space left" in err.splitlines()[-1]
    enlarge()
    code, _, err = cli(*options, "--resume")
    assert code == 0 and f"{12 - done} done, {done} done before" in err and assert_whole(folder) == 12


def test_a_report_on_a_full_disk_is_one_line_and_no_half_file(cli, small_disk, tmp_path):
    disk, _ = small_disk
    (disk / "report").mkdir()
    with open(disk / "full", "wb") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    manifest = tmp_path / "known.json"
    manifest.write_text(json.dumps({"audio_filepath": str(CLIP), "text": CLIP_WORDS}) + "\n")
    options = ["--wer_report", "--report", disk / "report", "--device", "cpu", "--quiet"]
    code, out, err = cli(manifest, *options)
    assert code == 2 and out.startswith(CLIP_WORDS) and os.listdir(disk / "report") == []
    assert err == f"inference.py: {disk}/report/evaluation.json: cannot be written: No space left on device\n"


@pytest.fixture(params=["{calls}", "{calls} --output_format json", "--stream {calls}", "{clip}", "--help"])
def arguments(request, calls) -> list[str]:
    return request.param.format(calls=calls, clip=CLIP).split() + ["--quiet", "--device", "cpu"]


def with_stdout(monkeypatch, cli, file, arguments) -> tuple[int, str]:
    """Exit code and stderr of the command line in this process when ``file`` is its stdout."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        code, _, err = cli(*arguments)
        file.flush()  # as Python does at the end: nothing that fails is left in it
        return code, err


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(monkeypatch, cli, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        assert with_stdout(monkeypatch, cli, closed, arguments) == (0, "")


def test_a_stdout_on_a_full_disk_is_one_line_and_exit_code_2(monkeypatch, cli, arguments):
    with open("/dev/full", "w") as full:
        code, err = with_stdout(monkeypatch, cli, full, arguments)
    if arguments[0] != "--help":
        assert (code, err) == (2, "inference.py: stdout: cannot be written: No space left on device\n")


def test_a_stderr_that_takes_nothing_costs_no_result(monkeypatch, cli):
    full = open("/dev/full", "w")  # noqa: SIM115  closing it fails as well
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        assert cli(CLIP, "--device", "cpu") == (0, f"{CLIP_WORDS}\n", "")
    with suppress(OSError):
        full.close()


@pytest.mark.parametrize(
    "end, code, err",
    [("| head -1", 0, ""), ("> /dev/full", 2, "inference.py: stdout: cannot be written: No space left on device\n")],
)
def test_nothing_is_said_when_python_ends(calls, end, code, err):
    command = f"set -o pipefail; {sys.executable} {INFERENCE} --stream {calls} --quiet --device cpu {end}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (code, err)


# ---------------------------------------------------------------- signals


SLOW_RUN = """
import runpy, sys, time
from nemotron_npu.encoder import Encoder
step = Encoder.step
Encoder.step = lambda *args: time.sleep(0.2) or step(*args)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_whenever_a_signal_comes_what_is_there_is_whole_and_resume_goes_on(cli, calls, tmp_path):
    chance, record = random.Random(0), tmp_path / "results.jsonl"
    options = [calls, "--output_dir", tmp_path, "--device", "cpu", "--batch_size", 2]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        command = [sys.executable, "-c", SLOW_RUN, INFERENCE, *options, "--resume"]
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        process.stderr.readline()  # "device": it is on its way
        enough = len(lines(record)) + chance.randint(0, 2)
        while process.poll() is None and record.read_bytes().count(b"\n") < enough:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number and "Traceback" not in err, err
        done = assert_whole(tmp_path)
        assert err.splitlines()[-1] == f"inference.py: interrupted: {12 - done} of 12 not done", err
    assert cli(*options, "--resume")[0] == 0 and assert_whole(tmp_path) == 12


# the command line, whose third encoder step takes ``microseconds`` in C while signals come
SLOW = """
import ctypes, os, signal, sys, threading, time, inference
from nemotron_npu.encoder import Encoder

step, steps = Encoder.step, []

def send():
    for _ in range({times}):
        time.sleep({apart})
        os.kill(os.getpid(), signal.{name})

def slow(*args):
    steps.append(args)
    if len(steps) == 3:
        threading.Thread(target=send, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])  # in this thread, which it would wake
        ctypes.CDLL(None).usleep({microseconds})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.{name}])
    return step(*args)

Encoder.step = slow
sys.exit(inference.main())
"""


def run_slow(*args, name="SIGINT", times=1, apart=0.3, seconds=0.7) -> subprocess.CompletedProcess:
    script = SLOW.format(name=name, times=times, apart=apart, microseconds=int(seconds * 1e6))
    command = [sys.executable, "-c", script, *map(str, args), "--device", "cpu", "--batch_size", "1"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_running_block_is_finished_and_a_signal_that_is_sent_twice_as_by_timeout_is_one(calls, tmp_path):
    result = run_slow(calls, "--output_dir", tmp_path, name="SIGTERM", times=2, apart=0.05)
    assert result.returncode == 143 and assert_whole(tmp_path) == 3, result.stderr
    assert "12 recordings: 3 done, 0 failed, 9 left (--resume continues)" in result.stderr
    assert result.stderr.splitlines()[-1] == "inference.py: interrupted: 9 of 12 not done"


def test_a_second_signal_leaves_at_once_also_from_inside_a_library(calls):
    result = run_slow(calls, "--quiet", times=2, apart=0.5, seconds=300)
    assert (result.returncode, result.stderr) == (130, "inference.py: interrupted\n")
    assert result.stdout.count("\n") == 2


def test_a_run_that_waits_for_sound_can_be_interrupted(demo, clip):
    class Silent:
        def blocks(self):
            yield clip
            silence.wait()

    silence, looks = threading.Event(), []

    def between():
        looks.append(None)
        if len(looks) == 8:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            list(demo.results([clip, Silent()], 2, between))
    finally:
        silence.set()


def test_an_interrupted_benchmark_leaves_no_process_behind():
    from nemotron_npu.benchmark.startup import child_process

    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with pytest.raises(KeyboardInterrupt), child_process([sys.executable, "-c", code]) as child:
        grandchild = int(child.stdout.readline())
        raise KeyboardInterrupt
    assert child.poll() is not None
    deadline = time.monotonic() + 10
    while is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(grandchild)


def is_running(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as status:
            return status.read().rsplit(")", 1)[1].split()[0] != "Z"  # an orphan that nobody waits for
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- streams and threads side by side


def test_streams_that_are_fed_in_turn_are_each_as_alone(demo, clip):
    chance = np.random.default_rng(0)
    sounds = [np.roll(np.tile(clip, 2), chance.integers(len(clip)))[: chance.integers(30000, 80000)] for _ in range(20)]
    alone = [tokens(demo.transcribe([sound])[0]) for sound in sounds]
    streams, fed = [demo.stream() for _ in sounds], [0] * len(sounds)
    while unfinished := [i for i, sound in enumerate(sounds) if fed[i] < len(sound)]:
        i = chance.choice(unfinished)
        size = int(chance.integers(1, 30000))
        streams[i].feed(sounds[i][fed[i] : fed[i] + size])
        fed[i] += size
    assert [tokens(stream.finish()) for stream in streams] == alone and all(alone)


def test_threads_do_not_disturb_each_other(demo, clip):
    """Two recognisers, and two streams and a batch on one of them, at once; none of them computes gradients."""
    other = demo.at_chunk(80)
    sound = np.tile(clip, 2)
    expected = {name: tokens(r.transcribe([sound])[0]) for name, r in (("demo", demo), ("other", other))}
    results, grads, ready = {}, [], threading.Barrier(5)

    def work(name, call):
        ready.wait()
        results[name] = [tokens(call()) for _ in range(2)]

    def streamed(recognizer, size):
        with recognizer.stream() as stream:
            for first in range(0, len(sound), size):
                stream.feed(sound[first : first + size])
                grads.append(any(row.requires_grad for row in stream.encoder_state.stages))
        return stream.finish()

    jobs = {
        "demo batch": lambda: demo.transcribe([sound, clip], 2)[0],
        "demo stream": lambda: streamed(demo, 5000),
        "demo stream 2": lambda: streamed(demo, 9999),
        "other stream": lambda: streamed(other, 7000),
        "other batch": lambda: other.transcribe([clip, sound], 2)[1],
    }
    threads = [threading.Thread(target=work, args=job) for job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in jobs:
        assert results[name] == [expected[name.split()[0]]] * 2, name
    assert not any(grads)
