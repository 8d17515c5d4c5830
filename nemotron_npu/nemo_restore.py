"""A checked checkpoint -> a NeMo model.  NeMo opens no file but the tokenizer's, which are written for it."""

from __future__ import annotations

import copy
import inspect
import tempfile
from pathlib import Path
from typing import Any

import nemo
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector
from nemo.utils.model_utils import import_class_by_path
from omegaconf import OmegaConf
from sentencepiece import SentencePieceProcessor

from .checkpoint.archive import read_member
from .checkpoint.config import HYBRID_CLASS, MAX_SYMBOLS, ModelConfig
from .checkpoint.config_reader import CLASSES, TOKENIZER_FILES, tokenizer_parts
from .checkpoint.load import Checkpoint
from .checkpoint.saved import TOKENIZER as SAVED
from .checkpoint.tokenizer import MAX_TOKENIZER, pieces_of
from .checkpoint.transformers_config import TOKENIZER as PORTED
from .checkpoint.weights import Tensors, Weights
from .errors import SetupError, first_line, shown

NEWER = "needs a newer NeMo: pip install --upgrade nemo_toolkit"
RNNT_TARGET = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"


def restore(path: Path, checkpoint: Checkpoint) -> EncDecRNNTBPEModel:
    """Call NeMo's ``restore_from`` with what ``read_checkpoint`` has checked: NeMo itself never opens the file.

    It gets the parts of the config that transcribing needs, the tensors, and a temporary folder with the tokenizer's
    files.  Raises SetupError if the weights do not fit the model that NeMo builds from the config.
    """
    config = _config_for_nemo(checkpoint.config)
    _check_arguments(path, config)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for part, tokenizer in zip(tokenizer_parts(config), checkpoint.tokenizers, strict=True):
                _write_tokenizer(path, part, folder, tokenizer)
            connector = _Connector(path, checkpoint.tensors)
            connector.model_extracted_dir = folder
            return EncDecRNNTBPEModel.restore_from(
                str(path), OmegaConf.create(config), map_location="cpu", save_restore_connector=connector
            )
    except SetupError:
        raise
    except Exception as error:
        problem = f"NeMo cannot restore this checkpoint: {shown(first_line(error))}"
        raise SetupError(str(path), problem) from error


def _config_for_nemo(checked: ModelConfig) -> dict[str, Any]:
    """Return a copy of the parts of the config that NeMo needs, with a limit of tokens per frame."""
    config = copy.deepcopy(checked.raw)
    if checked.class_name == HYBRID_CLASS:  # without its CTC decoder
        config["target"] = RNNT_TARGET
    config.pop("labels", None)  # NeMo takes them from the tokenizer
    config["joint"].pop("vocabulary", None)
    decoding = config["decoding"] = config.get("decoding") or {"strategy": "greedy_batch"}
    decoding["compute_timestamps"] = False  # of words and segments, which would replace the frames of the tokens
    greedy = decoding["greedy"] = decoding.get("greedy") or {}
    if not greedy.get("max_symbols") and not greedy.get("max_symbols_per_step"):
        greedy["max_symbols"] = MAX_SYMBOLS
    return config


def _check_arguments(path: Path, config: dict[str, Any]) -> None:
    """Raise SetupError for a class or an argument that the installed NeMo lacks; drop arguments that are off."""
    try:
        import_class_by_path(config["target"])
    except (ImportError, AttributeError) as error:
        problem = f"NeMo {nemo.__version__} does not have {config['target'].rpartition('.')[2]}"
        raise SetupError(str(path), problem, NEWER) from error
    for name in CLASSES:
        part = config[name]
        known = inspect.signature(import_class_by_path(part["_target_"]).__init__).parameters
        for key, value in list(part.items()):
            if key in known or key == "_target_":
                continue
            if value is not None and value is not False:
                problem = f"NeMo {nemo.__version__} does not know {name}.{shown(key)}: {shown(value)}"
                raise SetupError(str(path), problem, NEWER)
            del part[key]


def _write_tokenizer(path: Path, part: dict, folder: str, tokenizer: SentencePieceProcessor) -> None:
    """Write the files that a tokenizer's config names into ``folder``, and have the config name them there."""
    part["dir"] = folder
    if part["model_path"] in (PORTED, SAVED):  # of files that NeMo does not read
        part["model_path"] = f"{folder}/tokenizer.model"
        Path(part["model_path"]).write_bytes(tokenizer.serialized_model_proto())
        Path(f"{folder}/vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces_of(tokenizer)[1:]), "utf-8")
        return
    for key in TOKENIZER_FILES:
        if part.get(key):
            name = part[key].removeprefix("nemo:")
            content = read_member(path, name, MAX_TOKENIZER)
            part[key] = f"{folder}/{name}"
            Path(part[key]).write_bytes(content)


class _Connector(SaveRestoreConnector):
    """Gives NeMo tensors that are read already, and checks that each of them fits the model."""

    def __init__(self, path: Path, tensors: Tensors) -> None:
        super().__init__()
        self.path = path
        self.tensors: Tensors | None = tensors

    def _load_state_dict_from_disk(self, *_: Any, **__: Any) -> Tensors | None:
        tensors = self.tensors
        self.tensors = None  # NeMo keeps its connector
        return tensors

    def load_instance_with_state_dict(self, instance: torch.nn.Module, state_dict: Tensors, *strict: bool) -> None:
        weights = Weights(state_dict, torch.device("cpu"), None)
        try:
            for name, weight in instance.state_dict().items():
                if weight.is_floating_point() or not weights.has(name):
                    weights(name, *weight.shape)
            weights.check_all_taken()
        except SetupError as error:
            raise SetupError(str(self.path), str(error)) from error
        super().load_instance_with_state_dict(instance, state_dict, *strict)
