"""The config of a ``.nemo`` file, and the chunk sizes that it offers."""

import io
import tarfile

import pytest
import yaml
from checkpoints import TINY_SIZE, nemotron_config

from nemotron_npu.checkpoint.config_reader import make_config, read_config
from nemotron_npu.checkpoint.refusal import Refusal
from nemotron_npu.errors import SetupError

VALUES = nemotron_config("", **TINY_SIZE) | {
    "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "tokenizer": {"type": "bpe", "model_path": "nemo:tokenizer.model"},
}


def config_with(**encoder):
    """The config with other values in its encoder."""
    return make_config({**VALUES, "encoder": {**VALUES["encoder"], **encoder}})


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_config_is_read_from_plain_and_gzipped_archive(tmp_path, mode):
    data = yaml.safe_dump(VALUES).encode()
    member = tarfile.TarInfo("./model_config.yaml")
    member.size = len(data)
    with tarfile.open(tmp_path / "m.nemo", mode) as tar:
        tar.addfile(member, io.BytesIO(data))
    assert read_config(tmp_path / "m.nemo") == make_config(VALUES)


def test_raw_config_is_what_was_read():
    """NeMo gets the parts that it needs, unchanged."""
    raw = make_config(VALUES).raw
    assert raw["encoder"] == VALUES["encoder"] and "train_ds" not in raw


def test_missing_values_take_nemos_defaults():
    values = {key: value for key, value in VALUES["encoder"].items() if key != "conv_kernel_size"}
    values["conv_context_size"] = None
    assert make_config({**VALUES, "encoder": values}).encoder.conv_kernel_size == 31


@pytest.mark.parametrize(
    "encoder, problem",
    [
        ({"n_layers": None}, "lacks encoder.n_layers"),
        ({"n_layers": True}, "has encoder.n_layers: True, not 1 to 1000"),
        ({"n_heads": None}, "has encoder.n_heads: null, not 1 to 1024"),
        ({"xscaling": 1}, "has encoder.xscaling: 1, not true or false"),
        ({"subsampling": "a b"}, "has encoder.subsampling: a b, not a word"),
        ({"n_layers": 1.5}, "has encoder.n_layers: 1.5, not 1 to 1000"),
    ],
)
def test_value_out_of_range_is_refused(encoder, problem):
    with pytest.raises(Refusal) as caught:
        config_with(**encoder)
    assert caught.value.problem == problem


def test_chunk_sizes_are_in_the_checkpoints_order():
    config = make_config(VALUES)
    assert config.contexts == {1120: [70, 13], 560: [70, 6], 160: [70, 1], 80: [70, 0]}
    assert config.frame_seconds == 0.08


def test_chunk_ms_follows_the_subsampling_factor():
    assert config_with(subsampling_factor=4, att_context_size=[[56, 3]]).contexts == {160: [56, 3]}


def test_single_context_need_not_be_a_list_of_lists():
    assert config_with(att_context_size=[70, 13]).contexts == {1120: [70, 13]}


def test_first_chunk_size_is_the_default():
    config = make_config(VALUES)
    assert config.choose_context(None) == (1120, [70, 13])
    assert config.choose_context(80) == (80, [70, 0])


def test_unknown_chunk_size_names_those_on_offer():
    with pytest.raises(SetupError, match="80, 160, 560, 1120"):
        make_config(VALUES).choose_context(100)


def test_checkpoint_without_chunks_offers_none():
    regular = config_with(att_context_style="regular", att_context_size=[-1, -1])
    assert regular.choose_context(None) == (None, None)
    with pytest.raises(SetupError, match="does not attend in chunks"):
        regular.choose_context(80)
