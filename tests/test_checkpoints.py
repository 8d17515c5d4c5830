"""``tests/checkpoints.py``: the random checkpoints have the shape of the published one."""

import pytest
import torch
from checkpoints import ATT_CONTEXT_SIZES, FULL_PARAMETERS, FULL_SIZE, TINY_SIZE, nemotron_config
from support import CLIP, ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from nemotron_npu.audio import read_audio
from nemotron_npu.checkpoint.config_reader import read_config
from nemotron_npu.recognizer import load_recognizer


@pytest.mark.parametrize("pieces, prompted, published", [(1024, False, FULL_PARAMETERS), (13_087, True, 637_997_088)])
def test_full_size_config_has_the_published_parameter_count(pieces, prompted, published):
    """The second is the multilingual one, whose prompt layers follow the encoder."""
    from nemo.collections.asr.modules import ConformerEncoder, RNNTDecoder, RNNTJoint

    config = nemotron_config("", **FULL_SIZE)
    with FakeTensorMode():  # shapes only: no 2.4 GB
        encoder = ConformerEncoder(**{k: v for k, v in config["encoder"].items() if k != "_target_"})
        decoder = RNNTDecoder(config["decoder"]["prednet"], vocab_size=pieces, blank_as_pad=True)
        joint = config["joint"]["jointnet"] | {"encoder_hidden": 1024, "pred_hidden": 640}
        joint = RNNTJoint(joint, num_classes=pieces)
        modules = [encoder, decoder, joint]
        if prompted:
            modules += [torch.nn.Linear(1024 + 128, 2048), torch.nn.Linear(2048, 1024)]
    assert sum(p.numel() for module in modules for p in module.parameters()) == published


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
