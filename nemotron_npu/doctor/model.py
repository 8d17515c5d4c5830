"""What ``--doctor`` tries with the model itself: is it whole, does it fit, does the device compute it."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from ..checkpoint.load import attention_contexts, is_hub_id, read_config, read_weights
from ..device import choose_device, device_name
from ..dtypes import instructions, left_out, offered_dtypes
from ..errors import SetupError, Unsupported, first_line
from ..host.packages import can_import, install_command
from ..host.program import command
from ..host.provenance import processor, sha256
from ..host.resources import cores, free_memory
from ..precision.tolerances import BOUNDS
from .host import GB, OK, PROBLEM, WARNING, Finding, Host, NotChecked, anonymous, said

DEMO_WORDS = "three one four one five nine two six"
SPACE = {"native": (1.15, 0.3 * GB), "nemo": (2.0, 0.9 * GB)}
"""Peak memory of a process: so many times the weights in float32, and so many bytes.  README, Speed."""
DEVICE_SPACE = 0.5 * GB  # beside the weights: a block of one recording and its caches
ANOTHER = "download it again, or name another one: --model_path M.nemo"


def checkpoint(host: Host):
    try:
        path = host.checkpoint
        config = read_config(path)
    except SetupError as error:
        mend = f"{command()} --model_path {host.path}   (downloads it)" if is_hub_id(host.path) else ANOTHER
        yield Finding("checkpoint", PROBLEM, _unnamed(host, error), mend)
        return
    chunks = ", ".join(f"{ms}" for ms in sorted(attention_contexts(config)))
    chunks = f"chunks of {chunks} ms" if chunks else "for whole recordings"
    kind, size = config["target"].rpartition(".")[2], f"{path.stat().st_size:,} bytes"
    yield Finding("checkpoint", OK, f"{path.name}: {kind}, {chunks}, {size}")
    yield Finding("checkpoint", OK, f"SHA-256 {sha256(path)}")


def _unnamed(host: Host, error: Exception) -> str:
    """What is wrong with the checkpoint, which is named by its file name only."""
    text = first_line(error)
    for path in (host.path, host.__dict__.get("checkpoint", host.path)):
        text = text.replace(str(path), Path(path).name)
    return anonymous(text)


def _weights_size(host: Host) -> float:
    """Bytes of the weights in float32."""
    if host.torch and host.config:
        try:
            return 4 * sum(tensor.numel() for tensor in read_weights(host.checkpoint).values())
        except SetupError:
            raise NotChecked("engine") from None


def memory(host: Host):
    weights = _weights_size(host)
    if host.device is not None and host.device.type != "cpu":
        free, total = getattr(host.torch, host.device.type).mem_get_info(host.device)
        need = weights + DEVICE_SPACE
        room = f"{free / GB:.1f} of {total / GB:.1f} GB free on {host.device}"
        found = f"{room}; this model needs about {need / GB:.1f} GB"
        tool = "npu-smi info" if host.device.type == "npu" else "nvidia-smi"
        mend = "" if free >= need else f"{tool}   (shows what else runs there)"
        yield Finding("memory", OK if free >= need else PROBLEM, found, mend)
    free, total, limited = free_memory()
    factor, more = SPACE[host.engine]
    need = factor * weights + more
    room = f"{free / GB:.1f} of {total / GB:.1f} GB free{' (the limit of a container)' if limited else ''}"
    found = f"{room}, {cores():g} cores; this model needs about {need / GB:.1f} GB"
    if free >= need:
        yield Finding("memory", OK, found)
    else:
        mend = "docker run --memory ...   (give the container more)" if limited else "ps aux --sort=-rss | head"
        if host.engine == "native" and host.torch and "int8" in offered_dtypes(host.torch.device("cpu")):
            mend += f"\n{command()} --dtype int8   (on a CPU it takes less than half)"
        yield Finding("memory", PROBLEM if total < need else WARNING, found, mend)


def engine(host: Host):
    """Loads the native engine on the CPU."""
    try:
        recognizer = _reference(host)
    except Unsupported as reason:
        found = f"not for the native engine: {said(reason)}"
        if can_import("nemo"):
            yield Finding("engine", WARNING, f"{found}: runs on NeMo", "--engine nemo")
        else:
            yield Finding("engine", PROBLEM, f"{found}, and NeMo is not installed", install_command("nemo"))
    except SetupError as error:
        yield Finding("engine", PROBLEM, _unnamed(host, error), ANOTHER)
    else:
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in read_weights(host.checkpoint).values())
        found = f"{recognizer.parameters:,} parameters, saved in {' and '.join(dtypes)}: the native engine runs it"
        yield Finding("engine", OK, found)


def _reference(host: Host):
    """The native engine on the CPU, loaded once.  Raises SetupError or Unsupported."""
    if "_reference" not in host.__dict__ and host.torch and host.config:
        from ..recognizer import Recognizer

        host._reference = Recognizer(host.checkpoint, host.torch.device("cpu"))
    return host._reference


def device(host: Host):
    if "torch_npu" in host.ended and (host.asks_npu or not host.asked):
        raise NotChecked("torch_npu")  # its import would end this process too
    there = "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu")
    if host.asks_npu and (not there or host.torch_npu_error):
        raise NotChecked("torch_npu")
    try:
        device = host.torch and choose_device(host.asked)[0]
    except SetupError as error:
        yield Finding("device", PROBLEM, said(error), _device_mend(host, error))
        return
    name = device_name(device) if device.type != "cpu" else processor() or "of unknown kind"
    if device.type == "cpu":
        name += f" ({instructions()})"
    yield Finding("device", OK, f"{device}: {name}")


def dtypes(host: Host):
    device = _device(host)
    not_offered = "".join(f"; no {dtype}: {reason}" for dtype, reason in left_out(device).items())
    yield Finding("dtypes", OK, ", ".join(offered_dtypes(device)) + not_offered)


def _device(host: Host):
    if host.device is None:
        raise NotChecked("device")
    return host.device


def _device_mend(host: Host, error: SetupError) -> str:
    kind = host.asked.partition(":")[0]
    if "does not exist" in str(error):
        return f"{command()} --device {kind}:0"
    if kind == "npu":
        return "npu-smi info"
    build = host.torch.__version__.partition("+")[0]
    return "nvidia-smi" if host.torch.version.cuda else f"pip install --force-reinstall torch=={build}"


def arithmetic(host: Host):
    """What an NPU may lack.  The native engine needs neither there: its log-mel is computed on the CPU."""
    torch, where = host.torch, _device(host)

    def float64() -> bool:
        halves = torch.full((4,), 0.5, dtype=torch.float64).to(where) + 2.0**-40  # more than float32 can hold
        return bool(halves.cpu().double().sum() > 2)

    def stft() -> bool:
        wave = torch.linspace(0, 100, 2048).sin()
        expected, found = (
            torch.view_as_real(torch.stft(w, 512, window=torch.hann_window(512).to(w.device), return_complex=True))
            for w in (wave, wave.to(where))
        )
        return bool(torch.allclose(found.cpu(), expected, atol=1e-3))

    works = {}
    for compute in (float64, stft):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                works[compute.__name__] = compute()
        except Exception:  # however the device refuses
            works[compute.__name__] = False
    has = " and ".join(name for name, fine in works.items() if fine)
    lacks = " and ".join(name for name, fine in works.items() if not fine)
    found = f"{where} has {has}{', but ' if has and lacks else ''}{f'no {lacks}' if lacks else ''}"
    if works["stft"] or host.engine == "native":
        yield Finding("arithmetic", OK, found + (", which the native engine does without" if lacks else ""))
    else:
        yield Finding("arithmetic", WARNING, f"{found}: NeMo's log-mel needs stft there", "--engine native")


def forward_pass(host: Host):
    """The bundled recording through the model: a device, or NeMo, against the CPU; the CPU also as a stream."""
    where = _device(host)
    try:
        reference = _reference(host)
    except (SetupError, Unsupported):
        raise NotChecked("engine") from None
    from ..audio import read_audio, sine

    speech = read_audio(str(host.clip)) if host.clip and host.clip.exists() else sine()
    try:
        if where.type == "cpu" and host.engine == "native":
            right, found = _on_the_cpu(host, reference, speech)
        else:
            right, found = _against_the_cpu(host, reference, speech)
    except Exception as error:  # an operator that the device lacks, numbers that are none ...
        right, found = False, f"fails on {where}: {type(error).__name__}: {_unnamed(host, error)}"
    mend = "" if right else f"{command()} --device {where} --precision_compare   (stage by stage)"
    yield Finding("forward pass", OK if right else PROBLEM, found, mend)


def _on_the_cpu(host: Host, recognizer, speech) -> tuple[bool, str]:
    began = time.perf_counter()
    transcript = recognizer.transcribe([speech])[0]
    found = f"{transcript.duration:.1f} s of sound in {time.perf_counter() - began:.2f} s on the CPU"
    if host.checkpoint == host.demo and len(speech) > 16000 and transcript.text != DEMO_WORDS:
        return False, f"the CPU hears {transcript.text!r}, where {DEMO_WORDS!r} was said"
    found += f": {len(transcript.tokens)} tokens"
    if not recognizer.encoder.streams:
        return True, found
    with recognizer.stream() as stream:
        for first in range(0, len(speech), 1600):
            stream.feed(speech[first : first + 1600])
    equal = _tokens(stream.finish()) == _tokens(transcript)
    return equal, f"{found}, as a live stream {'the same' if equal else 'others'}"


def _against_the_cpu(host: Host, reference, speech) -> tuple[bool, str]:
    from ..engine import ModelOptions
    from ..recognizer import load_recognizer

    candidate = load_recognizer(
        host.checkpoint, host.device, options=ModelOptions(host.engine), announce=lambda _: None
    )
    ours = candidate.encode(*candidate.preprocess([speech]))[0].float().cpu()
    theirs = reference.encode(*reference.preprocess([speech]))[0]
    difference = (ours - theirs).abs()
    percent = float(100 * difference.sum() / theirs.abs().sum())
    tokens, expected = (_tokens(recognizer.transcribe([speech])[0]) for recognizer in (candidate, reference))
    found = (
        f"encoder of {host.device} ({host.engine}) against the CPU (native): largest difference "
        f"{float(difference.max()):.2g} ({percent:.2g} %), {len(expected)} tokens "
        f"{'equal' if tokens == expected else 'that are not equal'}"
    )
    return tokens == expected and percent <= BOUNDS["float32"].encoder, found  # NaN is not


def _tokens(transcript) -> list[tuple[int, int]]:
    return [(token.id, token.frame) for token in transcript.tokens]
