"""The stand-in for nv_one_logger is enough for NeMo, and does nothing."""

import os
import subprocess
import sys
from pathlib import Path

from support import GUARD

MOCK = Path(__file__).parent.parent / "nv_one_logger_mock"


def run(code):
    """Run code in a fresh Python with the mock on PYTHONPATH, and nothing else but the guard of the network."""
    environ = {**os.environ, "PYTHONPATH": f"{GUARD}{os.pathsep}{MOCK}"}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)


def test_nemo_can_be_imported_with_the_mock():
    result = run("import nemo.collections.asr, nv_one_logger; print(nv_one_logger.__file__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == str(MOCK / "nv_one_logger" / "__init__.py")


def test_mock_has_all_names_that_nemo_uses():
    """They do nothing and print nothing."""
    result = run("""
from nv_one_logger.api.config import OneLoggerConfig
from nv_one_logger.training_telemetry.api.callbacks import on_app_start
from nv_one_logger.training_telemetry.api.config import TrainingTelemetryConfig
from nv_one_logger.training_telemetry.api.training_telemetry_provider import TrainingTelemetryProvider
from nv_one_logger.training_telemetry.integration.pytorch_lightning import TimeEventCallback

provider = TrainingTelemetryProvider.instance()
assert provider is TrainingTelemetryProvider.instance()
assert provider.config.telemetry_config is None
provider.with_base_config(OneLoggerConfig(application_name="nemo")).with_export_config().configure_provider()
assert provider.config.application_name == "nemo" and provider.config.telemetry_config is None
TimeEventCallback(provider, call_on_app_start=False)
on_app_start()
telemetry = TrainingTelemetryConfig(perf_tag_or_fn="tag")
provider.set_training_telemetry_config(telemetry)
assert provider.config.telemetry_config is telemetry
""")
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""


def test_mock_imports_only_itself():
    code = "import sys; before = set(sys.modules); import {0}; print(*sorted(set(sys.modules) - before))"
    provider = "nv_one_logger.training_telemetry.api.training_telemetry_provider"
    assert all(name.startswith("nv_one_logger") for name in run(code.format(provider)).stdout.split())
