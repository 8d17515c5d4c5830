"""The model and the clip that the package brings along."""

from ..host.packages import bundled

DEMO_MODEL = bundled("demo") / "demo.nemo"
DEMO_CLIP = bundled("demo") / "digits.wav"
