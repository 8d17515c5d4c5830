"""The command line runs on a fake ``npu`` device in processes of its own; ``fake_npu.py`` lists the fake's limits."""

import os
import re

import fake_npu
import pytest
from support import CLIP, CLIP_WORDS, ROOT, run_process

pytestmark = pytest.mark.skipif(bool(fake_npu.missing()), reason=fake_npu.missing())


ON_FAKE_NPU = sorted((ROOT / "tests" / "on_fake_npu").glob("test_*.py"))
LONGEST = ROOT / "tests" / "on_fake_npu" / "test_inference.py"


@pytest.mark.parametrize("files", [[LONGEST], [path for path in ON_FAKE_NPU if path != LONGEST]], ids=["one", "others"])
def test_files_in_on_fake_npu_pass(files):
    """All tests in ``on_fake_npu`` pass in processes with the fake device."""
    result = run_process("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files, cwd=ROOT, timeout=1200)
    assert result.returncode == 0, result.stdout + result.stderr


def test_npu_is_the_default_device_and_transcribes_the_clip():
    """The NPU is the default device, and transcribes what the CPU does."""
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == CLIP_WORDS
    assert "device: npu:0" in result.stderr


def test_precision_table_of_the_reference_guide_passes(tiny):
    """--precision_compare prints the table of the reference guide, and passes."""
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


@pytest.mark.parametrize(
    "value, cards",
    [(None, [0, 1]), ("1", [1]), ("0,1", [0, 1]), ("1,0", [1]), ("0, 1", [0]), ("0,2", [0]), ("", []), ("-1", [])],
)
def test_fake_reads_the_variable_as_cann_does(value, cards):
    """ASCEND_RT_VISIBLE_DEVICES holds ascending card numbers, up to the first that does not belong."""
    assert fake_npu.visible_cards(value) == cards


@pytest.mark.parametrize("visible, found", [("1", "this host offers npu:0)"), ("", "torch_npu finds no NPU")])
def test_hidden_npu_is_refused_in_one_line(visible, found):
    """A card that ASCEND_RT_VISIBLE_DEVICES hides does not exist for the program."""
    command = [ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", "--device", "npu:1"]
    result = run_process(*command, env={**os.environ, "ASCEND_RT_VISIBLE_DEVICES": visible})
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert found in result.stderr


@pytest.mark.parametrize("options", [[CLIP, "--stream"], ["-"]])
def test_live_audio_is_transcribed_on_the_npu(options):
    """A streamed file and stdin are transcribed on the NPU."""
    with open(CLIP, "rb") as file:
        command = [
            ROOT / "tests" / "fake_npu.py",
            ROOT / "inference.py",
            *options,
            "--chunk_ms",
            160,
            "--endpoint_ms",
            0,
        ]
        result = run_process(*command, stdin=file)
    assert (result.returncode, result.stdout) == (0, CLIP_WORDS + "\n"), result.stderr
    assert "device: npu:0" in result.stderr


def test_missing_npu_is_an_error_that_lists_the_others():
    """An NPU that does not exist is one error line that lists those that do."""
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", "--device", "npu:7", CLIP)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == ["inference.py: npu:7: does not exist (this host offers npu:0 to npu:1)"]


def test_doctor_finds_the_npu_equal_to_the_cpu():
    """--doctor finds the NPU, and that it gives the tokens of the CPU."""
    result = run_process(ROOT / "tests" / "fake_npu.py", ROOT / "inference.py", "--doctor", "--device", "npu:0")
    assert result.returncode == 1, result.stdout + result.stderr  # no driver, no CANN
    assert "ok       device        npu:0: Ascend-fake (CPU)\n" in result.stdout
    assert "8 tokens equal" in result.stdout
    warnings = re.findall(r"^warning  (\S+)", result.stdout, re.MULTILINE)
    assert set(warnings) - {"triton"} == {"CANN", "driver", "NPUs"}  # a torch with CUDA brings a triton to patch
