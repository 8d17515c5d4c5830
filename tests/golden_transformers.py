"""Write what transformers saves for prompted.nemo, for the same without prompts, and for the demo model's tokenizer.

    python tests/golden_transformers.py     # needs transformers 5.13 or later, which NeMo 2.7.3 does not run with

transformers' own classes write every file of data/transformers and take the weights with none left over.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from support import DEMO, ROOT

from nemotron_npu.checkpoint.load import read_checkpoint

DATA = ROOT / "tests" / "data"
FOLDERS = DATA / "transformers"
ALL = ("config.json", "processor_config.json", "tokenizer.json", "model.safetensors")
NEEDED = {"demo": ("tokenizer.json",), "plain": ("config.json", "processor_config.json", "model.safetensors")}
NAMES = {  # NeMo's names -> those of transformers
    r"encoder\.pre_encode\.conv\.0\.": "encoder.subsampling.conv_in.",
    r"encoder\.pre_encode\.conv\.2\.": "encoder.subsampling.layers.0.depthwise_conv.",
    r"encoder\.pre_encode\.conv\.3\.": "encoder.subsampling.layers.0.pointwise_conv.",
    r"encoder\.pre_encode\.conv\.5\.": "encoder.subsampling.layers.1.depthwise_conv.",
    r"encoder\.pre_encode\.conv\.6\.": "encoder.subsampling.layers.1.pointwise_conv.",
    r"encoder\.pre_encode\.out\.": "encoder.subsampling.linear.",
    r"\.conv\.batch_norm\.": ".conv.norm.",
    r"\.linear_([qkv])\.": r".\1_proj.",
    r"\.linear_out\.": ".o_proj.",
    r"\.linear_pos\.": ".relative_k_proj.",
    r"\.pos_bias_([uv])$": r".bias_\1",
    r"decoder\.prediction\.embed\.": "decoder.embedding.",
    r"decoder\.prediction\.dec_rnn\.lstm\.": "decoder.lstm.",
    r"joint\.enc\.": "encoder_projector.",
    r"joint\.pred\.": "decoder.decoder_projector.",
    r"joint\.joint_net\.2\.": "joint.head.",
    r"prompt_kernel\.0\.": "prompt_projector.linear_1.",
    r"prompt_kernel\.2\.": "prompt_projector.linear_2.",
}


def hub_name(name: str) -> str:
    """Return the name that a tensor of NeMo has in transformers."""
    for pattern, new in NAMES.items():
        name = re.sub(pattern, new, name)
    return name


def hub_tensors(tensors: dict) -> dict:
    """Return the tensors of a ``.nemo`` by their names in transformers; it computes window and filters itself."""
    return {hub_name(name): tensor for name, tensor in tensors.items() if not name.startswith("preprocessor.")}


def write_folder(nemo: Path, folder: Path, *, prompted: bool) -> None:
    """Write the folder that transformers makes of a ``.nemo``, with or without its prompts."""
    import transformers

    checkpoint = read_checkpoint(nemo)
    config = checkpoint.config.raw
    encoder = config["encoder"]
    pairs = encoder["att_context_size"]
    prompts: dict[str, Any] = {}
    if prompted:
        defaults = config["model_defaults"]
        prompts = {"num_prompts": defaults["num_prompts"], "prompt_dictionary": defaults["prompt_dictionary"]}
    processor_class = transformers.Nemotron3_5AsrProcessor if prompted else transformers.NemotronAsrStreamingProcessor
    processor_class(
        feature_extractor=transformers.NemotronAsrStreamingFeatureExtractor(
            feature_size=encoder["feat_in"], win_length=400, hop_length=160, n_fft=512
        ),
        tokenizer=_tokenizer(checkpoint.tokenizers[0].serialized_model_proto(), folder),
        supported_num_lookahead_tokens=[right for _, right in pairs],
        default_num_lookahead_tokens=pairs[0][1],
        **prompts,
    ).save_pretrained(folder)
    prednet = config["decoder"]["prednet"]
    blank = checkpoint.tokenizers[0].get_piece_size()
    options: dict[str, Any] = {}
    if prompted:
        options = {"num_prompts": prompts["num_prompts"], "prompt_intermediate_size": 2 * encoder["d_model"]}
        options["default_prompt_id"] = prompts["prompt_dictionary"]["auto"]
    config_class = transformers.Nemotron3_5AsrConfig if prompted else transformers.NemotronAsrStreamingConfig
    model_class = transformers.Nemotron3_5AsrForRNNT if prompted else transformers.NemotronAsrStreamingForRNNT
    model = model_class(
        config_class(
            vocab_size=blank + 1,
            blank_token_id=blank,
            decoder_hidden_size=prednet["pred_hidden"],
            num_decoder_layers=prednet["pred_rnn_layers"],
            max_symbols_per_step=config["decoding"]["greedy"]["max_symbols"],
            encoder_config=encoder_config(encoder).to_dict(),
            **options,
        )
    )
    tensors = hub_tensors(checkpoint.tensors)
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if prompted or "prompt" not in name})
    model.bfloat16().save_pretrained(folder)  # the numbers of prompted.nemo are bfloat16 ones


def encoder_config(encoder: dict) -> Any:
    """Return transformers' configuration of an encoder from NeMo's."""
    import transformers

    pairs = encoder["att_context_size"]
    return transformers.NemotronAsrStreamingEncoderConfig(
        hidden_size=encoder["d_model"],
        num_hidden_layers=encoder["n_layers"],
        num_attention_heads=encoder["n_heads"],
        intermediate_size=encoder["d_model"] * encoder["ff_expansion_factor"],
        attention_bias=encoder["use_bias"],
        convolution_bias=encoder["use_bias"],
        conv_kernel_size=encoder["conv_kernel_size"],
        subsampling_conv_channels=encoder["subsampling_conv_channels"],
        num_mel_bins=encoder["feat_in"],
        scale_input=encoder["xscaling"],
        sliding_window=pairs[0][0] + 1,
        default_num_lookahead_tokens=pairs[0][1],
    )


def _tokenizer(model: bytes, folder: Path):
    """Return the tokenizer that transformers makes of a sentencepiece model, with the tokens that it adds."""
    from tokenizers import AddedToken
    from transformers import ParakeetTokenizer
    from transformers.convert_slow_tokenizer import ParakeetConverter

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        Path(file.name).write_bytes(model)
        tokenizer = ParakeetTokenizer(tokenizer_object=ParakeetConverter(file.name).converted())
    added = {name: AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<pad>", "<blank>")}
    for name, token in added.items():
        if tokenizer.convert_tokens_to_ids(name) is None:
            tokenizer.add_tokens([token])
    tokenizer.add_special_tokens({"pad_token": added["<pad>"], "unk_token": added["<unk>"]})
    tags = sorted(piece for piece in tokenizer.get_vocab() if re.fullmatch("<[a-z]{2,3}-[A-Za-z]{2}>", piece))
    if tags:
        tokens = [AddedToken(tag, normalized=False, special=True) for tag in tags]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer


def main() -> None:
    shutil.rmtree(FOLDERS, ignore_errors=True)
    write_folder(DATA / "prompted.nemo", FOLDERS / "prompted", prompted=True)
    write_folder(DATA / "prompted.nemo", FOLDERS / "plain", prompted=False)
    demo = read_checkpoint(DEMO).tokenizers[0].serialized_model_proto()
    _tokenizer(demo, FOLDERS).save_pretrained(FOLDERS / "demo")
    for path in [*FOLDERS.rglob("*")]:
        if path.is_file() and path.name not in NEEDED.get(path.parent.name, ALL):
            path.unlink()
    for path in sorted(FOLDERS.rglob("*.*")):
        print(f"{path.relative_to(FOLDERS)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
