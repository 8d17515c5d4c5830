"""--doctor: check the environment."""

from __future__ import annotations

from types import SimpleNamespace

from ..doctor.run import doctor
from .bundled import DEMO_CLIP, DEMO_MODEL
from .console import Console
from .options import Options


def check_environment(options: Options, console: Console) -> int:
    """Run the doctor and print its report; return its exit code."""
    request = SimpleNamespace(
        output_format=options.output.formats,
        device=options.device.device,
        model_path=options.model_path,
        engine=options.model.engine,
        debug=options.messages.debug,
    )
    return doctor(request, console, DEMO_MODEL, DEMO_CLIP)
