"""Recognize HF32 and TF32 in the errors of a float32 comparison.

NPUs and GPUs may round the factors of float32 products to a mantissa of 11 bits (HF32) or 10 (TF32) instead of 23, and
their libraries allow it to convolutions by default.  Their results are within the tolerances, so no comparison
fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from .stages import LockstepRun

FLOAT32_PERCENT = 0.01
"""Largest relative error of the encoder output that passes without a remark; float32 products give about 0.0001 %."""
ROUNDED_PERCENT = (0.003, 0.15)
"""Relative error of one stage alone whose factors have a mantissa of 10 or 11 bits; bfloat16, 7 bits, gives 0.2 %."""


def explain_float32(run: LockstepRun, settings: Mapping[str, bool]) -> str | None:
    """Describe where an error begins that float32 arithmetic does not explain; None if there is no such error.

    ``run`` : whole recordings of a candidate in float32.  ``settings`` : see ``device.device_settings``.
    """
    output = run.accumulated.get("encoder output")
    if output is None or not output.percent > FLOAT32_PERCENT:
        return None
    error = f"encoder output {output.percent:.2g} %, where float32 gives about 0.0001 %"
    least, largest = ROUNDED_PERCENT
    found = [(stage, tally.percent) for stage in _stages(run) if (tally := run.alone.get(stage)) is not None]
    wrong = [(stage, percent) for stage, percent in found if not percent <= least]  # NaN is wrong too
    if not wrong:
        return f"{error}; no stage alone has as much"
    first, percent = wrong[0]
    error += f"; it begins at {first}, alone {percent:.2g} %"
    if not all(percent <= largest for _, percent in wrong):
        return f"{error}: more than HF32 or TF32 explains"
    where = "convolutions" if first == "subsampling" else "matrix products"
    if first == "subsampling" and len(wrong) > 1:
        where = "convolutions and matrix products"
    line = f"{error}: {where} in HF32 or TF32 look like this"
    switches = [f"{name} is {'on' if is_on else 'off'}" for name, is_on in settings.items() if name.endswith("32")]
    return f"{line}; {', '.join(switches)}" if switches else line


def _stages(run: LockstepRun) -> list[str]:
    return ["subsampling", *(f"layer {index}" for index in range(run.layers))]
