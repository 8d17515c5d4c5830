"""A checkpoint is untrusted input: one line reports what is wrong with it, and nothing else happens."""

import os
import resource
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from fuzz import fuzz
from hostile_checkpoints import CASES, CONFIG, packed
from robustness import documented, row, run_case

from nemotron_npu.checkpoint.load import read_checkpoint
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.recognizer import load_recognizer

CPU = torch.device("cpu")
ENGINES = {"native": (), "nemo": ("--engine", "nemo")}


@contextmanager
def memory_limit(extra: int):
    """No more address space than there is in use and ``extra`` bytes."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """Where temporary files would be written."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_broken_checkpoint_is_refused_in_one_line(case, tmp_path, scratch, monkeypatch):
    """Both engines refuse it, without writing anything."""
    monkeypatch.setitem(sys.modules, "nemotron_npu.nemo_engine", None)  # NeMo is not even imported
    for engine, options in ENGINES.items():
        folder = tmp_path / engine
        folder.mkdir()
        with memory_limit(1 << 30):
            observed = run_case(case, folder, *options)
        assert (observed.code, observed.stdout, len(observed.stderr.splitlines())) == (2, "", 1), observed
        assert row(case, observed) in documented("checkpoints")
        assert observed.seconds < 10
        assert set(os.listdir(folder)) <= {"model.nemo"} and os.listdir(scratch) == [], "something was written"


def test_messages_have_a_row_for_each_case():
    assert [line.split(" | ")[0][2:] for line in documented("checkpoints")] == [case.name for case in CASES]
    assert all(case.code == 2 for case in CASES)


# ---------------------------------------------------------------- what NeMo gets


def other(tiny, path: Path, **changes) -> Path:
    """The tiny checkpoint with another config for its encoder."""
    import yaml

    with tarfile.open(tiny) as archive:
        files = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    config = yaml.safe_load(files[CONFIG])
    config["encoder"] |= changes
    path.write_bytes(packed(files | {CONFIG: yaml.safe_dump(config).encode()}))
    return path


def test_nemo_opens_nothing_and_leaves_nothing_behind(tiny, scratch, monkeypatch):
    from nemotron_npu import nemo_restore

    def refuse(*_, **__):
        raise AssertionError("NeMo reads the file itself")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(nemo_restore.SaveRestoreConnector, "_unpack_nemo_file", refuse)
    monkeypatch.setattr(nemo_restore.SaveRestoreConnector, "_filtered_tar_info", refuse)
    recognizer = load_recognizer(tiny, CPU, options=ModelOptions("nemo"))
    for name, weight in read_checkpoint(tiny).tensors.items():
        assert torch.equal(recognizer.model.state_dict()[name], weight), name
    assert os.listdir(scratch) == []


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"self_attention_model": "abs_pos"}, r"model_weights.ckpt: has encoder.layers.0.self_attn.*not describe"),
        ({"conv_norm_type": "no_norm"}, r"NeMo cannot restore this checkpoint: Error in call to target"),
    ],
)
def test_nemo_checkpoint_that_does_not_fit_is_one_line(tiny, tmp_path, scratch, changes, says):
    path = other(tiny, tmp_path / "model.nemo", **changes)
    with pytest.raises(SetupError, match=says) as caught:
        load_recognizer(path, CPU, announce=lambda line: None)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(scratch) == []


# ---------------------------------------------------------------- fuzzing


def test_fuzzed_checkpoints_are_refused_or_work():
    outcomes, wrong = fuzz("checkpoint", first=0, cases=120)
    assert not wrong
    assert outcomes["refused"] > 50 and outcomes["works"] > 5
