"""``model_config.yaml`` as dataclasses with ranges, and the chunk sizes that it offers.

NeMo would call whatever class a config names and allocate whatever it asks for.  Therefore ``config_reader`` checks the
form, the classes and the numbers that the engines compute with before either engine sees them.  Encoder, decoder and
features check which kinds of parts the native engine supports.  Defaults are NeMo 2.7.3's.

Every argument of NeMo's modules is a field, or in ``HARMLESS`` with the reason why it changes nothing here.  All
others, such as arguments of a later NeMo, are in ``unknown``, and the native engine does not support them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import SetupError
from .config_fields import anything, flag, number, part, word

MODEL_CLASS = "EncDecRNNTBPEModel"
HYBRID_CLASS = "EncDecHybridRNNTCTCBPEModel"
PROMPT_CLASS = "EncDecRNNTBPEModelWithPrompt"
AUTO = "auto"  # the prompt by which a model finds the language itself
MAX_SYMBOLS = 100  # tokens of a frame where the config sets no limit: broken weights would never end


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig:
    """AudioToMelSpectrogramPreprocessor; windows in seconds or, where these are null, in samples."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        *("window", "lowfreq", "highfreq", "mel_norm"),  # the window and the filters are stored tensors
        "pad_value",  # of features past the end, which the encoder masks
        *("rng", "nb_augmentation_prob", "nb_max_freq"),  # in training only
        *("stft_exact_pad", "stft_conv"),  # have no effect in NeMo either
    )
    unknown: tuple[str, ...] = ()
    target: str = word(key="_target_")
    sample_rate: int = number(16000, 16000, 16000)
    window_size: float | None = number(0.001, 1.0, 0.02, nullable=True)
    window_stride: float | None = number(0.001, 1.0, 0.01, nullable=True)
    n_window_size: int | None = number(16, 16000, None)
    n_window_stride: int | None = number(16, 16000, None)
    n_fft: int | None = number(16, 16384, None)
    features: int = number(1, 1024, 64)
    preemph: float | None = number(0.0, 1.0, 0.97, nullable=True)
    mag_power: float = number(0.01, 10.0, 2.0)
    dither: float = number(0.0, 1.0, 1e-5)
    pad_to: int = number(0, 1024, 16)
    frame_splicing: int = number(1, 16, 1)
    log: bool = flag(default=True)
    exact_pad: bool = flag(default=False)
    log_zero_guard_type: str = word("add")
    log_zero_guard_value: Any = anything(2**-24)
    normalize: Any = anything("per_feature")

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return self.n_window_size or int((self.window_size or 0) * self.sample_rate)

    @property
    def hop_length(self) -> int:
        """Samples from one window to the next."""
        return self.n_window_stride or int((self.window_stride or 0) * self.sample_rate)

    @property
    def hop_seconds(self) -> float:
        """Seconds from one window to the next, as the config has them."""
        return self.window_stride or self.hop_length / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """ConformerEncoder; contexts and kernels in encoder frames."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        *("use_bias", "untie_biases"),  # the biases are stored tensors
        *("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att", "att_context_probs"),  # in training only
        *("stochastic_depth_drop_prob", "stochastic_depth_mode", "stochastic_depth_start_layer"),  # the same
        *("reduction_position", "reduction_factor"),  # of a ``reduction``, which is not supported
        *("global_tokens", "global_tokens_spacing", "global_attn_separate"),  # of the local attention, nor is that
        *("subsampling_conv_chunking_factor", "sync_max_audio_length"),  # memory and time of NeMo's own code
        *("use_pytorch_sdpa", "use_pytorch_sdpa_backends"),  # the same
    )
    unknown: tuple[str, ...] = ()
    target: str = word(key="_target_")
    feat_in: int = number(1, 1024)
    feat_out: int = number(-1, 16384, -1)
    n_layers: int = number(1, 1000)
    d_model: int = number(2, 16384)
    n_heads: int = number(1, 1024, 4)
    ff_expansion_factor: int = number(1, 100, 4)
    subsampling: str = word("striding")
    subsampling_factor: int = number(1, 64)
    subsampling_conv_channels: int = number(-1, 2048, -1)
    causal_downsampling: bool = flag(default=False)
    reduction: str | None = word(None)
    self_attention_model: str = word("rel_pos")
    att_context_style: str = word("regular")
    att_context_size: Any = anything(None)
    conv_kernel_size: int = number(1, 1001, 31)
    conv_norm_type: str = word("batch_norm")
    conv_context_size: Any = anything(None)
    xscaling: bool = flag(default=True)
    pos_emb_max_len: int = number(1, 50_000, 5000)

    @property
    def contexts(self) -> list[list[int]]:
        """The [left, right] attention contexts in frames; -1 is no limit."""
        sizes = self.att_context_size or [-1, -1]
        return sizes if isinstance(sizes, list) and isinstance(sizes[0], list) else [sizes]

    @property
    def chunked(self) -> bool:
        """Whether frames attend to whole chunks."""
        return self.att_context_style == "chunked_limited"

    @property
    def channels(self) -> int:
        """Channels of the subsampling convolutions."""
        return self.d_model if self.subsampling_conv_channels == -1 else self.subsampling_conv_channels

    @property
    def output_width(self) -> int:
        """Width of an encoder frame."""
        return self.feat_out if self.feat_out > 0 else self.d_model


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """The prediction network: an LSTM."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "dropout",  # in training only
        *("t_max", "forget_gate_bias", "weights_init_scale", "hidden_hidden_bias_scale"),  # before training only
    )
    unknown: tuple[str, ...] = ()
    pred_hidden: int = number(1, 16384)
    pred_rnn_layers: int = number(1, 100)
    rnn_hidden_size: int | None = number(-1, 16384, None)
    context_size: int = number(1, 16, 1)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """RNNTDecoder."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        *("vocab_size", "blank_as_pad"),  # show in the shape of the embedding
        "random_state_sampling",  # in training only
    )
    unknown: tuple[str, ...] = ()
    target: str = word(key="_target_")
    prednet: PredictionConfig = part(PredictionConfig)
    normalization_mode: str | None = word(None)


@dataclass(frozen=True, kw_only=True)
class JointNetConfig:
    """The layers of the joint network."""

    HARMLESS: ClassVar[tuple[str, ...]] = ("encoder_hidden", "pred_hidden")  # show in the shapes of the weights
    unknown: tuple[str, ...] = ()
    joint_hidden: int = number(1, 16384)
    activation: str = word()
    dropout: Any = anything(None)


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """RNNTJoint."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        "num_classes",  # shows in the shapes of the weights
        "log_softmax",  # changes no order of scores
        *("fuse_loss_wer", "fused_batch_size", "experimental_fuse_loss_wer", "masking_prob"),  # in training only
        "preserve_memory",  # the same
    )
    unknown: tuple[str, ...] = ()
    target: str = word(key="_target_")
    jointnet: JointNetConfig = part(JointNetConfig)
    num_extra_outputs: int | None = number(0, 100, None)
    vocabulary: Any = anything(None)


@dataclass(frozen=True, kw_only=True)
class GreedyConfig:
    """Greedy decoding."""

    max_symbols: int | None = number(1, 1000, None)
    max_symbols_per_step: int | None = number(1, 1000, None)
    boosting_tree: Any = anything(None)


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search, which runs in NeMo only."""

    beam_size: int = number(1, 1000, 4)


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How tokens are chosen."""

    strategy: str = word("greedy_batch")
    big_blank_durations: Any = anything(None)
    greedy: GreedyConfig = part(GreedyConfig)
    beam: BeamConfig = part(BeamConfig)

    @property
    def is_greedy(self) -> bool:
        """Whether the best token of each step is taken."""
        return self.strategy in ("greedy", "greedy_batch")

    @property
    def boosts(self) -> bool:
        """Whether NeMo would prefer phrases that are kept in the config."""
        tree = self.greedy.boosting_tree
        return isinstance(tree, dict) and bool(tree.get("key_phrases_list") or tree.get("key_phrase_items_list"))

    @property
    def max_symbols(self) -> int:
        """Tokens that one frame may emit."""
        return self.greedy.max_symbols or self.greedy.max_symbols_per_step or MAX_SYMBOLS


@dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
    """``model_defaults``: the widths that the joint network takes, and the prompts of a multilingual model."""

    enc_hidden: int = number(1, 16384)
    pred_hidden: int = number(1, 16384)
    initialize_prompt_feature: bool = flag(default=False)
    num_prompts: int = number(1, 4096, 128)
    prompt_dictionary: Any = anything(None)


@dataclass(frozen=True)
class TokenizerConfig:
    """A sentencepiece tokenizer; ``files`` has the members of the archive by their key."""

    files: dict[str, str]

    @property
    def member(self) -> str:
        """The member that has the sentencepiece model."""
        return self.files["model_path"].removeprefix("nemo:")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checked config; ``raw`` has the parts that transcription needs, their references resolved, for NeMo."""

    target: str
    preprocessor: PreprocessorConfig
    encoder: EncoderConfig
    decoder: DecoderConfig
    joint: JointConfig
    decoding: DecodingConfig
    model_defaults: DefaultsConfig
    tokenizers: tuple[TokenizerConfig, ...]
    multilingual: bool
    """Whether there is a tokenizer for each language."""
    labels: Any
    raw: dict[str, Any]
    dtype: str | None = None
    """Dtype in which ``--save`` has written the weights of the matrix products; None if that left all as they were."""

    @property
    def class_name(self) -> str:
        """Name of NeMo's class of the model."""
        return self.target.rpartition(".")[2]

    @property
    def left_out(self) -> str:
        """Parts of the model that no engine loads, for a message; empty if there are none."""
        if self.class_name != HYBRID_CLASS:
            return ""
        return "the CTC decoder is left out (the RNN-T decoder transcribes)"

    @property
    def prompts(self) -> dict[str, int]:
        """Name of each prompt -> its index; empty for a model without prompts."""
        if self.class_name != PROMPT_CLASS or not self.model_defaults.initialize_prompt_feature:
            return {}
        return self.model_defaults.prompt_dictionary

    def choose_language(self, language: str | None) -> str | None:
        """Return the name of the prompt for a language, or of the default where it is None; None without prompts.

        Raises SetupError that names the languages on offer.
        """
        prompts = self.prompts
        if language is None:
            return AUTO if AUTO in prompts else next(iter(prompts), None)
        if language in prompts:
            return language
        subject = f"--language {language}"
        if not prompts:
            raise SetupError(subject, "this checkpoint has only one language")
        raise SetupError(subject, f"this checkpoint offers {', '.join(prompts)}")

    def choose_dtype(self, dtype: str | None) -> str:
        """Return the dtype of the matrix products, which is that of the weights or, by default, float32.

        Raises SetupError for another dtype than that of the weights that ``--save`` has written.
        """
        if dtype is None or dtype == self.dtype or self.dtype in (None, "float32"):
            return dtype or self.dtype or "float32"
        raise SetupError(
            f"--dtype {dtype}", f"this checkpoint was saved in {self.dtype}", "use the checkpoint that it was made from"
        )

    def check_float32(self, name: str) -> None:
        """Raise SetupError, in which the checkpoint has this name, unless it has all weights as NeMo needs them."""
        if self.dtype not in (None, "float32"):
            raise SetupError(
                name, f"was saved in {self.dtype}, NeMo needs float32", "use the checkpoint that it was made from"
            )

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio in one encoder frame: the mel stride times the encoder's subsampling."""
        return self.preprocessor.hop_seconds * self.encoder.subsampling_factor

    @property
    def contexts(self) -> dict[int, list[int]]:
        """Chunk length in ms -> [left, right] attention context in encoder frames, in the checkpoint's order.

        A chunk of right context R is R + 1 encoder frames.  The first is the default.  Empty for a checkpoint that does
        not attend in chunks.
        """
        if not self.encoder.chunked:
            return {}
        contexts = {}
        for left, right in self.encoder.contexts:
            contexts[round((right + 1) * self.frame_seconds * 1000)] = [left, right]
        return contexts

    def choose_context(self, chunk_ms: int | None) -> tuple[int | None, list[int] | None]:
        """Return (chunk_ms, [left, right]) for a chunk length, or for the checkpoint's default where it is None.

        Raises SetupError that names the chunk lengths on offer.
        """
        contexts = self.contexts
        if chunk_ms is None:
            return next(iter(contexts.items()), (None, None))
        if chunk_ms in contexts:
            return chunk_ms, contexts[chunk_ms]
        subject = f"--chunk_ms {chunk_ms}"
        if not contexts:
            raise SetupError(subject, "this checkpoint does not attend in chunks")
        offered = ", ".join(str(ms) for ms in sorted(contexts))
        raise SetupError(subject, f"this checkpoint offers {offered}")
