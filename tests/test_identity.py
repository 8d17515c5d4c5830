"""The digest of a model depends on its content, not on its path, and is computed without reading all weights."""

import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import torch
from checkpoints import edited
from golden_transformers import FOLDERS
from support import CLIP, DEMO
from test_weights import repack, saved, weights_by_torch

from nemotron_npu.checkpoint import identity
from nemotron_npu.checkpoint.config_reader import read_config
from nemotron_npu.checkpoint.load import read_checkpoint

PORTED = FOLDERS / "prompted"


def identity_of(path: Path) -> str:
    return identity.read_identity(path, read_config(path))


def extracted(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def with_one_weight_more(tiny: Path, path: Path) -> Path:
    weights = weights_by_torch(tiny)
    list(weights.values())[-1].view(-1)[0] += 1
    return repack(tiny, path, replaced={"model_weights.ckpt": saved(weights)})


def test_copies_have_one_identity(tiny, tmp_path):
    """A copy, the extracted folder, and the archive with its members in another order; the loaded model has it too."""
    own = identity_of(tiny)
    assert len(own) == 16 and int(own, 16)
    assert identity_of(Path(shutil.copy(tiny, tmp_path / "copy.nemo"))) == own
    assert identity_of(extracted(tiny, tmp_path / "folder")) == own
    assert read_checkpoint(tiny).identity == own


def test_another_config_tokenizer_or_weight_has_another(tiny, tmp_path):
    """One number of the config, one byte of the tokenizer, one of the weights."""
    with tarfile.open(tiny) as archive:
        member = next(m for m in archive if m.name.endswith("tokenizer.model"))
        tokenizer = archive.extractfile(member).read()
    broken = tokenizer[:-1] + bytes([tokenizer[-1] ^ 1])
    paths = [
        tiny,
        edited(tiny, tmp_path / "config.nemo", lambda config: config["decoding"]["greedy"].update(max_symbols=9)),
        repack(tiny, tmp_path / "tokenizer.nemo", replaced={"tokenizer.model": broken}),
        with_one_weight_more(tiny, tmp_path / "weight.nemo"),
    ]
    assert len({identity_of(path) for path in paths}) == 4


def test_weights_without_checksums_are_sampled(tiny, tmp_path):
    """``torch.serialization.set_crc32_options(False)`` writes zeros for them."""
    torch.serialization.set_crc32_options(False)
    try:
        weights = weights_by_torch(tiny)
        same = repack(tiny, tmp_path / "a.nemo", replaced={"model_weights.ckpt": saved(weights)})
        changed = with_one_weight_more(tiny, tmp_path / "b.nemo")
    finally:
        torch.serialization.set_crc32_options(True)
    assert identity_of(same) not in (identity_of(changed), identity_of(tiny))


def test_gzipped_archive_is_sampled(tiny, tmp_path):
    """It has an identity of its own, which is that of its copies."""
    packed = repack(tiny, tmp_path / "a.nemo", "w:gz")
    changed = repack(with_one_weight_more(tiny, tmp_path / "c.nemo"), tmp_path / "b.nemo", "w:gz")
    copy = Path(shutil.copy(packed, tmp_path / "copy.nemo"))
    assert identity_of(packed) == identity_of(copy) != identity_of(changed)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "model.safetensors"])
def test_folder_of_transformers_differs_with_each_file(tmp_path, name):
    """One byte of any of its files: white space, or one of a weight."""
    folder = Path(shutil.copytree(PORTED, tmp_path / "folder"))
    assert identity_of(folder) == identity_of(PORTED)
    content = bytearray((folder / name).read_bytes())
    content[-1:] = b"\n" + content[-1:] if name.endswith(".json") else bytes([content[-1] ^ 1])
    (folder / name).write_bytes(content)
    assert identity_of(folder) != identity_of(PORTED)


def test_resume_continues_with_a_copy_of_the_model_only(cli, tmp_path):
    """Documents have the identity; a copy of the model elsewhere is accepted, another one at the same path is not."""
    model = Path(shutil.copy(DEMO, tmp_path / "m.nemo"))
    options = [CLIP, "--device", "cpu", "--output_dir", tmp_path / "out", "--output_format", "json", "--resume"]
    assert cli(*options, "--model_path", model)[0] == 0
    document = json.loads((tmp_path / "out" / "digits.json").read_text())
    assert document["model_id"] == identity_of(DEMO)
    code, _, err = cli(*options)
    assert code == 0 and "1 done before" in err
    edited(DEMO, model, lambda config: config["decoding"]["greedy"].update(max_symbols=9))
    code, _, err = cli(*options, "--model_path", model)
    assert code == 2 and f"were made with model_id {document['model_id']}, this run has" in err


def test_samples_are_of_the_whole_file_and_few(tmp_path):
    """A sparse file of 3 GB takes no time; its first and its last byte count."""
    size = 3 << 30
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(size)
    found = set()
    for position in (0, size - 1):
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(b"x")
            file.flush()
            began = time.perf_counter()
            found.add(identity._samples(file, 0, size))
            assert time.perf_counter() - began < 1
    assert len(found) == 2 and all(len(part) < 5 << 20 for part in found)
    os.unlink(path)
