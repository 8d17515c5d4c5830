"""The NPU path, on a fake ``npu`` device in processes of its own (what the fake cannot show: see ``fake_npu.py``)."""

import re

import fake_npu
import pytest
from support import CLIP, CLIP_WORDS, ROOT, run_process

pytestmark = pytest.mark.skipif(bool(fake_npu.missing()), reason=fake_npu.missing())


ON_FAKE_NPU = sorted((ROOT / "tests" / "on_fake_npu").glob("test_*.py"))
LONGEST = ROOT / "tests" / "on_fake_npu" / "test_inference.py"


@pytest.mark.parametrize("files", [[LONGEST], [path for path in ON_FAKE_NPU if path != LONGEST]], ids=["one", "others"])
def test_everything_that_was_written_for_the_fake_npu_passes_on_it(files):
    result = run_process("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_npu_is_the_default_device_and_transcribes_as_the_cpu_does():
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == CLIP_WORDS
    assert "device: npu:0" in result.stderr


def test_the_comparison_table_of_the_write_up_is_printed_and_passes(tiny):
    result = run_process(
        ROOT / "tests" / "fake_npu.py",
        ROOT / "inference.py",
        *("--model_path", tiny, "--device", "npu:0", "--precision_compare", "--quiet"),
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    for row in [
        r"Preprocessed shape: \[1, 128, 101\]",
        r"Preprocessor MAE +0\.00000",
        r"Preprocessor Max Error +0\.000",
        r"Encoder MSE +\d\S*e-1\d",
        r"Encoder MAE +0\.00000",
        r"Max Absolute Error +0\.0000",
        r"Relative Error +0\.000\d+ %",
        r"Output range, npu:0 +-?\d",
        r"Output range, cpu +-?\d",
        r"cpu against cpu +MAE = 0\.0, max = 0\.0",
        r"Verdict +PASSED",
    ]:
        assert re.search(row, result.stdout), (row, result.stdout)


@pytest.mark.parametrize("options", [[CLIP, "--stream"], ["-"]])
def test_live_sound_is_recognised_on_the_npu(options):
    with open(CLIP, "rb") as sound:
        command = [ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", *options, "--chunk_ms", 160]
        result = run_process(*command, stdin=sound)
    assert (result.returncode, result.stdout) == (0, CLIP_WORDS + "\n"), result.stderr
    assert "device: npu:0" in result.stderr


def test_an_npu_that_does_not_exist_is_named_with_those_that_do():
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", "--device", "npu:7", CLIP)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == ["inference.py: npu:7: does not exist (this host offers npu:0 to npu:1)"]


def test_the_doctor_finds_the_npu_and_that_it_computes_what_the_cpu_does():
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", "--doctor", "--device", "npu:0")
    assert result.returncode == 1, result.stdout + result.stderr  # no driver, no CANN
    assert "ok       device        npu:0: Ascend-fake (CPU)\n" in result.stdout
    assert "8 tokens equal" in result.stdout
    warnings = re.findall(r"^warning  (\S+)", result.stdout, re.MULTILINE)
    assert set(warnings) - {"triton"} == {"CANN", "driver", "NPUs"}  # a torch with CUDA brings a triton to patch
