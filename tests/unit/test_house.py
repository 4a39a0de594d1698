"""The rules of the house that no linter knows: where things live, how large they grow, what the documents promise."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtnet.core import model
from virtnet.kube import manifests

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "operator"
MODULES = sorted(SOURCES.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

LONGEST_FILE = 600
LONGEST_FUNCTION = 80
VALUES_ONLY = {"virtnet/core/model.py"}
"""Files that may be longer: they hold the vocabulary, and no function in them does any work."""

TOUCHES_THE_WORLD = {
    *("asyncio", "ctypes", "fcntl", "http", "importlib", "io", "logging", "mmap", "multiprocessing", "os", "pathlib"),
    *("random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile"),
    *("threading", "time", "urllib"),
    *("kopf", "kubernetes", "libvirt", "prometheus_client", "pydantic", "pyroute2", "rich", "typer", "yaml"),
}
TOUCHING_CALLS = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, anywhere in it; for `from a import b` both `a` and `a.b`."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path)}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reachable(start: set[str]) -> set[str]:
    """The modules of this package that `start` imports, directly or not."""
    files = {module_name(path): path for path in MODULES}
    seen: set[str] = set()
    todo = set(start)
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= {found for found in imports(files[name]) if found in files} - seen
    return seen


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def defined(tree: ast.Module) -> tuple[set[str], set[str]]:
    """The top-level names of a module: its own classes and functions, and everything bound there."""
    own = {node.name for node in tree.body if isinstance(node, Function | ast.ClassDef)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for statement in tree.body
        for node in (statement.body if isinstance(statement, ast.With) else [statement])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return own, own | bound | imported


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def test_operator_is_a_plain_folder_because_a_package_would_shadow_the_standard_library() -> None:
    assert not (SOURCES / "__init__.py").exists()


def test_core_reaches_nothing_that_touches_the_world() -> None:
    start = {module_name(path) for path in MODULES if place(path).startswith("virtnet/core/")}
    files = {module_name(path): path for path in MODULES}
    touched = {
        f"{place(files[name])} imports {found}"
        for name in reachable(start)
        for found in imports(files[name])
        if found.split(".")[0] in TOUCHES_THE_WORLD
    }
    assert not touched


def test_core_neither_opens_nor_prints() -> None:
    calls = {
        f"{place(path)}:{node.lineno} calls {node.func.id}"
        for path in MODULES
        if place(path).startswith("virtnet/core/")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TOUCHING_CALLS
    }
    assert not calls


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_opens_with_what_it_does(path: Path) -> None:
    docstring = ast.get_docstring(parse(path)) or ""
    assert re.search(r"[.:]$", docstring.partition("\n\n")[0]), "the docstring opens with a sentence"


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_module_exports_what_it_defines(path: Path) -> None:
    names = exported(parse(path))
    if names is None:  # it says nothing: everything without a leading underscore is public
        return
    own, bound = defined(parse(path))
    assert len(names) == len(set(names))
    assert set(names) <= bound
    assert {name for name in own if not name.startswith("_")} <= set(names)


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_files_and_functions_stay_readable(path: Path) -> None:
    if place(path) not in VALUES_ONLY:
        assert len(path.read_text().splitlines()) <= LONGEST_FILE
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not {place(path) for path in MODULES if drawers & {path.stem, path.parent.name}}


def test_unit_tests_replace_nothing_by_a_mock() -> None:
    tests = sorted((ROOT / "tests" / "unit").glob("*.py"))
    assert not {path.name for path in tests for name in imports(path) if name.split(".")[:2] == ["unittest", "mock"]}


def test_every_reason_is_documented_in_its_group_with_what_to_do() -> None:
    text = (ROOT / "docs" / "reasons.md").read_text()
    groups = {title: re.findall(r"^### (\w+)$", body, re.M) for title, body in sections(text, "## ")}
    settled = [reason for reason in model.Reason if reason not in {*model.DONE, *model.FAILING}]
    assert {title: sorted(names) for title, names in groups.items() if names} == {
        "Done": sorted(model.DONE),
        "Failing": sorted(model.FAILING),
        "Settled": sorted(settled),
    }
    for title, body in sections(text, "### "):
        assert "**What to do.**" in body, title


def sections(text: str, mark: str) -> list[tuple[str, str]]:
    """Title and body of each part of a Markdown text that begins with a heading of this level."""
    parts = re.split(rf"^{mark}", text, flags=re.M)[1:]
    return [(title.strip(), body) for title, _, body in (part.partition("\n") for part in parts)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_the_documents_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert not [t for t in targets if "://" not in t and not (path.parent / t).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_policy_shown_in_a_document_is_accepted(path: Path) -> None:
    for shown in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.M | re.S):
        reading = manifests.read(shown.encode(), path.name)
        assert (reading.errors, len(reading.policies)) == ((), 1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_the_documents_name_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)`", path.read_text())) <= targets


def test_make_offers_what_was_promised_and_never_takes_a_folder_for_a_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony is not None
    assert {"demo", "test", "check", "bench", "lab", "crds", "fuzz"} <= set(phony[1].split())


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if not line.startswith(("#", "set"))]
    assert commands == ['cd "$(dirname "$0")/.."', "exec make test"]


def test_the_extra_all_is_every_extra_that_a_user_can_want() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = ",".join(sorted(set(extras) - {"all", "dev"}))
    assert extras["all"] == [f"{project['name']}[{wanted}]"]
