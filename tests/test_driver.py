"""Many workers: a corpus over the processes of this host and of a Ray cluster, and what happens when some are lost."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import CLIP, ROOT, assert_same_run, processes, take_certainties
from worker_doubles import FakeNpuSetup, PretendSetup

from nemotron_npu.checkpoint.hub import find_checkpoint
from nemotron_npu.cluster.driver import Workers
from nemotron_npu.engine import Engine
from nemotron_npu.errors import SetupError
from nemotron_npu.formats import COLLECTED, FILES
from nemotron_npu.host import signals
from nemotron_npu.sources import CountedRecording, Recording

DEMO = find_checkpoint(str(ROOT / "demo" / "demo.nemo"))
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one node, with room for two workers on its CPU and for two on NPUs that it pretends to have."""
    before = dict(os.environ)
    os.environ |= QUIET | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "resources": {"NPU": 2}, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def named(tmp_path):
    """Recordings of files of these names."""

    def make(*names) -> list[Recording]:
        for name in names:
            (tmp_path / name).touch()
        return [Recording(str(tmp_path / name), name, length=1.0) for name in names]

    return make


def pretend(folder: Path) -> PretendSetup:
    """Workers without a model, on NPUs: they import no torch, so that they start in a second."""
    return PretendSetup(Path("model"), "npu", folder=str(folder))


def wait_until_loaded(workers: Workers, count: int) -> None:
    """Else the first worker may have done everything before the second is there."""
    while sum(member.is_loaded for member in workers._members) < count:
        assert not [*workers._next_events()]


def transcribe(cluster, setup, recordings, count=2) -> tuple[dict, list[str]]:
    """Return the text or error by file name, and the messages; each recording has one result and is counted once."""
    found, messages, seconds = [], [], []
    handler = signal.getsignal(signal.SIGTERM)
    with Workers(setup, count, cluster.address, messages.append) as workers:
        assert signal.getsignal(signal.SIGTERM) == handler  # Ray's own would end the run with a trace in C++
        assert isinstance(workers, Engine)
        wait_until_loaded(workers, workers._placement.count)
        sources = [CountedRecording(recording, seconds.append) for recording in recordings]
        found += workers.results(sources, workers.batch_slots)
    assert sorted(index for index, _ in found) == list(range(len(recordings)))
    texts = {Path(recordings[index].path).name: getattr(result, "text", result) for index, result in found}
    given_up = sum("given up" in str(text) for text in texts.values())
    if isinstance(setup, PretendSetup):
        assert sum(seconds) == len(recordings) - given_up
    return texts, messages


@contextmanager
def connected(cluster):
    """Connect this process to the cluster; yield Ray."""
    import ray

    ray.init(cluster.address, logging_level="ERROR")
    try:
        yield ray
    finally:
        ray.shutdown()


def attempts(folder: Path) -> Counter:
    return Counter(path.name.rsplit(".", 2)[0] for path in (folder / "tried").iterdir())


# ---------------------------------------------------------------- the same as one process


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of recordings of several lengths, one that is broken inside and one that is not audio."""
    import soundfile

    samples, rate = soundfile.read(CLIP, dtype="float32")
    folder = tmp_path / "calls"
    (folder / "b").mkdir(parents=True)
    for number in range(12):
        part = samples[: 6000 + 2000 * number]
        soundfile.write(folder / ("b" if number % 3 else "") / f"{number:02}.wav", part, rate)
    soundfile.write(folder / "cut.flac", samples, rate)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp3").write_text("no sound")
    return folder


def test_workers_write_a_folder_as_one_process_does(cluster, cli, corpus, tmp_path, monkeypatch):
    """Files, messages and exit code are those of one process, with errors and boosting."""
    monkeypatch.chdir(tmp_path)
    common = ["calls", "--device", "cpu", "--threads", 1, "--boost_words", tmp_path / "words.txt"]
    (tmp_path / "words.txt").write_text("three one\nNPU\n")
    runs = {}
    slow = "no worker could be started: "  # within 30 seconds, on a busy machine
    for name, options in {"one": [], "jobs": ["--num_workers", 1], "two": ["--ray_address", cluster.address]}.items():
        code, out, err = cli(*common, "--output_dir", name, *options)
        lines = [line for line in err.splitlines() if not line.startswith(("device: ", "loading ", slow))]
        runs[name] = code, out, sorted(re.sub(r" in [\d.]+ s \(.*", "", line) for line in lines)
    assert runs["one"] == runs["jobs"] == runs["two"]
    assert_same_run(Path("jobs"), Path("one"))
    assert_same_run(Path("two"), Path("one"))
    code, _, lines = runs["two"]
    assert code == 1
    for message in (
        "cut.flac: broken audio",
        "text.mp3: is text, not audio",
        "cannot spell 'NPU'",
        "12 done, 2 failed",
    ):
        assert any(message in line for line in lines), message
    order = [json.loads(line)["audio"] for line in Path("two", "results.jsonl").read_bytes().splitlines()]
    assert order == sorted(order, key=lambda audio: (audio.count("/"), audio))
    assert len(order) == 12


def test_workers_print_int8_results_in_input_order(cluster, cli, corpus):
    """Results on stdout come in the order of the input, in int8, too."""
    files = sorted(corpus.rglob("*.wav"))
    options = [*files, "--device", "cpu", "--dtype", "int8", "--output_format", "json", "--quiet"]
    one, two = cli(*options, "--num_workers", 1), cli(*options, "--num_workers", 2, "--ray_address", cluster.address)
    found = [[json.loads(line) | {"timings": None} for line in out.splitlines()] for _, out, _ in (one, two)]
    certainties = [take_certainties(documents) for documents in found]
    assert certainties[0] == pytest.approx(certainties[1], abs=0.05)
    assert found[0] == found[1]
    assert [document["audio"] for document in found[0]] == [str(file) for file in files]
    assert (one[0], one[2]) == (two[0], two[2]) == (0, "")


# ---------------------------------------------------------------- losses


def test_workers_that_die_of_a_file_cost_no_other_file(cluster, tmp_path, named):
    """A file that kills its worker is given up after three workers; all others are transcribed."""
    recordings = named(*(f"{n:02}" for n in range(20)), "poison")
    results, messages = transcribe(cluster, pretend(tmp_path), recordings)
    error = f"{tmp_path / 'poison'}: given up after 3 workers died while transcribing it"
    assert str(results.pop("poison")) == error
    assert len(results) == 20
    assert all(results[name] == name for name in results)
    assert attempts(tmp_path)["poison"] == 3
    assert len([line for line in messages if "its process died (retrying" in line]) == 3


def test_workers_whose_device_fails_are_replaced(cluster, tmp_path, named):
    """A worker whose model fails on silence, too, is replaced; a file that fails alone keeps its error."""
    names = [f"{n:02}" for n in range(20)]
    recordings = named("always fails", *names, "unreadable", "breaks the device")
    recordings[0].length, recordings[-1].length = 9.0, 0.5  # the first and the last that are begun
    results, messages = transcribe(cluster, pretend(tmp_path), recordings)
    assert [results[name] for name in names] == names
    assert results["breaks the device"] == "breaks the device"
    assert str(results["always fails"]) == "no answer from the device, at always fails"
    assert str(results["unreadable"]) == f"{tmp_path / 'unreadable'}: broken audio"
    assert attempts(tmp_path)["always fails"] == 1  # the model still transcribes silence: it is the file
    (line,) = (line for line in messages if "retrying" in line)
    assert "no answer from the device, not even for silence" in line


def test_workers_that_cannot_load_end_the_run(cluster, tmp_path, named):
    """The run ends with the error of the last worker that could not load."""
    (tmp_path / "cannot load").touch()
    with pytest.raises(SetupError, match="^npu:0: not usable: it is on fire$"):
        transcribe(cluster, pretend(tmp_path), named("a"), count=1)


def test_workers_without_the_audio_files_are_given_up(cluster, tmp_path, monkeypatch):
    """A node that does not have a file which the driver has is named together with it."""
    recordings = [Recording("/elsewhere/unreadable", "a", length=1.0)]
    exists = os.path.exists
    monkeypatch.setattr(
        "nemotron_npu.cluster.driver.os.path.exists", lambda path: "elsewhere" in str(path) or exists(path)
    )
    with pytest.raises(SetupError, match="/elsewhere/unreadable: not found on .* \\(every node needs the audio files"):
        transcribe(cluster, pretend(tmp_path), recordings, count=1)


def test_workers_of_a_lost_node_cost_no_recording(cluster, tmp_path, named):
    """A node that is removed while its workers transcribe costs time and no recording."""
    node = cluster.add_node(num_cpus=2, resources={"NPU": 2})
    recordings = named(*(f"{n:03}" for n in range(600)))  # its workers go on for a second, until they miss the node
    sources = [CountedRecording(recording, lambda seconds: None) for recording in recordings]
    found, messages = [], []
    with Workers(pretend(tmp_path), 4, cluster.address, messages.append) as workers:
        wait_until_loaded(workers, 4)
        for index, _ in workers.results(sources, 2):
            found.append(index)
            if len(found) == 50:
                cluster.remove_node(node, allow_graceful=False)
    assert sorted(found) == list(range(600))
    assert any("its node is lost (retrying" in line for line in messages), messages
    with connected(cluster) as ray:  # the next test counts the devices
        while ray.cluster_resources().get("NPU") != 2:
            time.sleep(0.1)


def test_workers_get_an_npu_each(cluster, tmp_path):
    """Without --device and --num_workers, each NPU has a worker, which sees that NPU alone."""
    recordings = [Recording(str(CLIP), str(n)) for n in range(2)]
    results, messages = transcribe(cluster, FakeNpuSetup(DEMO, "", folder=str(tmp_path)), recordings, count=None)
    assert results == {CLIP.name: "three one four one five nine two six"}
    assert "device: npu, 2 workers" in messages
    assert sorted(path.name for path in tmp_path.glob("npu *")) == ["npu 0 as npu:0", "npu 1 as npu:0"]


# ---------------------------------------------------------------- a run of its own on this host


COUNT = 150  # recordings


def started(folder: Path, output: Path, *options) -> subprocess.Popen:
    command = [
        sys.executable,
        ROOT / "inference.py",
        folder,
        "--device",
        "cpu",
        "--output_dir",
        output,
        "--num_workers",
        2,
    ]
    return subprocess.Popen(
        [*map(str, command), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o027,
        start_new_session=True,
    )


def wait_for(output: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (output / "results.jsonl").read_bytes().count(b"\n") >= lines:
                return
        time.sleep(0.02)
    raise AssertionError("nothing was recognised")


def test_workers_that_are_killed_lose_no_recording(tmp_path, cli):
    """A killed worker, Ctrl-C and a killed driver lose nothing: --resume completes the run with equal results."""
    pytest.importorskip("ray")
    folder, output = tmp_path / "calls", tmp_path / "out"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:03}.wav").symlink_to(CLIP)

    run = started(folder, output)
    wait_for(output, 20)
    os.kill(processes(run.pid, "ray::Worker")[0], signal.SIGKILL)
    wait_for(output, 40)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert "its process died" in err
    assert "Ray" not in err
    assert re.fullmatch(rf"inference.py: interrupted: \d+ of {COUNT} not done", err.splitlines()[-1])
    assert not processes(run.pid)
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {0o640}

    done = (output / "results.jsonl").read_bytes().count(b"\n")
    run = started(folder, output, "--resume")
    wait_for(output, done + 10)
    run.kill()
    run.communicate()  # waits until its workers have ended, too: they hold its stdout
    assert cli(folder, "--device", "cpu", "--output_dir", output, "--resume", "--num_workers", 1)[0] == 0
    assert cli(CLIP, "--device", "cpu", "--output_dir", tmp_path / "alone", "--threads", 1)[0] == 0
    alone = json.loads((tmp_path / "alone" / "results.jsonl").read_text())
    certainties = take_certainties(alone)
    documents = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [Path(document["audio"]).stem for document in documents] == [f"{number:03}" for number in range(COUNT)]
    for document in documents:
        assert take_certainties(document) == pytest.approx(certainties, abs=2e-4)
        assert {**document, "output": None} == {
            **alone,
            "output": None,
            **{n: document[n] for n in ("audio", "timings")},
        }
    assert len([*output.iterdir()]) == COUNT * len(FILES) + len(COLLECTED)
    for kind in ("txt", "srt", "vtt", "tsv"):  # without names and probabilities: all are the same
        assert {path.read_text() for path in output.glob(f"*.{kind}")} == {
            (tmp_path / "alone" / f"digits.{kind}").read_text()
        }


# ---------------------------------------------------------------- what is refused


def test_cluster_that_does_not_answer_is_reported_at_once(cli):
    """Ray itself would try for minutes."""
    pytest.importorskip("ray")
    began = time.monotonic()
    code, out, err = cli(CLIP, "--device", "cpu", "--ray_address", "127.0.0.1:1")
    assert (code, out) == (2, "")
    assert err.startswith("inference.py: --ray_address 127.0.0.1:1: no connection: ")
    assert time.monotonic() - began < 10


def test_sigterm_while_ray_starts_interrupts_the_run():
    """A library that answers SIGTERM with SystemExit, as Ray does, ends the run as that signal does."""
    with signals.answered():
        with pytest.raises(KeyboardInterrupt), signals.kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            signal.raise_signal(signal.SIGTERM)
        assert signals.came()
        assert signals.exit_code() == 143


def test_ray_that_is_missing_is_needed_by_two_workers_only(cli, monkeypatch):
    """Without Ray one worker works; two name the command that installs it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find_spec(name, *rest)
    )
    assert cli(CLIP, "--device", "cpu", "--num_workers", 1)[:2] == (0, "three one four one five nine two six\n")
    code, out, err = cli(CLIP, "--num_workers", 2)
    assert (code, out) == (2, "")
    needed = "Ray: not installed; more than one worker needs it (pip install -r requirements-ray.txt)"
    assert err == f"inference.py: {needed}\n"


def test_workers_on_gpus_that_ray_lacks_are_refused(cluster, cli):
    """The exit code is 2, the message one line."""
    code, _, err = cli(CLIP, "--device", "cuda", "--ray_address", cluster.address)
    assert (code, err) == (2, "inference.py: --device cuda: Ray knows of no GPUs on the cluster\n")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--num_workers", "2"], "needs AUDIO"),
        (["-", "--num_workers", "2"], "applies to files"),
        ([CLIP, "--num_workers", "2", "--precision_compare"], "measures one device"),
        ([CLIP, "--ray_address", "auto", "--benchmark"], "omit --ray_address"),
        ([CLIP, "--num_workers", "2", "--chunk_ms", "all"], "omit --num_workers"),
        ([CLIP, "--num_workers", "2", "--device", "npu:1"], "names one device for all workers"),
        ([CLIP, "--num_workers", "0"], "is not a whole number of 1 or more"),
        ([CLIP, "--num_workers", "20000"], "exceeds the maximum of 10000"),
    ],
)
def test_options_that_workers_do_not_take_are_refused(cli, arguments, reason):
    """The exit code is 2, the last line gives the reason."""
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert reason in err.splitlines()[-1]
