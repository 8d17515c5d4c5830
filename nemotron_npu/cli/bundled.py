"""Paths of the bundled model and clip."""

from ..host.packages import bundled

DEMO_MODEL = bundled("demo") / "demo.nemo"
DEMO_CLIP = bundled("demo") / "digits.wav"
