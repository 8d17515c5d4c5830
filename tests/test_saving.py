"""``--save``: the file gives the results of conversion at load, is the same from every CPU, and is never partial."""

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from golden_prompted import DATA
from golden_transformers import FOLDERS
from support import CLIP, CLIP_WORDS, DEMO, ROOT, run_process, token_frames
from test_full_disk import small_disk  # noqa: F401  # a fixture

from nemotron_npu import dtypes
from nemotron_npu.checkpoint.archive import SAVED_CONFIG
from nemotron_npu.checkpoint.load import read_checkpoint
from nemotron_npu.checkpoint.safetensors_file import read_safetensors
from nemotron_npu.checkpoint.safetensors_header import read_header
from nemotron_npu.checkpoint.weights import SCALES
from nemotron_npu.dtypes import check_dtype
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.recognizer import Recognizer, load_recognizer
from nemotron_npu.saving import METADATA, save_checkpoint, write_safetensors

CPU = torch.device("cpu")
OFFERED = dtypes.offered_dtypes(CPU)
DTYPES = ["float32", "bfloat16", "int8"]
POSITION = "encoder.layers.0.self_attn.linear_pos.weight"
FEED = "encoder.layers.0.feed_forward1.linear1.weight"
SOURCES = {"demo": DEMO, "prompted": DATA / "prompted.nemo", "transformers": FOLDERS / "prompted"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``saved(dtype, name of SOURCES)``: the file, written once."""
    folder = tmp_path_factory.mktemp("saved")

    def path(dtype: str, name: str = "demo") -> Path:
        target = folder / f"{name}-{dtype}.safetensors"
        if not target.exists():
            save_checkpoint(SOURCES[name], target, dtype)
        return target

    return path


def change(source: Path, target: Path, edit) -> Path:
    """Write the saved file again after ``edit(tensors)``."""
    with open(source, "rb") as file:
        tensors = dict(read_safetensors(file, ""))
    edit(tensors)
    target.write_bytes(b"".join(write_safetensors(tensors, METADATA)))
    return target


def with_config(**values):
    def edit(tensors: dict) -> None:
        config = json.loads(bytes(tensors[SAVED_CONFIG].tolist())) | values
        tensors[SAVED_CONFIG] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)

    return edit


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_file_gives_what_conversion_at_load_gives(saved, clip, name, dtype):
    """Bit for bit: encoder output, tokens and probabilities; and it is mapped, and known by its parameters."""
    path = saved(dtype, name)
    if dtype not in OFFERED:
        with pytest.raises(SetupError, match=rf"was saved in {dtype}: .*--save one with --dtype"):
            Recognizer(path, CPU)
        return
    ours, theirs = Recognizer(path, CPU), Recognizer(SOURCES[name], CPU, options=ModelOptions(dtype=dtype))
    assert (ours.dtype, ours.parameters, ours.language) == (dtype, theirs.parameters, theirs.language)
    mine, other = (r.encode(*r.preprocess([clip[:32000]]))[0] for r in (ours, theirs))
    assert torch.equal(mine, other)
    assert ours.transcribe(clip) == theirs.transcribe(clip)
    assert read_checkpoint(path).tensors.mappings
    if name == "demo":
        assert path.stat().st_size < {"float32": 1.0, "bfloat16": 0.6, "int8": 0.4}[dtype] * DEMO.stat().st_size


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_file_is_the_same_on_every_cpu(saved, tmp_path, dtype):
    """torch with and without the CPU's vector instructions, one thread and two."""
    for level in ("default", "avx2"):
        target = tmp_path / f"{level}.safetensors"
        environment = {
            **os.environ,
            "ATEN_CPU_CAPABILITY": level,
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OMP_NUM_THREADS": "2",
        }
        result = run_process(ROOT / "inference.py", "--save", target, "--dtype", dtype, env=environment)
        assert result.returncode == 0, result.stderr
        assert target.read_bytes() == saved(dtype).read_bytes()


def test_int8_file_has_bounded_pairs_and_scales(saved):
    """Two neighboring weights of one sign add up to 128 at most, which CPUs without VNNI need."""
    tensors = read_checkpoint(saved("int8")).tensors
    levels = [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]
    assert len(levels) > 40 and all(tensors[name + SCALES].dtype == torch.float32 for name in levels)
    assert POSITION in levels
    for name in levels:
        rows = tensors[name].int().flatten(1)
        pairs = rows[:, : rows.shape[1] // 2 * 2].unflatten(1, (-1, 2))
        assert int(pairs.sum(2).abs().max()) <= 128


def test_float32_file_runs_in_every_dtype_and_on_nemo(saved, clip):
    """It has all that the source has."""
    for dtype in set(DTYPES) & set(OFFERED):
        ours, theirs = (Recognizer(p, CPU, options=ModelOptions(dtype=dtype)) for p in (saved("float32"), DEMO))
        assert ours.transcribe(clip) == theirs.transcribe(clip)
    if importlib.util.find_spec("nemo"):
        nemo = load_recognizer(saved("float32"), CPU, options=ModelOptions("nemo"))
        assert token_frames(nemo.transcribe(clip)) == token_frames(theirs.transcribe(clip))


def test_command_line_saves_and_takes_the_file(cli, tmp_path, saved):
    """It ends with one line; the file is taken without --dtype, and in no other one."""
    target = tmp_path / "m.safetensors"
    code, out, err = cli("--save", target, "--dtype", "int8")
    size = target.stat().st_size
    assert (code, out) == (0, "") and err.splitlines()[-1] == f"saved: {target}, 2,144,405 parameters, {size:,} bytes"
    assert os.listdir(tmp_path) == ["m.safetensors"]
    options = ["--model_path", target, CLIP, "--device", "cpu", "--quiet"]
    if "int8" in OFFERED:
        code, out, _ = cli(*options, "--output_format", "json")
        document = json.loads(out)
        assert (code, document["dtype"], document["text"]) == (0, "int8", CLIP_WORDS)
    code, _, err = cli(*options, "--dtype", "float32")
    expected = "--dtype float32: this checkpoint was saved in int8 (use the checkpoint that it was made from)\n"
    assert (code, err) == (2, f"inference.py: {expected}")
    code, _, err = cli("--model_path", target, "--save", tmp_path / "x", "--dtype", "float32")
    assert code == 2 and err.endswith(expected) and os.listdir(tmp_path) == ["m.safetensors"]
    if importlib.util.find_spec("nemo"):
        code, _, err = cli(*options, "--engine", "nemo")
        problem = "m.safetensors: was saved in int8, NeMo needs float32 (use the checkpoint that it was made from)\n"
        assert (code, err) == (2, f"inference.py: {problem}")


@pytest.mark.parametrize(
    "options, problem",
    [
        ([CLIP], "omit AUDIO"),
        (["--device", "cpu"], "omit --device"),
        (["--output_dir", "out"], "omit --output_dir"),
    ],
)
def test_save_goes_with_no_transcription(cli, tmp_path, options, problem):
    code, _, err = cli("--save", tmp_path / "m", *options)
    assert code == 2 and f"--save: writes a checkpoint and transcribes nothing ({problem})" in err
    assert os.listdir(tmp_path) == []


def test_device_without_the_dtype_is_one_line():
    with pytest.raises(SetupError, match=r"^m.safetensors: was saved in int8: not for cuda \(--save one with --dtype "):
        check_dtype("int8", torch.device("cuda:0"), "m.safetensors")


def test_target_that_is_no_file_is_refused(cli, tmp_path):
    """A folder, a pipe, a device and a missing folder's parent; nothing is replaced."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "folder", tmp_path / "pipe", "/dev/null"):
        code, _, err = cli("--save", target, "--quiet")
        assert (code, err) == (2, f"inference.py: --save {target}: exists and is not a file\n")
    (tmp_path / "file").touch()
    code, _, err = cli("--save", tmp_path / "file" / "m", "--quiet")
    assert code == 2 and "cannot be written: " in err and len(err.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "pipe"]


KILLED = """
import os, signal
from nemotron_npu import saving
whole = saving.write_safetensors
def half(*arguments):
    for number, block in enumerate(whole(*arguments)):
        if number == 20:
            os.kill(os.getpid(), signal.{signal})
        yield block
saving.write_safetensors = half
from nemotron_npu.cli.app import main
raise SystemExit(main(["--save", {target!r}]))
"""


@pytest.mark.parametrize("name, code, left", [("SIGKILL", -signal.SIGKILL, 1), ("SIGTERM", 143, 0), ("SIGINT", 130, 0)])
def test_killed_in_the_middle_leaves_no_half_file(tmp_path, name, code, left):
    """The file that was there is still there; what a kill has left has another name, and the next run removes it."""
    target = tmp_path / "m.safetensors"
    target.write_bytes(b"earlier")
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(signal=name, target=str(target)))
    result = run_process(script, env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"})
    assert result.returncode == code, result.stderr
    assert target.read_bytes() == b"earlier" and len(os.listdir(tmp_path)) == 2 + left
    save_checkpoint(DEMO, target)
    assert sorted(os.listdir(tmp_path)) == ["killed.py", "m.safetensors"]
    assert Recognizer(target, CPU).parameters == 2_144_405


def test_full_disk_leaves_nothing(cli, small_disk):  # noqa: F811
    disk, _ = small_disk
    code, _, err = cli("--save", disk / "m.safetensors", "--quiet")
    assert code == 2 and err.endswith("m.safetensors: cannot be written: No space left on device\n")
    assert os.listdir(disk) == []


def test_copies_have_one_identity(saved, tmp_path):
    """Another dtype, config or weight has another."""
    copy = shutil.copy(saved("float32"), tmp_path / "copy.safetensors")
    paths = [saved("float32"), saved("int8"), change(copy, tmp_path / "a", with_config(sample_rate=16000.0))]
    paths.append(change(copy, tmp_path / "b", lambda tensors: tensors[FEED].mul_(1.001)))
    identities = [read_checkpoint(Path(path)).identity for path in (copy, *paths)]
    assert identities[0] == identities[1] and len(set(identities)) == 4


@pytest.mark.parametrize(
    "edit, problem",
    [
        (lambda tensors: tensors.pop(SAVED_CONFIG), f": {SAVED_CONFIG}: has no {SAVED_CONFIG}|: has no {SAVED_CONFIG}"),
        (lambda tensors: tensors.pop("tokenizer.model"), "has no tokenizer.model"),
        (lambda tensors: tensors.pop("joint.pred.bias"), "lacks joint.pred.bias"),
        (lambda tensors: tensors.update(x=torch.zeros(1)), "has x, which the config does not describe"),
        (lambda tensors: tensors.pop(f"{FEED}{SCALES}"), f"lacks {FEED}{SCALES}"),
        (lambda tensors: tensors.update({FEED: tensors[FEED].float()}), f"has '{FEED}' in float32, not int8"),
        (lambda tensors: tensors.update({FEED: tensors[FEED].t()}), r"has shape \[128, 512\], the config requires"),
        (lambda tensors: tensors[f"{FEED}{SCALES}"].fill_(float("nan")), "has NaN or infinite values"),
        (lambda tensors: tensors.update({FEED: tensors[FEED][:0]}), "the config requires"),
        (with_config(dtype="float32"), "in int8, not float32"),
        (with_config(dtype="int4"), f"{SAVED_CONFIG}: has dtype: int4 .supported: float32"),
        (with_config(dtype=["int8"]), f"{SAVED_CONFIG}: has dtype: "),
        (with_config(target="os.system"), "has the model class system"),
        (lambda tensors: tensors.update({SAVED_CONFIG: torch.zeros(9, dtype=torch.uint8)}), "is not JSON"),
        (lambda tensors: tensors.update({"tokenizer.model": torch.zeros(9, dtype=torch.uint8)}), "not a sentencepiece"),
    ],
)
def test_broken_file_is_refused_in_one_line(saved, tmp_path, edit, problem):
    path = change(saved("int8"), tmp_path / "m.safetensors", edit)
    with pytest.raises(SetupError, match=problem) as error:
        Recognizer(path, CPU, options=ModelOptions(dtype=None if "int8" in OFFERED else "int8"))
    assert str(error.value).startswith(str(path)) and str(error.value).isprintable()


def test_file_that_is_cut_short_or_newer_is_refused(saved, tmp_path):
    path = tmp_path / "m.safetensors"
    content = saved("int8").read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(SetupError, match="m.safetensors: is cut short in"):
        Recognizer(path, CPU)
    path.write_bytes(content[:2000])
    with pytest.raises(SetupError, match="m.safetensors: is not a safetensors file, or cut short"):
        Recognizer(path, CPU)
    path.write_bytes(content.replace(b'"nemotron_npu":"1"', b'"nemotron_npu":"2"', 1))
    with pytest.raises(SetupError, match="m.safetensors: not a .nemo checkpoint: it was saved by a later version"):
        Recognizer(path, CPU)


def test_other_programs_read_the_file(saved):
    """The header is that of the format: no holes, each tensor aligned to its numbers."""
    with open(saved("int8"), "rb") as file:
        entries = sorted(read_header(file).values(), key=lambda entry: entry.offset)
        end = entries[0].offset
        assert end % 64 == 0
        for entry in entries:
            assert entry.offset == end
            end += entry.size
        assert end == os.path.getsize(saved("int8"))
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(saved("int8"), "pt") as file:
        assert file.get_tensor(FEED).dtype == torch.int8
