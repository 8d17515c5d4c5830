"""``--acceptance`` runs checks and measurements in processes of their own; here these are small scripts."""

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from support import CLIP

from nemotron_npu import __version__
from nemotron_npu.checkpoint import published
from nemotron_npu.cli import acceptance
from nemotron_npu.cli.bundled import DEMO_CLIP, DEMO_MODEL
from nemotron_npu.cli.options import DeviceOptions, InputOptions, Options

STEP = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
print("table of", *arguments)
if "--report" in arguments:
    folder = Path(arguments[arguments.index("--report") + 1])
    folder.mkdir()
    if "--precision_compare" in arguments:
        stages = [{"stage": "subsampling", "alone": {"relative_error_percent": 0.03}}]
        document = {"verdict": "PASSED", "walks": {"recording": {"stages": stages}}}
        document["sine"] = {"encoder": {"relative_error_percent": 0.0567}}
        (folder / "precision.json").write_text(json.dumps(document))
    if "--npu_fused" in arguments and "--benchmark" in arguments:
        candidates = [{"dtype": dtype, "forward": {"mean": 85.13}} for dtype in ("float32", "bfloat16", "float16")]
        (folder / "benchmark.json").write_text(json.dumps({"benchmark": {"candidates": candidates}}))
        sys.exit(0)
if "--graph" in arguments:
    os.abort()
print("the last line of", arguments[0], file=sys.stderr)
sys.exit({"--doctor": 1, "--benchmark": 2}.get(arguments[0], 0))
"""


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Let every step run a script that writes figures, fails or crashes."""
    script = tmp_path / "step.py"
    script.write_text(STEP)
    monkeypatch.setattr(acceptance, "command", lambda: [sys.executable, str(script)])
    return script


def names(device, audio=()):
    options = Options(input=InputOptions(audio), device=DeviceOptions(device))
    return [step.name for step in acceptance.steps(options, Path("out"))]


def test_steps_are_those_that_suit_device_and_audio():
    """A CPU has neither HF32, graphs nor fused operators, a GPU no fused ones; error rates need a manifest."""
    assert names("cpu") == ["doctor", "precision", "benchmark", "benchmark_nemo"]
    everything = ["doctor", "precision", "precision_hf32", "benchmark", "benchmark_graph", "benchmark_nemo"]
    everything[5:5] = ["precision_fused", "benchmark_fused"]
    assert names("npu:1") == everything
    on_cuda = [name for name in everything if "fused" not in name]
    assert names("cuda", ("test.json",)) == [*on_cuda, "wer"]


def test_a_step_that_fails_or_crashes_costs_no_other(cli, scripted, tmp_path):
    """The folder has table, messages and figures of each step, and the summary names what went wrong."""
    folder = tmp_path / "out"
    options = ["--device", "npu:0", "--model_path", "some.nemo"]
    code, out, err = cli("test.json", "--acceptance", folder, *options)
    assert code == 1 and f"folder: {folder}" in err
    table = " ".join(out.split())
    assert "doctor warnings" in table and "precision_hf32 PASSED, sine 0.0567 %, subsampling alone 0.03 %" in table
    assert "benchmark exit code 2: the last line of --benchmark" in table
    assert "benchmark_fused forward: float32 85.1, bfloat16 85.1, float16 85.1 ms" in table
    assert max(map(len, out.splitlines())) <= 80
    assert "benchmark_graph exit code -6" in table and "wer see wer.txt" in table
    assert "2.20 % at 160 ms" not in out, "a figure of the published checkpoint"
    steps = json.loads((folder / "acceptance.json").read_text())["steps"]
    assert [step["name"] for step in steps] == names("npu:0", ("test.json",))
    for step in steps:
        assert step["command"][-4:] == options
        assert (folder / f"{step['name']}.txt").read_text().startswith("table of")
    assert "--allow_hf32" in steps[2]["command"] and "--allow_hf32" not in steps[1]["command"]


def test_summary_names_version_time_and_device(cli, scripted, tmp_path):
    """Whoever gets the folder knows which version ran when and where, and the steps are numbered meanwhile."""
    before = datetime.now(timezone.utc).replace(microsecond=0)
    _, _, err = cli("--acceptance", tmp_path / "out", "--device", "npu:1")
    summary = json.loads((tmp_path / "out" / "acceptance.json").read_text())
    assert (summary["nemotron_npu"], summary["device"]) == (__version__, "npu:1")
    assert before <= datetime.fromisoformat(summary["began"]) <= datetime.now(timezone.utc)
    assert err.startswith("1 of 8: doctor ...") and "8 of 8: benchmark_nemo ..." in err


def test_graphs_run_without_the_setting_that_excludes_them(cli, scripted, tmp_path, monkeypatch):
    """TASK_QUEUE_ENABLE=2 is advised without graphs and refused with them: it is left out of their step alone."""
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "2")
    scripted.write_text("import os; print(os.environ.get('TASK_QUEUE_ENABLE'))")
    cli("--acceptance", tmp_path / "out", "--device", "npu:0")
    found = {name: (tmp_path / "out" / f"{name}.txt").read_text().strip() for name in names("npu:0")}
    assert found.pop("benchmark_graph") == "None" and set(found.values()) == {"2"}


def test_the_published_checkpoint_gets_its_yardstick(cli, scripted, tmp_path, monkeypatch):
    """Figures of others are shown for the checkpoint that they are of."""
    options = [DEMO_CLIP, "--device", "npu:0", "--model_path", DEMO_MODEL]
    assert "2.20 %" not in cli(*options, "--acceptance", tmp_path / "other")[1]
    monkeypatch.setitem(
        published.PUBLISHED, published.sha256(DEMO_MODEL), (DEMO_MODEL.stat().st_size, "the published one")
    )
    assert "2.20 % at 160 ms" in cli(*options, "--acceptance", tmp_path / "out")[1]


def test_links_are_replaced_and_passwords_left_out(cli, scripted, tmp_path):
    """Nothing is written through a link in the folder, and no file repeats the password of a URL."""
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("doctor.txt", "doctor.log", "acceptance.json"):
        (folder / name).symlink_to(victim)
    scripted.write_text("")
    cli("--acceptance", folder, "--device", "cpu", "--model_path", "https://me:secret@127.0.0.1/x.nemo")
    assert victim.read_text() == "precious" and not any(path.is_symlink() for path in folder.iterdir())
    summary = (folder / "acceptance.json").read_text()
    assert "https://...@127.0.0.1/x.nemo" in summary and "secret" not in summary


def test_a_long_message_does_not_widen_the_table(cli, scripted, tmp_path):
    """The table has the beginning of a long message; the log has all of it."""
    scripted.write_text("import sys; sys.exit('problem ' * 50)")
    code, out, _ = cli("--acceptance", tmp_path / "out", "--device", "cpu")
    assert code == 1 and max(map(len, out.splitlines())) < 140 and "problem [...]" in out
    assert (tmp_path / "out" / "benchmark.log").read_text().count("problem") == 50


def test_a_step_that_hangs_is_ended(cli, scripted, tmp_path, monkeypatch):
    """A step that does not end is killed with its children, and the next one follows."""
    monkeypatch.setattr(acceptance, "STEP_SECONDS", 0.1)
    scripted.write_text("import time; time.sleep(1000)")
    code, out, _ = cli("--acceptance", tmp_path / "out", "--device", "cpu")
    assert code == 1 and out.count("no end within 0.1 s") == 4


def test_an_interruption_keeps_what_is_complete(cli, scripted, tmp_path, monkeypatch):
    """The summary of the steps that are complete is written, and the exit code is that of the signal."""
    run = acceptance._run

    def interrupted(step, *rest):
        if step.name == "precision":
            raise KeyboardInterrupt
        return run(step, *rest)

    monkeypatch.setattr(acceptance, "_run", interrupted)
    code, out, err = cli("--acceptance", tmp_path / "out", "--device", "cpu")
    assert code == 130 and "doctor  warnings" in out and "interrupted" in err
    assert len(json.loads((tmp_path / "out" / "acceptance.json").read_text())["steps"]) == 1


@pytest.mark.parametrize("extra", [["--graph", "on"], ["--dtype", "int8"], ["-"], ["--stream", CLIP]])
def test_options_that_it_chooses_itself_are_refused(cli, extra, tmp_path):
    """Options of the steps and live audio are wrong usage."""
    code, _, err = cli("--acceptance", tmp_path / "out", *extra)
    assert code == 2 and err.splitlines()[-1].startswith("inference.py: error: --acceptance: ")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_is_one_line(cli, tmp_path):
    """A folder that cannot be created is one line before the first step."""
    (tmp_path / "file").write_text("")
    code, _, err = cli("--acceptance", tmp_path / "file" / "out", "--device", "cpu")
    assert code == 2 and "the folder cannot be created" in err and len(err.splitlines()) == 1
