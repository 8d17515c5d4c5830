"""Checkpoints that NeMo accepts are accepted: each case was written by NeMo and edited as users edit theirs."""

import dataclasses
import enum
import gzip
import inspect
import sys
import tarfile
import types
from collections import OrderedDict

import pytest
import torch
from checkpoints import (
    ATT_CONTEXT_SIZES,
    TINY_SIZE,
    add_published_sections,
    edited,
    edited_text,
    make_random_checkpoint,
)
from hostile_checkpoints import WEIGHTS, packed, saved
from support import token_frames

from nemotron_npu.checkpoint import config
from nemotron_npu.checkpoint.config_reader import read_config
from nemotron_npu.checkpoint.weights import read_weights
from nemotron_npu.engine import ModelOptions
from nemotron_npu.errors import SetupError, Unsupported
from nemotron_npu.recognizer import Recognizer, load_recognizer

CPU = torch.device("cpu")
NEMO = ModelOptions("nemo")


@pytest.fixture(scope="module")
def short(clip):
    """The first two seconds of the bundled clip."""
    return clip[:32000]


@pytest.fixture(scope="module")
def expected(tiny_native, short):
    """Tokens and frames of the tiny checkpoint."""
    tokens = token_frames(tiny_native.transcribe(short))
    assert tokens
    return tokens


# ---------------------------------------------------------------- the config

SHARDS = "".join(
    f"\n  - {{type: nemo_tarred, manifest_filepath: /data/{i}/manifest__OP_0..511_CL_.json, weight: 0.5}}"
    for i in range(15_000)
)
TEXTS = {
    "a foreign optimizer": lambda text: text + "optim: {_target_: apex.optimizers.FusedAdam, lr: 0.1}\n",
    "8-bit Adam": lambda text: text + "optim: {_target_: bitsandbytes.optim.AdamW8bit}\n",
    "a callback": lambda text: text + "trainer: {callbacks: [{_target_: my.Callback}]}\n",
    "a dataset": lambda text: text + "validation_ds: {dataset: {_target_: my.Dataset}}\n",
    "more than 1 MB of shards": lambda text: text + f"train_ds:\n input_cfg:{SHARDS}\n",
    "aliases": lambda text: f"rate: &rate 16000\n{text.replace('  sample_rate: 16000', '  sample_rate: *rate')}",
    "anchors in a part that is left out": lambda text: (
        f"train_ds: {{a: [1, {{rate: &rate 16000}}]}}\n{text.replace('  sample_rate: 16000', '  sample_rate: *rate')}"
    ),
    "merge keys": lambda text: (
        f"base: &base {{sample_rate: 16000}}\n{text.replace('  sample_rate: 16000', '  <<: *base')}"
    ),
    "a float without a point": lambda text: text.replace("dither: 1.0e-05", "dither: 1e-05"),
    "a reference": lambda text: text.replace("feat_in: 128", "feat_in: ${preprocessor.features}"),
    "a reference beside it": lambda text: text.replace("d_model: 64", "d_model: ${.width}").replace(
        "encoder:\n", "encoder:\n  width: ${model_defaults.enc_hidden}\n"
    ),
    "a reference into training data": lambda text: (
        text.replace("  sample_rate: 16000", "  sample_rate: ${train_ds.rates[1]}")
        + "train_ds: {rates: [8000, 16000]}\n"
    ),
    "a reference in a text": lambda text: (
        text.replace("nemo.collections.asr.modules.RNNTJoint", "nemo.collections.asr.modules.${kind}Joint")
        + "kind: RNNT\n"
    ),
}


@pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS)
def test_config_that_stands_for_the_same_is_read(tiny, tmp_path, change):
    def changed(text: bytes) -> bytes:
        after = change(text.decode())
        assert after != text.decode()
        return after.encode()

    read, plain = read_config(edited_text(tiny, tmp_path / "m.nemo", changed)), read_config(tiny)
    assert (read.preprocessor, read.decoder, read.joint) == (plain.preprocessor, plain.decoder, plain.joint)
    assert read.encoder.unknown in ((), ("encoder.width: 64",))
    assert read.encoder.d_model == plain.encoder.d_model and read.encoder.feat_in == plain.encoder.feat_in


@pytest.mark.parametrize(
    "part, changes",
    [
        ("encoder", {"_target_": "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter"}),
        ("preprocessor", {"normalize": "None"}),
        ("encoder", {"conv_context_style": None, "att_chunk_context_size": False}),
    ],
)
def test_part_that_computes_the_same_runs_natively(tiny, tmp_path, short, expected, part, changes):
    path = edited(tiny, tmp_path / "m.nemo", lambda config: config[part].update(changes))
    assert token_frames(Recognizer(path, CPU).transcribe(short)) == expected


@pytest.mark.parametrize(
    "part, changes, problem",
    [
        ("preprocessor", {"frame_splicing": 2}, "spliced feature frames"),
        ("decoding", {"big_blank_durations": [2, 4]}, "decoding.big_blank_durations: [2, 4]"),
        (
            "decoding",
            {"greedy": {"max_symbols": 10, "boosting_tree": {"key_phrases_list": ["seven"]}}},
            "phrases that decoding.greedy.boosting_tree prefers",
        ),
    ],
)
def test_what_only_nemo_computes_is_left_to_it(tiny, tmp_path, part, changes, problem):
    """It is named, neither ignored nor taken for damage."""

    def change(config: dict) -> None:
        config[part].update(changes)
        config["encoder"]["feat_in"] *= config["preprocessor"]["frame_splicing"]

    with pytest.raises(Unsupported) as caught:
        Recognizer(edited(tiny, tmp_path / "m.nemo", change), CPU)
    assert str(caught.value) == problem


UNUSUAL = {
    "encoder": {
        **{"feat_out": 48, "use_bias": True, "xscaling": True, "n_heads": 8, "ff_expansion_factor": 2},
        **{"att_context_size": [[-1, 13], [-1, 1]], "subsampling_conv_channels": -1, "pos_emb_max_len": 16},
    },
    "model_defaults": {"enc_hidden": 48},
    "preprocessor": {
        **{"window_size": None, "n_window_size": 480, "window_stride": None, "n_window_stride": 200, "mag_power": 1},
        **{"preemph": None, "pad_to": 16, "log_zero_guard_value": "eps", "normalize": None, "window": "blackman"},
    },
    "decoder": {"prednet": {"pred_hidden": 32, "pred_rnn_layers": 3, "t_max": 10, "dropout": 0.0}},
    "joint": {"jointnet": {"joint_hidden": 32, "activation": "sigmoid"}, "log_softmax": True},
    "decoding": {"strategy": "greedy", "greedy": {"max_symbols": None, "max_symbols_per_step": 2}},
}
"""Values that NeMo takes and that the published file does not have."""


def test_unusual_values_give_nemos_results(tmp_path, clip):
    """All of them in one checkpoint that NeMo has saved."""
    path = tmp_path / "unusual.nemo"
    make_random_checkpoint(path, TINY_SIZE, seed=1, **UNUSUAL)
    ours, theirs = Recognizer(path, CPU), load_recognizer(path, CPU, options=NEMO)
    assert ours.parameters == theirs.parameters and ours.frame_seconds == 0.1
    encoded, frames = ours.encode(*ours.preprocess([clip]))
    expected, their_frames = theirs.encode(*theirs.preprocess([clip]))
    assert frames.tolist() == their_frames.tolist()
    assert float((encoded - expected).abs().max()) < 1e-4
    tokens = token_frames(ours.transcribe(clip))
    assert len(tokens) > 3 and tokens == token_frames(theirs.transcribe(clip))


# ---------------------------------------------------------------- arguments

MODULES = {
    "ConformerEncoder": config.EncoderConfig,
    "RNNTDecoder": config.DecoderConfig,
    "RNNTJoint": config.JointConfig,
    "AudioToMelSpectrogramPreprocessor": config.PreprocessorConfig,
}
REFUSED = {"use_torchaudio"}
"""Arguments that NeMo has and the native engine lacks: refused by name, unless they are off."""


@pytest.mark.parametrize("name", MODULES)
def test_each_argument_of_nemo_is_honoured_or_harmless(name):
    """The rest is refused by name: no argument of NeMo's modules is ignored by accident."""
    modules = pytest.importorskip("nemo.collections.asr.modules")
    arguments = set(inspect.signature(getattr(modules, name).__init__).parameters) - {"self"}
    kind = MODULES[name]
    honoured = {field.name for field in dataclasses.fields(kind)} - {"unknown", "target"}
    harmless = set(kind.HARMLESS)
    assert len(arguments) > 4 and not honoured & harmless
    assert arguments - honoured - harmless - REFUSED == set()
    assert honoured | harmless <= arguments, "nothing is listed that NeMo lacks"


@pytest.mark.parametrize(
    "part, key, value",
    [
        ("encoder", "conv_context_style", "dcc"),
        ("encoder", "att_chunk_context_size", [[70], [1, 2], [0, 1]]),
        ("decoder", "gating", True),
        ("joint", "hainan", 1),
        ("preprocessor", "use_torchaudio", True),
    ],
)
def test_unknown_argument_is_refused_by_name(tiny, tmp_path, part, key, value):
    path = edited(tiny, tmp_path / "m.nemo", lambda config: config[part].update({key: value}))
    with pytest.raises(Unsupported) as caught:
        Recognizer(path, CPU)
    assert str(caught.value) == f"{part}.{key}: {value}"


def test_argument_of_a_newer_nemo_is_named(tiny, tmp_path):
    """Where NeMo is too old for the checkpoint, the line names the argument and the remedy."""
    pytest.importorskip("nemo")
    path = edited(tiny, tmp_path / "m.nemo", lambda config: config["encoder"].update(of_tomorrow="dcc"))
    lines: list[str] = []
    with pytest.raises(SetupError, match=r"NeMo .* does not know encoder.of_tomorrow: dcc \(needs a newer NeMo"):
        load_recognizer(path, CPU, announce=lines.append)
    assert lines == ["m.nemo: not supported by the native engine: encoder.of_tomorrow: dcc (running on NeMo)"]


# ---------------------------------------------------------------- decoding


def test_beam_search_is_decoded_greedily_with_one_line(tiny, tmp_path, short, expected):
    """NeMo's own engine has the beam search, and gives the best of its hypotheses."""
    beam = {"strategy": "malsd_batch", "beam": {"beam_size": 2, "return_best_hypothesis": False}}
    path = edited(tiny, tmp_path / "m.nemo", lambda config: config["decoding"].update(beam))
    lines: list[str] = []
    recognizer = load_recognizer(path, CPU, announce=lines.append)
    assert token_frames(recognizer.transcribe(short)) == expected
    (line,) = lines
    assert line.startswith("m.nemo: decoding.strategy: malsd_batch is not supported by the native engine")
    pytest.importorskip("nemo")
    nemo = load_recognizer(path, CPU, options=NEMO)
    assert nemo.transcribe(short).tokens
    nemo.decode_greedily()
    assert token_frames(nemo.transcribe(short)) == expected


def test_model_saved_after_timestamps_runs_on_nemo(tiny, tmp_path, short, expected):
    """``transcribe(timestamps=True)`` leaves its setting in the config."""
    pytest.importorskip("nemo")
    after = {"compute_timestamps": True, "preserve_alignments": True}
    path = edited(tiny, tmp_path / "m.nemo", lambda config: config["decoding"].update(after))
    assert token_frames(load_recognizer(path, CPU, options=NEMO).transcribe(short)) == expected


# ---------------------------------------------------------------- weights and files


@pytest.fixture
def torch_npu_pickles(monkeypatch):
    """The two names that torch_npu pickles tensors by: ``(rebuild, format)``."""
    names = "torch_npu", "torch_npu.utils", "torch_npu.utils.storage", "torch_npu.npu", "torch_npu.npu._format"
    modules = {name: types.ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def _rebuild_npu_tensor(*_):
        raise AssertionError("only its name is used")

    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = names[2], "_rebuild_npu_tensor"
    modules[names[2]]._rebuild_npu_tensor = _rebuild_npu_tensor
    layout = enum.IntEnum("Format", {"ND": 2, "FRACTAL_NZ": 29}, module=names[4])
    modules[names[4]].Format = layout
    return _rebuild_npu_tensor, layout


class OnNpu:
    """Pickles a tensor as torch_npu 2.8 does one on an NPU."""

    def __init__(self, tensor, rebuild, layout):
        storage = tensor.contiguous()._typed_storage()
        self.call = rebuild, (storage, 0, tuple(tensor.shape), tensor.stride(), False, OrderedDict(), layout)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout, readable", [("ND", True), ("FRACTAL_NZ", False)])
def test_weights_saved_on_an_npu_are_read(tiny, tmp_path, torch_npu_pickles, layout, readable):
    """Those in a private format are refused."""
    rebuild, formats = torch_npu_pickles
    plain = read_weights(tiny)
    content = saved({name: OnNpu(tensor, rebuild, formats[layout]) for name, tensor in plain.items()})
    with tarfile.open(tiny) as archive:
        files = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}
    assert b"_rebuild_npu_tensor" in content and b"torch_npu.npu._format" in content
    path = tmp_path / "m.nemo"
    path.write_bytes(packed(files | {WEIGHTS: content}))
    if not readable:
        with pytest.raises(SetupError, match="private format of an NPU"):
            read_weights(path)
        return
    read = read_weights(path)
    assert list(read) == list(plain) and all(torch.equal(read[name], plain[name]) for name in plain)


def test_extracted_checkpoint_is_read_from_its_folder(tiny, tmp_path, short, expected):
    folder = tmp_path / "extracted"
    with tarfile.open(tiny) as archive:
        archive.extractall(folder, filter="data")
    assert token_frames(load_recognizer(folder, "cpu").transcribe(short)) == expected


# ---------------------------------------------------------------- the published file


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An imitation of the published file with all its layers and members, and tiny ones."""
    folder = tmp_path_factory.mktemp("published")
    make_random_checkpoint(folder / "plain.nemo", TINY_SIZE, encoder={"n_layers": 24})
    return folder / "plain.nemo"


@pytest.mark.parametrize("month", ["january", "march"])
def test_imitation_of_the_published_file_runs_natively(published, tmp_path, month, short):
    """It has 653 tensors, the members and the sections of the config that are known of the real one."""
    path = edited(published, tmp_path / "m.nemo", lambda config: add_published_sections(config, month))
    with tarfile.open(path) as archive:
        names = sorted(member.name for member in archive)
    assert names[-2:] == ["./model_config.yaml", "./model_weights.ckpt"] and len(names) == 5
    hexadecimal = {name.removeprefix("./").partition("_")[0] for name in names[:3]}
    assert all(len(digits) == 32 for digits in hexadecimal)
    assert sorted(name.partition("_")[2] for name in names[:3]) == ["tokenizer.model", "tokenizer.vocab", "vocab.txt"]
    assert len(read_weights(path)) == 653
    lines: list[str] = []
    recognizer = Recognizer(path, CPU, announce=lines.append)
    assert recognizer.transcribe(short).tokens and not lines
    assert list(recognizer.config.contexts.values()) == ATT_CONTEXT_SIZES
    zipped = tmp_path / "gzipped.nemo"
    zipped.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert read_config(zipped) == recognizer.config
