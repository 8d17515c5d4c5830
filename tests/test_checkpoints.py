"""``tests/checkpoints.py``: the random checkpoints have the shape of the published one."""

import torch
from checkpoints import ATT_CONTEXT_SIZES, FULL_PARAMETERS, FULL_SIZE, TINY_SIZE, nemotron_config
from support import CLIP, ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from nemotron_npu.audio import read_audio
from nemotron_npu.checkpoint.config_reader import read_config
from nemotron_npu.recognizer import load_recognizer


def test_full_size_config_has_the_published_parameter_count():
    """The full-size configuration gives 618,084,865 parameters."""
    from nemo.collections.asr.modules import ConformerEncoder, RNNTDecoder, RNNTJoint

    config = nemotron_config("", **FULL_SIZE)
    with FakeTensorMode():  # shapes only: no 2.4 GB
        encoder = ConformerEncoder(**{k: v for k, v in config["encoder"].items() if k != "_target_"})
        decoder = RNNTDecoder(config["decoder"]["prednet"], vocab_size=1024, blank_as_pad=True)
        joint = config["joint"]["jointnet"] | {"encoder_hidden": 1024, "pred_hidden": 640}
        joint = RNNTJoint(joint, num_classes=1024)
    assert sum(p.numel() for module in (encoder, decoder, joint) for p in module.parameters()) == FULL_PARAMETERS


def test_tiny_checkpoint_has_the_real_class_and_contexts(tiny):
    """It is smaller than 3 MB."""
    assert tiny.stat().st_size < 3_000_000
    config = read_config(tiny)
    assert config.target.endswith("EncDecRNNTBPEModel")
    assert config.encoder.att_context_size == ATT_CONTEXT_SIZES
    assert config.encoder.n_layers == TINY_SIZE["layers"]


def test_tiny_checkpoint_emits_about_three_tokens_a_second(tiny):
    """At least four of them are different."""
    transcript = load_recognizer(tiny, torch.device("cpu")).transcribe([read_audio(str(CLIP))])[0]
    assert 1 <= len(transcript.tokens) / transcript.duration <= 5
    assert len({token.id for token in transcript.tokens}) >= 4


def test_demo_checkpoint_has_the_real_class_and_contexts():
    """It is smaller than 16 MB, so that it fits into git."""
    path = ROOT / "demo" / "demo.nemo"
    assert path.stat().st_size < 16_000_000
    config = read_config(path)
    assert config.target.endswith("EncDecRNNTBPEModel")
    assert config.encoder.att_context_size == ATT_CONTEXT_SIZES
