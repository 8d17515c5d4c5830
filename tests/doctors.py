"""Run one check of ``--doctor`` in a test."""

from __future__ import annotations

from dataclasses import replace

from support import CLIP, ROOT

from nemotron_npu.doctor.finding import Context, Finding
from nemotron_npu.doctor.run import CHECKS, run_check

DEMO = ROOT / "demo" / "demo.nemo"
INFERENCE = ROOT / "inference.py"
NPU = "npu:0"


def found(name: str, context: Context | None = None, **request) -> list[Finding]:
    """Run one check in this process, after those that it needs; return its findings."""
    context = context or Context(**{"demo": DEMO, "clip": CLIP, **request})
    for need in CHECKS[name].needs:
        if need not in context.usable:
            found(need, context)
    return [replace(finding, name="") for finding in run_check(context, name)]


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]
