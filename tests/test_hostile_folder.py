"""Output folders that another user has changed: no file outside is written, no run hangs, no result is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fuzz import fuzz
from support import ROOT, lines
from test_output_folder import KINDS, SETTINGS, contents, recordings, run, transcript, write

from nemotron_npu.cli.output_folder import OutputFolder
from nemotron_npu.errors import InputError, SetupError
from nemotron_npu.host.files import write_file

STATE = ["results.jsonl", "results.jsonl~", "manifest.jsonl", ".part", "results.jsonl.part", ".0123456789abcdef.part"]


@pytest.fixture(autouse=True)
def nothing_waits():
    """End a test that waits for the other end of a pipe."""

    def stop(*_):
        raise AssertionError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- two runs


def test_refused_run_leaves_no_trace(tmp_path):
    """A run that is refused changes no byte of the folder, whatever the names."""
    with OutputFolder(tmp_path, KINDS, SETTINGS):
        for name in STATE:
            (tmp_path / name).write_bytes(b"of the first run")
        before = [(name, (tmp_path / name).stat()) for name in sorted(os.listdir(tmp_path))]
        for resume in (False, True):
            with pytest.raises(SetupError, match="another run is writing to this folder"):
                OutputFolder(tmp_path, KINDS, SETTINGS, resume=resume)
        after = [(name, (tmp_path / name).stat()) for name in sorted(os.listdir(tmp_path))]
        untimed = [[(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in each] for each in (before, after)]
        assert untimed[0] == untimed[1]


@pytest.mark.parametrize("resume", [False, True])
def test_second_runs_do_not_disturb_the_first(tmp_path, resume):
    """While a run writes 1,500 files, others are refused; all its files are whole."""
    inputs = recordings(*(f"{number}.wav" for number in range(500)))
    ended = threading.Event()
    refused = 0

    def others():
        nonlocal refused
        while not ended.is_set():
            try:
                OutputFolder(tmp_path, KINDS, SETTINGS, resume=resume)
            except SetupError:
                refused += 1

    with OutputFolder(tmp_path, KINDS, SETTINGS, resume=resume) as folder:
        thread = threading.Thread(target=others)
        thread.start()
        try:
            for index in folder.begin(inputs):
                write(folder, index, f"words of {index}")
        finally:
            ended.set()
            thread.join()
    assert refused > 20
    assert len(lines(tmp_path / "results.jsonl")) == len(lines(tmp_path / "manifest.jsonl")) == 500
    assert all((tmp_path / f"{index}.txt").read_text() == f"words of {index}\n" for index in range(500))
    assert len(os.listdir(tmp_path)) == 1502


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    """The next run removes what a killed one left unfinished, and no other hidden file."""
    for name in (".0123456789abcdef.part", ".mine.part", ".part"):
        (tmp_path / name).write_bytes(b"x")
    run(tmp_path, recordings("a.wav"), kinds=["txt"])
    assert set(contents(tmp_path)) == {"a.txt", "results.jsonl", ".mine.part", ".part"}


# ---------------------------------------------------------------- links, pipes, folders


def plant(kind: str, path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "hard link":
        os.link(target, path)
    else:
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
@pytest.mark.parametrize("name", [*STATE, "x/a.txt", "x/a.srt"])
@pytest.mark.parametrize("resume", [False, True])
def test_planted_name_leads_nowhere(tmp_path, kind, name, resume):
    """A planted link, pipe or folder is replaced or refused in one line; what it leads to keeps its bytes."""
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"precious\n")
    out = tmp_path / "out"
    inputs = recordings("x/a.wav", "x/b.wav")
    for recording in inputs:
        recording.output = f"x/{recording.output}"
    plant(kind, out / name, victim)
    try:
        run(out, inputs, resume=resume)
    except (SetupError, InputError) as error:
        assert len(str(error).splitlines()) == 1 and str(out) in str(error)
        assert kind in str(error) or "director" in str(error), error
    else:
        assert [line["output"] for line in lines(out / "results.jsonl")] == ["x/a", "x/b"]
        assert (out / "x" / "b.txt").read_text() == "words of x/b.wav\n"
    assert victim.read_bytes() == b"precious\n"
    assert sorted(os.listdir(tmp_path)) == ["out", "victim.txt"]


def test_subfolder_that_is_a_link_is_not_written_to(tmp_path):
    """A linked folder of the mirrored tree costs its recordings; nothing is written to where it leads."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to("../elsewhere")
    inputs = recordings("x/a.wav")
    inputs[0].output = "x/a"
    with pytest.raises(InputError, match=r"out/x/a.txt: cannot be written: x is a link"):
        run(tmp_path / "out", inputs)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_output_folder_itself_may_be_a_link(tmp_path):
    """The output folder itself may be a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    assert run(tmp_path / "out", recordings("a.wav")) == ["a"]
    assert (tmp_path / "disk" / "a.txt").read_text() == "words of a.wav\n"


def test_report_does_not_follow_links(tmp_path):
    """A file of a report replaces a link, and no planted name is used on the way."""
    victim = tmp_path / "victim.txt"
    victim.write_bytes(b"precious")
    report = tmp_path / "report" / "evaluation.json"
    for name in ("evaluation.json", "evaluation.json.part", ".part"):
        plant("link", report.parent / name, victim)
    write_file(report, b"figures")
    assert victim.read_bytes() == b"precious" and report.read_bytes() == b"figures" and not report.is_symlink()


def test_outputs_obey_the_umask(tmp_path):
    """Files and folders have what the umask leaves."""
    before = os.umask(0o027)
    try:
        run(tmp_path / "out", recordings("a.wav"))
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


# ---------------------------------------------------------------- the record

HOSTILE = {
    "output": ["../escaped/a", "/tmp/a", "", None, ["a"], "a\0b", "\ud800", "a" * 5000, "x/../../a", "./a", "b", 7],
    "audio": [None, 7, [], "", "\0", "\ud800", "x" * 5000],
    "offset": [[1], {}, "1", float("nan"), -1, True, 10**400],
    "manifest": [[1], "x", 7, {"duration": {"a": 1}}, {"duration": "1"}, {"duration": float("inf")}],
    "text": [7, None, ["a"]],
    "duration": ["1", [], -1, float("nan")],
    "dtype": [None, 7, ["x"] * 100_000],
    "chunk_ms": ["80", True, [80]],
    "model": [None, 7, "", "a\0"],
    "model_id": [7, []],
    "boost_words": [7, []],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in HOSTILE.items() for value in values])
def test_edited_line_of_record_is_named_and_done_again(tmp_path, field, value):
    """A line that no run has written is named by its number, its recording is done again, and nothing lies outside."""
    out, inputs = tmp_path / "out", recordings("a.wav", "c.wav")
    run(out, inputs)
    whole = contents(out)
    first, _ = lines(out / "results.jsonl")
    edited = json.dumps({**first, field: value}).encode()
    (out / "results.jsonl").write_bytes(edited + b"\n" + whole["results.jsonl"].splitlines(keepends=True)[1])
    (out / "a.srt").unlink()
    with OutputFolder(out, KINDS, SETTINGS, resume=True) as folder:
        assert folder.begin(inputs) == [0]
        assert len(folder.remarks) == 1 and folder.remarks[0].startswith(f"{out}/results.jsonl, line 1: ")
        assert len(folder.remarks[0].splitlines()) == 1 and len(folder.remarks[0]) < len(str(out)) + 200
        write(folder, 0, "words of a.wav")
    assert contents(out) == whole
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("line", [b"[" * 200_000 + b"]" * 200_000, b"\xff", b"null", b"7", b'{"a": 1', b"1" * 5000])
def test_line_that_is_no_result_is_named(tmp_path, line):
    """A line that is no result costs nothing but a remark."""
    inputs = recordings("a.wav")
    run(tmp_path, inputs)
    with open(tmp_path / "results.jsonl", "ab") as record:
        record.write(line + b"\n")
    with OutputFolder(tmp_path, KINDS, SETTINGS, resume=True) as folder:
        assert folder.begin(inputs) == []
        assert len(folder.remarks) == 1 and "results.jsonl, line 2: is not " in folder.remarks[0]
    assert len(lines(tmp_path / "results.jsonl")) == 1


def test_file_emptied_by_loss_of_power_is_done_again(tmp_path):
    """A file that a loss of power has emptied is no finished result, unless nothing was spoken."""
    inputs = recordings("a.wav", "b.wav")
    with OutputFolder(tmp_path, ["txt"], SETTINGS) as folder:
        folder.begin(inputs)
        write(folder, 0, "words")
        write(folder, 1, "")
    (tmp_path / "a.txt").write_bytes(b"")
    assert run(tmp_path, inputs, kinds=["txt"]) == ["a"]


def test_repeated_lines_count_once(tmp_path):
    """Of lines with the same output, the first counts."""
    inputs = recordings("a.wav")
    run(tmp_path, inputs)
    good = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(12 * good)
    with OutputFolder(tmp_path, KINDS, SETTINGS, resume=True) as folder:
        assert folder.begin(inputs) == []
        assert "line 2: has the output of line 1" in folder.remarks[0]
        assert len(folder.remarks) == 11 and folder.remarks[-1].endswith("results.jsonl: 1 more lines are not valid")
    assert (tmp_path / "results.jsonl").read_bytes() == good


def test_hostile_settings_are_shown_short(tmp_path):
    """Settings of another run are shown on one short line without control characters."""
    inputs = recordings("a.wav")
    run(tmp_path, inputs)
    (line,) = lines(tmp_path / "results.jsonl")
    (tmp_path / "results.jsonl").write_text(json.dumps({**line, "dtype": "\x1b[2J\u202e" + 10**5 * "x"}) + "\n")
    with pytest.raises(SetupError) as error:
        run(tmp_path, inputs)
    assert str(error.value).isprintable() and len(str(error.value)) < len(str(tmp_path)) + 250


def test_line_without_end_takes_little_memory(tmp_path):
    """A line of 500 MB is passed over in less than 250 MB."""
    inputs = recordings("a.wav")
    run(tmp_path, inputs)
    with open(tmp_path / "results.jsonl", "ab") as record:
        record.truncate(500 * 10**6 + record.tell())  # zeros that take no disk
    script = (
        "import sys; from pathlib import Path; from nemotron_npu.cli.record import read_record; "
        "entries, faults = read_record(open(sys.argv[1], 'rb')); "
        "memory = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]; "
        "print(len(entries), faults[0].number, faults[0].problem, memory)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "results.jsonl")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert found[:-1] == ["1", "2", "has", "more", "than", "67,108,864", "bytes"] and int(found[-1]) < 250_000


def test_name_that_leads_out_is_refused_by_the_folder(tmp_path):
    """Whatever names a recording, its files stay in the folder."""
    for output in ("../a", "/tmp/a", "x/../../a", ""):
        inputs = recordings("a.wav")
        with OutputFolder(tmp_path / "out", ["txt"], SETTINGS) as folder:
            folder.begin(inputs)
            inputs[0].output = output
            if output:
                with pytest.raises(InputError, match="the name leads out of the folder"):
                    folder.write(0, transcript("x"), {})
    assert os.listdir(tmp_path) == ["out"]


def test_fuzzed_records_are_resumed():
    """These are the first of 50,000 cases; python tests/fuzz.py record runs more."""
    outcomes, wrong = fuzz("record", first=0, cases=500)
    assert not wrong and outcomes["done"] > 300, (outcomes, wrong)
