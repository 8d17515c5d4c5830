"""The triton patches, on files of real triton releases (data/triton; MIT licence, see there)."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

APPLY = Path(__file__).parent.parent / "patches" / "apply.py"
RELEASES = sorted(Path(__file__).parent.glob("data/triton/3.*"))
FILES = ["triton/backends/__init__.py", "triton/runtime/driver.py"]


@pytest.fixture(params=RELEASES, ids=lambda release: release.name)
def root(request, tmp_path):
    """A folder with one release's triton/ in it."""
    shutil.copytree(request.param / "triton", tmp_path / "triton")
    return tmp_path


def apply(root, *options):
    command = [sys.executable, str(APPLY), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def load(path, **stubs):
    """Run one of triton's files; its relative imports are replaced by `stubs`."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("from .")]
    namespace = {"__name__": "triton_file", "__file__": str(path), **stubs}
    sys.modules["triton_file"] = type(sys)("triton_file")  # dataclasses look their module up
    exec("\n".join(lines), namespace)
    return namespace


def test_apply_changes_both_files_once(root):
    """Applying again changes nothing."""
    before = contents(root)
    first = apply(root)
    patched = contents(root)
    second = apply(root)
    assert (first.returncode, second.returncode) == (0, 0)
    assert {str(path) for path in before if before[path] != patched[path]} == set(FILES)
    assert contents(root) == patched, "no other file either, temporary ones least of all"
    assert apply(root, "--quiet").stdout == ""


def test_check_reports_the_state_and_writes_nothing(root):
    before = contents(root)
    check = apply(root, "--check")
    assert check.returncode == 1 and check.stdout.count("original") == 2
    assert contents(root) == before
    apply(root)
    check = apply(root, "--check")
    assert check.returncode == 0 and check.stdout.count("patched") == 2


def test_revert_restores_the_original_bytes_and_mode(root):
    before = contents(root)
    driver = root / FILES[1]
    driver.chmod(0o640)
    apply(root)
    assert driver.stat().st_mode & 0o777 == 0o640
    assert apply(root, "--revert").returncode == 0
    assert contents(root) == before
    assert driver.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("half", FILES)
def test_half_applied_state_is_completed_or_reverted(root, half):
    before = contents(root)
    apply(root)
    patched = contents(root)
    (root / half).write_bytes(before[Path(half)])
    assert apply(root, "--check").returncode == 1
    assert apply(root).returncode == 0 and contents(root) == patched
    (root / half).write_bytes(before[Path(half)])
    assert apply(root, "--revert").returncode == 0 and contents(root) == before


@pytest.mark.parametrize("options", [(), ("--check",), ("--revert",)])
def test_unknown_triton_stays_unchanged(root, options):
    """One line names the file."""
    driver = root / FILES[1]
    driver.write_text(driver.read_text().replace("!= 1:", "== 0:"))
    before = contents(root)
    result = apply(root, *options)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and str(driver) in result.stderr
    assert contents(root) == before


def test_missing_triton_is_no_error(tmp_path):
    result = apply(tmp_path)
    assert result.returncode == 0 and "not installed" in result.stdout
    assert apply(tmp_path, "--quiet").stdout == ""


def test_triton_is_found_without_importing_it(root):
    (root / "triton" / "__init__.py").write_text("raise ImportError('imported')")
    command = [sys.executable, str(APPLY)]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stderr
    assert apply(root, "--check").returncode == 0


def test_failing_write_leaves_both_files_unchanged(root, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("apply", APPLY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real_replace = module.os.replace

    def replace(source, target):  # as good as a folder without write permission, which root would not mind
        if target.name == "driver.py":
            raise PermissionError(13, "Permission denied", str(target))
        real_replace(source, target)

    monkeypatch.setattr(module.os, "replace", replace)
    before = contents(root)
    assert module.main(["--root", str(root)]) == 2
    assert contents(root) == before
    error = capsys.readouterr().err
    assert "Permission denied" in error and len(error.splitlines()) == 1


class Compiler:
    """Stands for triton's BaseBackend."""


class Driver:
    """Stands for triton's DriverBase."""

    @staticmethod
    def is_active():
        return False


@pytest.mark.parametrize("in_tree", ["0", "1"])
def test_backend_that_cannot_be_imported_is_skipped(root, monkeypatch, in_tree):
    """With a warning, while the others are found."""
    monkeypatch.setenv("TRITON_BACKENDS_IN_TREE", in_tree)
    for name in ("good", "broken"):
        folder = root / "triton" / "backends" / name
        folder.mkdir()
        raising = "raise OSError('libbroken.so: cannot open shared object file')\n" if name == "broken" else ""
        (folder / "compiler.py").write_text(f"{raising}import builtins\nclass C(builtins.BaseBackend): pass\n")
        (folder / "driver.py").write_text("import builtins\nclass D(builtins.DriverBase): pass\n")
    stubs = {"BaseBackend": Compiler, "DriverBase": Driver}
    for name, stub in stubs.items():
        monkeypatch.setattr("builtins." + name, stub, raising=False)

    # Backends come from entry points or, in older releases and on request, from the folders: provide both.
    backends = root / "triton" / "backends"
    distribution = root / "some_backends-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Name: some-backends\nVersion: 1\n")
    entries = "".join(f"{name} = triton.backends.{name}\n" for name in ("good", "broken"))
    (distribution / "entry_points.txt").write_text(f"[triton.backends]\n{entries}")
    for name, folder in (("triton", root / "triton"), ("triton.backends", backends)):
        package = type(sys)(name)
        package.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, package)
    for name in ("good", "broken"):
        for module in ("", ".compiler", ".driver"):
            monkeypatch.delitem(sys.modules, f"triton.backends.{name}{module}", raising=False)
    monkeypatch.setattr("importlib.metadata.entry_points", entry_points_of(distribution))

    with pytest.raises(OSError, match="libbroken"):
        load(backends / "__init__.py", **stubs)
    apply(root)
    with pytest.warns(RuntimeWarning, match="'broken' cannot be loaded"):
        found = load(backends / "__init__.py", **stubs)["backends"]
    assert list(found) == ["good"]


def entry_points_of(distribution):
    import importlib.metadata

    return lambda: importlib.metadata.Distribution.at(distribution).entry_points


def test_missing_driver_is_none_and_two_are_an_error(root):
    class Active(Driver):
        @staticmethod
        def is_active():
            return True

    def create(*drivers):
        backends = {str(i): type("Backend", (), {"driver": driver}) for i, driver in enumerate(drivers)}
        return load(root / FILES[1], backends=backends, DriverBase=Driver)["_create_driver"]()

    with pytest.raises(RuntimeError, match="0 active drivers"):
        create(Driver)
    apply(root)
    assert create(Driver) is None
    assert isinstance(create(Driver, Active), Active)
    with pytest.raises(RuntimeError, match="2 active drivers"):
        create(Active, Active)
