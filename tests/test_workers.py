"""Many workers: a corpus over the processes of this host and of a Ray cluster, whatever becomes of them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support import CLIP, ROOT, assert_same_run, take_certainties
from worker_doubles import FakeNpuSetup, PretendSetup

from nemotron_npu.checkpoint.load import find_checkpoint
from nemotron_npu.cluster.sharing import adopt, share
from nemotron_npu.cluster.workers import BATCHES, Workers, cut
from nemotron_npu.dtypes import offered_dtypes
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.formats import COLLECTED, FILES
from nemotron_npu.host import signals
from nemotron_npu.recognizer import Recognizer
from nemotron_npu.sources import Recording

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


def recognise(cluster, setup, recordings, count=2) -> tuple[dict, list[str]]:
    """Text or error by file name, and what was said; each file comes once."""
    found, said, answered = [], [], signal.getsignal(signal.SIGTERM)
    with Workers(setup, count, cluster.address, said.append) as workers:
        assert signal.getsignal(signal.SIGTERM) == answered  # Ray's own would end the run with a trace in C++
        while not all(hand.loaded for hand in workers.hands if hand.actor):  # else one may have done all before
            for _ in workers._events():
                pass
        found += workers.results(recordings, workers.batch_slots)
    assert sorted(index for index, _ in found) == list(range(len(recordings)))
    return {Path(recordings[index].path).name: getattr(result, "text", result) for index, result in found}, said


def tries(folder: Path) -> Counter:
    return Counter(path.name.rsplit(".", 2)[0] for path in (folder / "tried").iterdir())


# ---------------------------------------------------------------- pieces of work


@pytest.mark.parametrize("seconds", [[9.0], [2.0] * 1000, [3600.0, *range(1, 500)], [None, 4.0, None, 7.0], []])
def test_work_is_cut_longest_first_into_pieces_that_get_smaller(seconds):
    recordings = [Recording(str(n), "", length=length) for n, length in enumerate(seconds)]
    pieces = cut(recordings, 8)
    assert sorted(place for piece in pieces for place in piece) == list(range(len(seconds)))
    known = [seconds[place] for piece in pieces for place in piece if seconds[place] is not None]
    assert known == sorted(known, reverse=True)
    assert all(len(piece) <= BATCHES * 8 for piece in pieces)
    if len(seconds) > 100:
        assert len(pieces[1]) > 4 and [len(piece) for piece in pieces[-8:]] == [1] * 8


def test_a_recording_of_hours_is_a_piece_of_its_own_and_comes_first():
    recordings = [Recording(str(n), "", length=length) for n, length in enumerate([5.0, 36000.0, 5.0, 7200.0, 5.0])]
    assert cut(recordings, 8)[:2] == [[1], [3]]


# ---------------------------------------------------------------- shared memory


@pytest.mark.parametrize("dtype", offered_dtypes(torch.device("cpu")))
def test_a_recognizer_from_shared_memory_is_the_same_to_the_last_bit(dtype):
    own = Recognizer(DEMO, torch.device("cpu"), options=ModelOptions(dtype=dtype))
    memory = share(own)
    shared = adopt(f"/proc/self/fd/{memory}")
    os.close(memory)
    assert shared.transcribe([CLIP]) == own.transcribe([CLIP])
    weight = shared.encoder.layers[0].norm_out[0]
    shared.encoder.layers[0].norm_out[0].zero_()  # what one process writes is its own
    assert not weight.any() and own.encoder.layers[0].norm_out[0].any()


def test_what_is_shared_takes_no_memory_of_its_own():
    memory = share(Recognizer(DEMO, torch.device("cpu")))
    shared = adopt(f"/proc/self/fd/{memory}")
    shared.transcribe([CLIP])
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    (mapped,) = (entry for entry in maps if "memfd:recognizer" in entry)
    sizes = {name: int(size) for name, size in re.findall(r"(\w+): +(\d+) kB", mapped)}
    assert sizes["Rss"] > 8000 and sizes["Anonymous"] == 0
    os.close(memory)


# ---------------------------------------------------------------- the same as one process


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of recordings of several lengths, one that is broken inside and one that is none."""
    import soundfile

    samples, rate = soundfile.read(CLIP, dtype="float32")
    folder = tmp_path / "calls"
    (folder / "b").mkdir(parents=True)
    for number in range(12):
        soundfile.write(
            folder / ("b" if number % 3 else "") / f"{number:02}.wav", samples[: 6000 + 2000 * number], rate
        )
    soundfile.write(folder / "cut.flac", samples, rate)
    whole = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp3").write_text("no sound")
    return folder


def test_a_folder_is_recognised_by_workers_as_by_one_process(cluster, cli, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["calls", "--device", "cpu", "--threads", 1, "--boost_words", tmp_path / "words.txt"]
    (tmp_path / "words.txt").write_text("three one\nNPU\n")
    runs = {}
    for name, options in {"one": [], "pieces": ["--num_workers", 1], "two": ["--ray_address", cluster.address]}.items():
        code, out, err = cli(*common, "--output_dir", name, *options)
        lines = [line for line in err.splitlines() if not line.startswith(("device: ", "loading "))]
        runs[name] = code, out, sorted(re.sub(r" in [\d.]+ s \(.*", "", line) for line in lines)
    assert runs["one"] == runs["pieces"] == runs["two"]
    assert_same_run(Path("pieces"), Path("one"))
    assert_same_run(Path("two"), Path("one"))
    code, _, lines = runs["two"]
    assert code == 1
    assert any("cut.flac: broken audio" in line for line in lines) and any(
        "text.mp3: is text, not audio" in line for line in lines
    )
    assert any("cannot spell 'NPU'" in line for line in lines) and any("12 done, 2 failed" in line for line in lines)
    order = [json.loads(line)["audio"] for line in Path("two", "results.jsonl").read_bytes().splitlines()]
    assert order == sorted(order, key=lambda audio: (audio.count("/"), audio)) and len(order) == 12

    shutil.copytree("two", "resumed")
    record = Path("resumed", "results.jsonl")
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[3:8]) + b'{"audio": "calls/0')
    code, _, err = cli(*common, "--output_dir", "resumed", "--resume", "--ray_address", cluster.address)
    assert code == 1
    assert_same_run(Path("resumed"), Path("two"))
    assert "7 done, 5 done before, 2 failed" in err


def test_results_come_on_stdout_in_the_order_of_the_input_in_int8_too(cluster, cli, corpus):
    files = sorted(corpus.rglob("*.wav"))
    options = [*files, "--device", "cpu", "--dtype", "int8", "--output_format", "json", "--quiet"]
    one, two = cli(*options, "--num_workers", 1), cli(*options, "--num_workers", 2, "--ray_address", cluster.address)
    found = [[json.loads(line) | {"timings": None} for line in out.splitlines()] for _, out, _ in (one, two)]
    certainties = [take_certainties(documents) for documents in found]
    assert certainties[0] == pytest.approx(certainties[1], abs=0.05)
    assert found[0] == found[1] and [document["audio"] for document in found[0]] == [str(file) for file in files]
    assert (one[0], one[2]) == (two[0], two[2]) == (0, "")


# ---------------------------------------------------------------- what goes wrong


def test_a_file_that_kills_its_worker_is_named_after_three_and_costs_no_other(cluster, tmp_path, named):
    recordings = named(*(f"{n:02}" for n in range(20)), "poison")
    results, said = recognise(cluster, PretendSetup(Path("model"), "cpu", folder=str(tmp_path)), recordings)
    assert str(results.pop("poison")) == f"{tmp_path / 'poison'}: given up: 3 workers died of it, the last alone"
    assert all(results[name] == name for name in results) and len(results) == 20
    assert tries(tmp_path)["poison"] == 3
    assert len([line for line in said if "its process died" in line and "tried again" in line]) == 3


def test_a_worker_whose_device_fails_is_replaced_and_a_file_that_fails_alone_keeps_its_error(cluster, tmp_path, named):
    names = [f"{n:02}" for n in range(20)]
    recordings = named("always fails", *names, "unreadable", "breaks the device")
    recordings[0].length, recordings[-1].length = 9.0, 0.5  # the first and the last that are begun
    results, said = recognise(cluster, PretendSetup(Path("model"), "cpu", folder=str(tmp_path)), recordings)
    assert [results[name] for name in names] == names and results["breaks the device"] == "breaks the device"
    assert str(results["always fails"]) == "no answer from the device, at always fails"
    assert str(results["unreadable"]) == f"{tmp_path / 'unreadable'}: broken audio"
    assert tries(tmp_path)["always fails"] == 1  # the worker still hears silence: it is the file
    (line,) = (line for line in said if "tried again" in line)
    assert "no answer from the device, not even for silence" in line


def test_workers_that_cannot_load_end_the_run_with_what_they_said(cluster, tmp_path, named):
    (tmp_path / "cannot load").touch()
    with pytest.raises(SetupError, match="^npu:0 is not usable: it is on fire$"):
        recognise(cluster, PretendSetup(Path("model"), "cpu", folder=str(tmp_path)), named("a"), count=1)


def test_a_node_that_does_not_see_the_sound_is_given_up_and_told(cluster, tmp_path, monkeypatch):
    recordings = [Recording("/elsewhere/unreadable", "a", length=1.0)]
    exists = os.path.exists
    monkeypatch.setattr(
        "nemotron_npu.cluster.workers.os.path.exists", lambda path: "elsewhere" in str(path) or exists(path)
    )
    with pytest.raises(SetupError, match="/elsewhere/unreadable is not there on .*: every node needs the sound"):
        recognise(cluster, PretendSetup(Path("model"), "cpu", folder=str(tmp_path)), recordings, count=1)


def test_a_node_that_is_removed_costs_no_recording(cluster, tmp_path, named):
    node = cluster.add_node(num_cpus=2)
    recordings = named(*(f"{n:03}" for n in range(600)))  # its workers go on for a second, until they miss the node
    found, said = [], []
    setup = PretendSetup(Path("model"), "cpu", folder=str(tmp_path))
    with Workers(setup, 4, cluster.address, said.append) as workers:
        while sum(hand.loaded for hand in workers.hands) < 4:
            assert not [*workers._events()]
        for index, _ in workers.results(recordings, 2):
            found.append(index)
            if len(found) == 50:
                cluster.remove_node(node, allow_graceful=False)
    assert sorted(found) == list(range(600))
    assert any("its node is gone" in line for line in said), said


def test_every_worker_gets_an_npu_of_its_own(cluster, tmp_path):
    recordings = [Recording(str(CLIP), str(n)) for n in range(4)]
    results, said = recognise(cluster, FakeNpuSetup(DEMO, "", folder=str(tmp_path)), recordings, count=None)
    assert results == {CLIP.name: "three one four one five nine two six"}
    assert "device: npu, 2 workers" in said
    assert sorted(path.name for path in tmp_path.glob("npu *")) == ["npu 0 as npu:0", "npu 1 as npu:0"]


# ---------------------------------------------------------------- a run of its own on this host


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


def processes(session: int, name: str = "") -> list[int]:
    """Those of a session that live."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, _, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z" and name in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def test_killed_workers_ctrl_c_and_a_killed_run_lose_nothing(tmp_path, cli):
    pytest.importorskip("ray")
    folder, output = tmp_path / "calls", tmp_path / "out"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number:03}.wav").symlink_to(CLIP)

    run = started(folder, output)
    wait_for(output, 20)
    os.kill(processes(run.pid, "ray::Worker")[0], signal.SIGKILL)
    wait_for(output, 40)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert "its process died" in err and "Ray" not in err
    assert re.fullmatch(r"inference.py: interrupted: \d+ of 150 not done", err.splitlines()[-1])
    assert not processes(run.pid)

    done = (output / "results.jsonl").read_bytes().count(b"\n")
    run = started(folder, output, "--resume")
    wait_for(output, done + 10)
    run.kill()
    run.communicate()
    assert cli(folder, "--device", "cpu", "--output_dir", output, "--resume", "--num_workers", 1)[0] == 0
    assert cli(CLIP, "--device", "cpu", "--output_dir", tmp_path / "alone", "--threads", 1)[0] == 0
    alone = json.loads((tmp_path / "alone" / "results.jsonl").read_text())
    certainties = take_certainties(alone)
    documents = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [Path(document["audio"]).stem for document in documents] == [f"{number:03}" for number in range(150)]
    for document in documents:
        assert take_certainties(document) == pytest.approx(certainties, abs=2e-4)
        assert {**document, "output": None} == {
            **alone,
            "output": None,
            **{n: document[n] for n in ("audio", "timings")},
        }
    assert len([*output.iterdir()]) == 150 * len(FILES) + len(COLLECTED)
    for kind in ("txt", "srt", "vtt", "tsv"):  # without names and probabilities: all are the same
        assert {path.read_text() for path in output.glob(f"*.{kind}")} == {
            (tmp_path / "alone" / f"digits.{kind}").read_text()
        }


# ---------------------------------------------------------------- what is refused


def test_where_no_cluster_listens_is_said_at_once(cli):
    pytest.importorskip("ray")
    began = time.monotonic()
    code, out, err = cli(CLIP, "--device", "cpu", "--ray_address", "127.0.0.1:1")
    assert (code, out) == (2, "") and err.startswith("inference.py: --ray_address 127.0.0.1:1: no connection (")
    assert time.monotonic() - began < 10


def test_a_sigterm_that_ray_answers_while_it_starts_is_that_signal():
    with signals.answered():
        with pytest.raises(KeyboardInterrupt), signals.kept():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            signal.raise_signal(signal.SIGTERM)
        assert signals.came() and signals.exit_code() == 143


def test_without_ray_one_worker_works_and_two_say_what_to_install(cli, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find_spec(name, *rest)
    )
    assert cli(CLIP, "--device", "cpu", "--num_workers", 1)[:2] == (0, "three one four one five nine two six\n")
    code, out, err = cli(CLIP, "--num_workers", 2)
    assert (code, out) == (2, "")
    assert err == "inference.py: more than one worker needs Ray: pip install -r requirements-ray.txt\n"


def test_an_npu_that_ray_does_not_know_and_a_cluster_that_is_not_there_are_told(cluster, cli):
    code, _, err = cli(CLIP, "--device", "cuda", "--ray_address", cluster.address)
    assert (code, err) == (2, "inference.py: --device cuda: Ray knows of no GPUs on the cluster\n")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--num_workers", "2"], "needs AUDIO"),
        ([CLIP, "--num_workers", "2", "--stream"], "is for files"),
        (["-", "--num_workers", "2"], "is for files"),
        ([CLIP, "--num_workers", "2", "--precision_compare"], "measures one device"),
        ([CLIP, "--ray_address", "auto", "--benchmark"], "leave --ray_address out"),
        ([CLIP, "--num_workers", "2", "--chunk_ms", "all"], "leave --num_workers out"),
        ([CLIP, "--num_workers", "2", "--device", "npu:1"], "with workers take npu, each gets its own"),
        ([CLIP, "--num_workers", "0"], "is not a whole number of 1 or more"),
        ([CLIP, "--num_workers", "20000"], "more workers than"),
    ],
)
def test_what_workers_do_not_do_is_refused(cli, arguments, reason):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert reason in err.splitlines()[-1]
