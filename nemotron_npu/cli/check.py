"""--doctor: check the environment."""

from __future__ import annotations

from functools import partial

from ..doctor.finding import Context
from ..doctor.run import doctor
from .bundled import DEMO_CLIP, DEMO_MODEL
from .console import Console
from .options import Options


def check_environment(options: Options, console: Console) -> int:
    """Run the doctor and print its report; return its exit code."""
    context = Context(options.device.device, options.model_path, options.model.engine, DEMO_MODEL, DEMO_CLIP)
    as_json = options.output.formats == ("json",)
    return doctor(context, partial(console.result, colored=True), as_json=as_json, debug=options.messages.debug)
