"""The environment of a measurement: versions, hardware, checkpoint and command."""

import json
import platform

from support import CLIP, CLIP_WORDS, DEMO, INFERENCE, run_process

from nemotron_npu import __version__
from nemotron_npu.host import ascend
from nemotron_npu.host.provenance import environment


def test_versions_of_cann_and_driver_come_from_ascend_files(tmp_path, monkeypatch):
    """The versions of CANN and driver are read where Ascend keeps them; without the files they are None."""
    folder = tmp_path / f"{platform.machine()}-linux"
    folder.mkdir()
    (folder / "ascend_toolkit_install.info").write_text("package_name=Ascend-cann-toolkit\nversion=8.5.1\n")
    (tmp_path / "version.info").write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "version.info")
    found = environment(DEMO)
    assert (found["cann"], found["npu_driver"]) == ("8.5.1", "25.2.0")
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME")
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setattr(ascend, "DRIVER", tmp_path / "none")
    assert environment(DEMO)["cann"] is None and environment(DEMO)["npu_driver"] is None


def test_program_and_settings_of_the_npu_are_named(monkeypatch):
    """The program's version is there, and so are the variables that change an NPU's speed, where they are set."""
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "2")
    monkeypatch.delenv("CPU_AFFINITY_CONF", raising=False)
    found = environment(DEMO)
    assert (found["nemotron_npu"], found["TASK_QUEUE_ENABLE"]) == (__version__, "2")
    assert "CPU_AFFINITY_CONF" not in found


def test_password_of_a_url_is_in_no_report(tmp_path):
    """Neither messages nor files repeat what stands before the @ of a URL that was given by mistake."""
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"audio_filepath": str(CLIP), "text": CLIP_WORDS}))
    url = "https://me:secret@127.0.0.1/x.wav"
    options = ["--output_dir", tmp_path / "out", "--report", tmp_path / "report", "--wer_report", "--device", "cpu"]
    result = run_process(INFERENCE, manifest, url, *options)
    assert result.returncode == 1 and "https://...@127.0.0.1/x.wav: " in result.stderr
    written = [result.stdout, result.stderr, *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert sum("127.0.0.1" in text for text in written) == 2  # the message, and the command in the report
    assert not any("secret" in text for text in written)
