"""The project's house rules: layers, file lengths, imports, names of tests.  CONTRIBUTING.md has the layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "nemotron_npu"
MAX_LINES = 400
MAX_LAZY_IMPORTS = 20
MAX_TEST_NAME = 60
LAYERS = {"errors": 0, "host": 1, "checkpoint": 2, "evaluation": 4, "cluster": 4, "precision": 5, "benchmark": 5}
LAYERS |= {"doctor": 6, "cli": 7, "__main__": 8, "": 9}
"""Rank of each file and folder at the top of the package; ``""`` is the package itself, whose ``__init__`` offers the
public names."""
SPINE = 3
"""Rank of every other file at the top."""


@dataclass(frozen=True)
class Import:
    """One module of the package imports another."""

    importer: str
    imported: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def name_of(path: Path) -> str:
    """Return the name of a module within the package: ``cli.app``; the package itself is ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def import_statements(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield each import below ``node``, and whether it is inside a function; those for type checkers are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from import_statements(child, lazy or is_function)


def targets(module: str, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules of the package that a statement in ``module`` imports."""
    names = [alias.name for alias in statement.names]
    base = "nemotron_npu"
    if isinstance(statement, ast.ImportFrom):
        is_package = MODULES[module].name == "__init__.py"
        parents = [base, *filter(None, module.split("."))]
        if not is_package:
            parents.pop()
        parents = parents[: len(parents) + 1 - statement.level] if statement.level else []
        base = ".".join([*parents, *filter(None, [statement.module])])
        names = [f"{base}.{name}" for name in names]
    for name in names:
        inside = name.partition(".")[2]
        if name.partition(".")[0] != "nemotron_npu":
            continue
        while inside not in MODULES:  # a name that a module defines
            inside = inside.rpartition(".")[0]
        if inside:  # the package itself is loaded before any of its modules
            yield inside


def all_imports() -> Iterator[Import]:
    for module, path in MODULES.items():
        for statement, lazy in import_statements(ast.parse(path.read_text())):
            for imported in targets(module, statement):
                if imported != module:
                    yield Import(module, imported, statement.lineno, lazy)


IMPORTS = list(all_imports())


def layer(module: str) -> int:
    return LAYERS.get(module.partition(".")[0], SPINE)


def test_imports_do_not_run_up_the_layers():
    """No module imports one of a higher layer, at the top or inside a function; folders of one rank do not mix."""
    upward = [str(found) for found in IMPORTS if layer(found.imported) > layer(found.importer)]
    sideways = [
        str(found)
        for found in IMPORTS
        if layer(found.imported) == layer(found.importer) != SPINE
        and found.imported.partition(".")[0] != found.importer.partition(".")[0]
    ]
    assert not upward + sideways


def test_imports_have_no_circle():
    """The modules can be sorted so that each imports earlier ones only, imports inside functions included."""
    graph: dict[str, set[str]] = {}
    for found in IMPORTS:
        graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" > ".join(error.args[1]))


def test_few_imports_are_inside_functions():
    """Imports are at the top, but for heavy libraries that start-up must not load."""
    found = []
    for module, path in MODULES.items():
        for statement, lazy in import_statements(ast.parse(path.read_text())):
            if lazy:
                found.append(f"{module}:{statement.lineno} {ast.unparse(statement)}")
    assert len(found) <= MAX_LAZY_IMPORTS, "\n".join(found)


def test_no_file_is_too_long():
    """A file of more than 400 lines does several jobs."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


def test_no_test_has_a_long_name():
    """The name of a test function has 60 characters at most; the sentence belongs in its docstring."""
    long = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            if is_test and len(node.name) > MAX_TEST_NAME:
                long.append(f"{path.name}:{node.lineno} {node.name}")
    assert not long, "\n".join(long)
