"""The options of the command line, with their help."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import NoReturn

from .. import __version__
from ..confidence import METHODS
from ..dtypes import ON_CPU, ON_DEVICES
from ..errors import one_line, shown
from ..evaluation.wer import NORMALIZERS
from ..formats import COLLECTED, FILES
from ..host import program
from . import argument_types as types
from .options import MIX

DESCRIPTION = """\
Transcribe speech with a cache-aware FastConformer-RNNT checkpoint (.nemo)
on an Ascend NPU, a GPU or the CPU."""
EXAMPLES = """\
examples:
  the bundled clip with the bundled model
    python inference.py
  a file: print the text, write subtitles
    python inference.py talk.mp3
    python inference.py talk.mp3 --output_format srt > talk.srt
  a folder: every format, continue an interrupted run, eight NPUs
    python inference.py calls/ --output_dir out
    python inference.py calls/ --output_dir out --resume
    python inference.py calls/ --output_dir out --num_workers 8
  a NeMo manifest: add pred_text
    python inference.py test.json --output_format manifest
  live: a microphone, a file as a live stream, many live streams
    arecord -f S16_LE -r 16000 | python inference.py -
    python inference.py --stream --chunk_ms 80 talk.mp3
    python inference.py --stream line1.fifo line2.fifo
  another checkpoint: transcribe, check on a 1 s sine, compare with the CPU
    python inference.py --model_path M.nemo talk.mp3
    python inference.py --model_path M.nemo
    python inference.py --model_path M.nemo --precision_compare
  a new machine: find problems, check and measure everything
    python inference.py --doctor --device npu:0
    python inference.py --acceptance DIR --device npu:0

exit code: 0 success, 1 an input failed or the comparison did not pass,
           2 wrong usage or environment,
           130, 143, 129 interrupted by SIGINT, SIGTERM, SIGHUP
"""


class Parser(argparse.ArgumentParser):
    """Accept dashes in option names and inputs between options; suggest a similar name for an unknown option."""

    def parse_args(self, arguments: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse ``arguments``, else those of the process.  Wrong usage ends the program with exit code 2."""
        arguments = sys.argv[1:] if arguments is None else arguments
        self._check_files(arguments)
        words = [_with_underscores(word) for word in arguments]
        given, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            self._reject(unknown[0])
        return given

    def error(self, message: str) -> NoReturn:
        """Write the usage and an error line, and end the program with exit code 2."""
        super().error(one_line(message))

    def _check_files(self, words: list[str]) -> None:
        """Refuse the name of a file, from a pattern of the shell, that would be taken for an option."""
        for word in words:
            if word == "--":
                return
            if word.startswith("-") and word != "-" and os.path.lexists(word):
                self.error(f"{shown(word)}: a file of this name would be an option (write ./*.wav, or ./{word})")

    def _reject(self, word: str) -> NoReturn:
        option = word.partition("=")[0]
        similar = difflib.get_close_matches(option, self._option_string_actions, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "--help lists them"
        self.error(f"{shown(option)}: no such option ({hint})")


def _with_underscores(word: str) -> str:
    """Return ``--output-format=x-y`` as ``--output_format=x-y``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=program.name,
        usage="%(prog)s [AUDIO ...] [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES.replace(f"python {program.SCRIPT}", program.command()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "audio",
        nargs="*",
        type=types.path,
        metavar="AUDIO",
        help="audio or video files (wav, flac, mp3, m4a, mp4 ..., any sample rate and number of channels), folders, "
        "quoted patterns ('calls/**/*.wav'), NeMo manifests (.json, .jsonl), lists of paths (.txt); "
        "- is live audio from stdin, in any of these formats or raw 16-bit little-endian mono PCM",
    )
    _add_audio(parser)
    _add_output(parser)
    _add_model(parser)
    _add_execution(parser)
    _add_search(parser)
    _add_workers(parser)
    _add_live(parser)
    _add_measuring(parser)
    _add_messages(parser)
    return parser


def _add_audio(parser: argparse.ArgumentParser) -> None:
    audio = parser.add_argument_group("audio")
    audio.add_argument(
        "--channel",
        type=types.channel,
        default=MIX,
        metavar="C",
        help="mix averages the channels; N selects one, from 1 on; each transcribes every channel by itself "
        "(default: mix)",
    )
    audio.add_argument(
        "--track",
        type=types.positive,
        default=1,
        metavar="N",
        help="audio track, for files with several, such as videos; counted from 1: ffmpeg's 0:a:1 is 2 (default: 1)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output_dir",
        type=types.path,
        metavar="DIR",
        help="write each result to this folder as soon as it is complete (default: print to stdout)",
    )
    formats = output.add_argument(
        "--output_format",
        type=types.parse_formats,
        metavar="F[,F]",
        help=f"{', '.join(FILES)}: one file for each recording; {', '.join(COLLECTED)} (a NeMo manifest with "
        "pred_text): one line for each recording; events (live streams): JSON lines, as words become final; "
        "all: all of these (default: txt, with --output_dir all; stdout takes one format)",
    )
    formats.completer = lambda **_: [*types.parse_formats("all"), "all"]  # type: ignore[attr-defined]  # of argcomplete
    for option, what in (
        ("--max_line_width", "maximum line length of srt and vtt, in characters (default: 42)"),
        (
            "--max_line_count",
            "maximum lines of a cue, filled across sentences (default: a cue is a sentence or a part of it)",
        ),
        ("--max_words_per_line", "maximum words of a cue; not with --max_line_count (default: what fits in two lines)"),
    ):
        output.add_argument(option, type=types.subtitle_size, metavar="N", help=what)
    output.add_argument(
        "--resume",
        action="store_true",
        help="skip recordings that are complete in --output_dir, also after a crash",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_path",
        metavar="M",
        help="a .nemo file, a folder of transformers, a file of --save or a Hugging Face id such as "
        "nvidia/nemotron-speech-streaming-en-0.6b (default: the bundled demo model, which transcribes the ten digits)",
    )
    model.add_argument(
        "--save",
        type=types.path,
        metavar="FILE",
        help="write the model in --dtype to FILE (.safetensors), which loads faster with --model_path, and end",
    )
    model.add_argument(
        "--device",
        type=types.device_name,
        metavar="D",
        help="npu:N, cuda:N or cpu (default: npu:0 if it is usable, else cpu)",
    )
    model.add_argument(
        "--chunk_ms",
        type=types.chunk_length,
        metavar="MS",
        help="chunk length: 80, 160, 560 or 1120 (default: the model's first); "
        "all: print the word error rate at each chunk length",
    )
    model.add_argument(
        "--language",
        metavar="L",
        help="language of the speech, for a multilingual model: auto, en-US, ... (default: auto)",
    )
    model.add_argument(
        "--engine",
        choices=["native", "nemo"],
        help="native: this project's engine; nemo: stock NeMo, the reference, slow to load "
        "(default: native; --benchmark: both)",
    )
    on_cpu = ", ".join(f"{dtype} ({needs})" for dtype, needs in ON_CPU.items())
    model.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help=f"dtype of the encoder's matrix products: on a CPU {on_cpu}; on an npu or cuda device "
        f"{', '.join(ON_DEVICES)} (default: that of a file of --save, else float32; --benchmark: all that the device "
        "supports)",
    )
    model.add_argument(
        "--allow_hf32",
        action="store_true",
        help="let an NPU round the factors of float32 products to HF32 (a mantissa of 11 bits instead of 23), and "
        "a GPU to TF32 (10 bits): faster, but less exact (default: true float32)",
    )
    model.add_argument(
        "--npu_fused",
        action="store_true",
        help="experimental: compute the encoder with torch_npu's fused operators, with fewer launches; no NPU has run "
        "them yet",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    execution = parser.add_argument_group("execution")
    execution.add_argument(
        "--batch_size",
        type=types.positive,
        metavar="N",
        help="recordings in a batch (default: depends on model and memory)",
    )
    execution.add_argument(
        "--block_ms",
        type=types.block_length,
        metavar="MS",
        help="maximum audio of each recording in one encoder step; rounded down to 1, 2, 4, 8 ... chunks "
        "(default: depends on model and memory)",
    )
    execution.add_argument(
        "--graph",
        choices=["on", "off", "auto"],
        default="auto",
        help="capture the encoder step as a graph on an npu or cuda device and replay it in one launch; "
        "auto is off until graphs have been tested on real hardware (default: auto)",
    )
    execution.add_argument(
        "--decoder_device",
        type=types.device_name,
        metavar="D",
        help="device of the RNN-T decoder (default: cpu, since decoding is many small operators)",
    )
    execution.add_argument(
        "--threads", type=types.thread_count, metavar="N", help="CPU threads (default: one for each core)"
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("decoding")
    search.add_argument(
        "--boost_words",
        type=types.path,
        metavar="FILE",
        help="phrases to prefer, one on each line, each with an optional score after a tab (default score: 1)",
    )
    search.add_argument(
        "--boost_alpha",
        type=types.weight,
        default=1.0,
        metavar="A",
        help="weight of --boost_words relative to the model (default: 1)",
    )
    search.add_argument(
        "--confidence",
        choices=METHODS,
        help="confidence measure of tokens and words: the probability of the best token, or an entropy as in NeMo "
        "(default: max_prob; --engine nemo: none)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    workers = parser.add_argument_group("several devices")
    workers.add_argument(
        "--num_workers",
        type=types.worker_count,
        metavar="N",
        help="transcribe in N processes, each with its own NPU, GPU or CPU thread (--threads); 2 and more need Ray "
        "(default: this process; with --ray_address one for each device of the cluster)",
    )
    workers.add_argument(
        "--ray_address",
        metavar="A",
        help="use the devices of the Ray cluster at HOST:PORT; auto: the cluster that this host belongs to "
        "(default: this host only)",
    )


def _add_live(parser: argparse.ArgumentParser) -> None:
    live = parser.add_argument_group("live")
    live.add_argument(
        "--stream",
        action="store_true",
        help="transcribe files and named pipes live, all at once, and show words as soon as they are recognized",
    )
    live.add_argument(
        "--endpoint_ms",
        type=types.milliseconds,
        metavar="MS",
        help="time without a token that ends an utterance (half of it after the end of a sentence); 0: never "
        "(default: 800)",
    )
    live.add_argument(
        "--reset_after_pause",
        type=types.milliseconds,
        metavar="MS",
        help="reset the decoder's state after this time without a token (default: never, as NeMo)",
    )
    live.add_argument(
        "--sample_rate",
        type=types.sample_rate,
        metavar="HZ",
        help="sample rate of raw PCM on stdin and in pipes (default: 16000); other streams state their own",
    )
    live.add_argument(
        "--raw",
        action="store_true",
        help="read stdin and pipes as raw PCM (16-bit little-endian mono), without looking for a format (default: only "
        "if no known format is found)",
    )


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    measuring = parser.add_argument_group("measurements")
    measuring.add_argument(
        "--precision_compare",
        action="store_true",
        help="compare the device with NeMo on the CPU, stage by stage, on a 1 s sine and on AUDIO or the bundled clip; "
        "exit code 1 if the comparison fails",
    )
    measuring.add_argument(
        "--bounds",
        metavar="NAME=PERCENT,...",
        help="tolerances of --precision_compare instead of the dtype's own: mel, encoder, alone, joint, tokens, words",
    )
    measuring.add_argument(
        "--benchmark",
        action="store_true",
        help="measure start-up, steps, recordings, memory and operators of each engine and dtype; takes minutes",
    )
    measuring.add_argument(
        "--wer_report",
        action="store_true",
        help="list the files with the most errors, with reference and transcript; needs inputs with a reference text",
    )
    measuring.add_argument(
        "--wer_normalizer",
        choices=NORMALIZERS,
        default=NORMALIZERS[0],
        help="normalizer of the second row of error rates: Whisper's for English, or its basic one for other languages "
        "(default: whisper)",
    )
    measuring.add_argument(
        "--report",
        type=types.path,
        metavar="DIR",
        help="write all figures and plots of --precision_compare, --benchmark and --wer_report to this folder",
    )
    measuring.add_argument(
        "--acceptance",
        type=types.path,
        metavar="DIR",
        help="for a new machine: run --doctor, --precision_compare (also with --allow_hf32), --benchmark (also with "
        "--graph on and --npu_fused) and, for a manifest as AUDIO, --chunk_ms all, and write everything to this folder",
    )


def _add_messages(parser: argparse.ArgumentParser) -> None:
    messages = parser.add_argument_group("messages")
    messages.add_argument("--quiet", action="store_true", help="write nothing but errors to stderr")
    messages.add_argument(
        "--doctor",
        action="store_true",
        help="check the environment, the device and the checkpoint, and print a fix for each problem; the output has "
        "no private data and can be pasted into a bug report; exit code 0 success, 1 warnings, 2 problems",
    )
    messages.add_argument("--debug", action="store_true", help="show NeMo's log and full tracebacks")
    messages.add_argument("--version", action="version", version=f"nemotron-npu {__version__}")
