"""Folders of transformers give what the ``.nemo`` of the same weights gives: see golden_transformers.py."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_prompted import CONTEXTS, DATA
from golden_transformers import FOLDERS
from sentencepiece import SentencePieceProcessor
from shards import sharded
from support import DEMO, token_frames

from nemotron_npu.checkpoint.load import read_checkpoint
from nemotron_npu.checkpoint.tokenizer import pieces_of
from nemotron_npu.checkpoint.transformers_config import INDEX, WEIGHTS
from nemotron_npu.checkpoint.transformers_tokenizer import sentencepiece_model
from nemotron_npu.checkpoint.transformers_weights import mel_filters
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError
from nemotron_npu.recognizer import Recognizer, load_recognizer

PROMPTED = FOLDERS / "prompted"
SURROGATES = {f"\ud800{id}": id for id in range(96)}


@pytest.fixture
def plain(tmp_path):
    """The folder without prompts; its tokenizer is the same."""
    folder = tmp_path / "plain"
    shutil.copytree(FOLDERS / "plain", folder)
    shutil.copy(PROMPTED / "tokenizer.json", folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    """A copy of the whole folder."""
    return Path(shutil.copytree(PROMPTED, tmp_path / "folder"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_folder_has_config_and_weights_of_the_nemo():
    ours, nemo = read_checkpoint(PROMPTED), read_checkpoint(DATA / "prompted.nemo")
    assert sorted(ours.tensors) == sorted(nemo.tensors) and ours.tensors.mappings
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor.float(), nemo.tensors[name]), name
    assert pieces_of(ours.tokenizers[0]) == pieces_of(nemo.tokenizers[0])
    assert ours.config.prompts == nemo.config.prompts and ours.config.contexts == nemo.config.contexts
    assert ours.config.decoding.max_symbols == nemo.config.decoding.max_symbols


def test_weights_in_several_files_are_those_of_one(folder):
    whole = read_checkpoint(folder)
    sharded(folder)
    parts = read_checkpoint(folder)
    assert len(parts.tensors.mappings) == 3 and sorted(parts.tensors) == sorted(whole.tensors)
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in parts.tensors.items())
    assert len(parts.identity) == 16
    with open(folder / "model-00002-of-00003.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    assert read_checkpoint(folder).identity != parts.identity


@pytest.mark.parametrize(
    "weight_map, problem",
    [
        (None, "has no weight_map of files"),
        ([], "has no weight_map of files"),
        ({}, "has no weight_map of files"),
        ({"x": 3}, "has no weight_map of files"),
        ({"x": "../model.safetensors"}, "has no ../model.safetensors"),
        ({"x": "/etc/passwd"}, "has no /etc/passwd"),
        ({"x": "other.safetensors"}, "has no other.safetensors"),
        ({str(n): f"{n}.safetensors" for n in range(2000)}, "names 2,000 files"),
    ],
)
def test_index_that_makes_no_sense_is_refused(folder, weight_map, problem):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / WEIGHTS).unlink()
    with pytest.raises(SetupError, match=problem) as error:
        read_checkpoint(folder)
    assert str(error.value).startswith(str(folder)) and str(error.value).isprintable()


def test_tensor_in_two_files_is_refused(folder):
    index = sharded(folder)
    index["weight_map"]["x"] = "copy.safetensors"
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "copy.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(SetupError, match="has a tensor twice"):
        read_checkpoint(folder)


@pytest.mark.parametrize("prompt, context", [("auto", CONTEXTS[0]), ("de-DE", CONTEXTS[0]), ("auto", CONTEXTS[3])])
def test_tokens_equal_nemo(clip, prompt, context):
    """NeMo 3.0.0's, of the ``.nemo`` of the same weights."""
    options = ModelOptions(language=prompt, chunk_ms=80 * (context[1] + 1))
    found = token_frames(Recognizer(PROMPTED, "cpu", options=options).transcribe(clip))
    with np.load(DATA / "prompted.npz") as golden:
        expected = golden[f"tokens {prompt} {context}"]
    assert len(expected) and found == [(int(id), int(frame)) for id, frame in expected]


def test_nemo_engine_takes_the_folder(plain, clip):
    """Its tokens are the native engine's."""
    nemo = load_recognizer(plain, "cpu", options=ModelOptions(engine="nemo"))
    native = Recognizer(plain, "cpu")
    ours, theirs = native.transcribe(clip), nemo.transcribe(clip)
    assert token_frames(ours) == token_frames(theirs) and ours.text == theirs.text and token_frames(ours)


def test_tokenizer_spells_as_the_original():
    """That of the demo model is made of byte pairs."""
    ours = SentencePieceProcessor()
    ours.LoadFromSerializedProto(sentencepiece_model((FOLDERS / "demo" / "tokenizer.json").read_bytes(), 52))
    original = read_checkpoint(DEMO).tokenizers[0]
    for text in ("three one four", "seven eight  nine zero oh", "Four FIVE", "\ufb01ve", ""):
        assert ours.encode(text) == original.encode(text), text
        assert ours.decode(original.encode(text)) == original.decode(original.encode(text)), text
    assert ours.unk_id() == original.unk_id()


def test_filters_are_those_of_nemo(tiny):
    for path in (DEMO, tiny):
        filters = read_checkpoint(path).tensors["preprocessor.featurizer.fb"][0].numpy()
        assert np.array_equal(mel_filters(16000, 512, len(filters)), filters)


def test_selected_lookahead_is_the_default(folder):
    change(folder / "processor_config.json", default_num_lookahead_tokens=6)
    assert list(read_checkpoint(folder).config.contexts) == [560, 320, 80, 1120]


def test_added_tokens_that_are_no_text_are_passed_over(folder):
    change(folder / "tokenizer.json", added_tokens=[{"content": ["x"]}, {"special": 1}, 7])
    assert len(read_checkpoint(folder).tokenizers[0]) == 96


def test_folder_without_processor_runs_at_its_default(plain):
    (plain / "processor_config.json").unlink()
    assert list(read_checkpoint(plain).config.contexts) == [320]


@pytest.mark.parametrize(
    "file, values, problem",
    [
        ("config.json", {"model_type": "parakeet_tdt"}, "has the model_type parakeet_tdt .supported: nemotron_asr_str"),
        ("config.json", {"model_type": ["x"]}, "has the model_type"),
        (
            "config.json",
            {"vocab_size": 1 << 31, "blank_token_id": (1 << 31) - 1},
            "vocab_size: 2147483647, which is too",
        ),
        (
            "config.json",
            {"quantization_config": {"quant_method": "gptq"}},
            "has a quantization_config .use a",
        ),
        ("config.json", {"vocab_size": 100, "blank_token_id": 99}, "tokenizer.json: lacks token 96 of 99"),
        ("config.json", {"blank_token_id": 0}, "has blank_token_id: 0, not the last"),
        ("config.json", {"vocab_size": "many"}, "has vocab_size: many, not a count"),
        ("config.json", {"encoder_config": 7}, "has encoder_config: 7, not its parts"),
        ("config.json", {"encoder_config": {"hidden_act": "gelu"}}, "has encoder_config.hidden_act: gelu"),
        ("config.json", {"encoder_config": {"hidden_size": 0}}, "not supported"),
        ("config.json", {"decoder_hidden_size": 32}, "model.safetensors: has .* numbers in decoder.prediction"),
        ("processor_config.json", {"feature_extractor": {"mel_filters_dtype": "bfloat16"}}, "mel_filters_dtype"),
        ("processor_config.json", {"prompt_dictionary": {"x y": 1}}, "has the prompt x y, not a word"),
        ("processor_config.json", {"supported_num_lookahead_tokens": [3, "0"]}, "att_context_size"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "tokenizer.json: has no vocabulary of byte pairs"),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "not base64"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"\ud800": 0}}}, "lacks token 1 of 96"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": SURROGATES}}, "has a token '.ud8000', which is not text"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": SURROGATES, "merges": [[1, 2]]}}, "has a merge that"),
        ("tokenizer.json", {"added_tokens": [{"content": ["x"]}], "model": {}}, "has no vocabulary"),
        ("tokenizer.json", {"added_tokens": 3}, "has added_tokens that are no list"),
    ],
)
def test_strange_values_are_refused(folder, file, values, problem):
    change(folder / file, **values)
    with pytest.raises(SetupError, match=problem):
        read_checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_broken_json_is_refused(folder, file, text):
    (folder / file).write_bytes(text.encode("latin1"))
    with pytest.raises(SetupError, match="is not JSON|is not a mapping"):
        read_checkpoint(folder)


@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(SetupError, match=file):
        read_checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_one_file_of_a_folder_is_refused(folder, file):
    with pytest.raises(SetupError, match=rf"{file}: .* one file of a model's folder .name that folder.$"):
        read_checkpoint(folder / file)


def packed(header, data=b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is not a safetensors file, or cut short"),
        (b"\xff" * 64, "is not a safetensors file, or cut short"),
        (packed(b"[]"), "is not a mapping"),
        (packed({"a": entry([4], 0, 16)}), "is cut short in 'a'"),
        (packed({"a": entry([4], 0, 12)}, bytes(12)), "makes no sense"),
        (packed({"a": entry([-2, -2], 0, 16)}, bytes(16)), "makes no sense"),
        (packed({"a": entry([1 << 47, 1 << 47], 0, 16)}, bytes(16)), "makes no sense"),
        (packed({"a": entry([4], 16, 0)}, bytes(16)), "makes no sense"),
        (packed({"a": entry([4], 0, 16, "F8_E4M3")}, bytes(16)), "has 'a' in F8_E4M3 .use a checkpoint in float32"),
        (packed({"a": entry([4], 0, 16, ["F32"])}, bytes(16)), "makes no sense"),
        (packed({"a": 3}), "makes no sense"),
        (packed({str(i): entry([256], 0, 1024) for i in range(200)}, bytes(1024)), "the same bytes many names"),
        (
            packed(
                {n: entry([1], 4 * i, 4 * i + 4) for i, n in enumerate(("encoder_projector.bias", "joint.enc.bias"))},
                bytes(8),
            ),
            "has a tensor twice",
        ),
    ],
)
def test_broken_safetensors_are_refused(folder, content, problem):
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(SetupError, match=problem):
        read_checkpoint(folder)


def test_unaligned_tensors_are_read(folder):
    """Other programs may pad the header as they like."""
    whole = (folder / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = whole[8 : 8 + length].rstrip()
    header += b" " * (1 + len(header) % 2)
    (folder / WEIGHTS).write_bytes(packed(header, whole[8 + length :]))
    ours, before = read_checkpoint(folder).tensors, read_checkpoint(PROMPTED).tensors
    assert all(torch.equal(ours[name], before[name]) for name in before)
