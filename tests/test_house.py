"""The house stands as planned: layers, types, style, names, and what may be imported where."""

import ast
import graphlib
import importlib
import inspect
import json
import re
import subprocess
import sys

import grimp
import pytest

PUBLIC = {"trace", "errors", "units", "machine", "box", "view.lab"}
"""Modules of vmlib with public names, beside the rooms, which are packages."""


def run(root, *command):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
    ],
    ids=" ".join,
)
def test_style_and_types(root, command):
    done = run(root, *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_layers(root):
    code = "import sys; from importlinter.cli import lint_imports_command as m; sys.exit(m())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def circle(imports):
    """Return a circle of modules in ``{module: what it imports}``, or None."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_import_goes_in_a_circle():
    """Also not for types alone: what two modules know of each other is one idea."""
    graph = grimp.build_graph("vmlib", cache_dir=None)
    imports = {one: graph.find_modules_directly_imported_by(one) for one in graph.modules}
    assert len(imports) > 150
    assert any(imports.values())
    assert circle(imports) is None
    assert circle(imports | {"vmlib.errors": {"vmlib.machine"}})


def test_everything_but_the_emulator_works_without_unicorn(root):
    """Unicorn is GPL-2.0 and optional: nothing but the engine built on it may need it."""
    code = """
import sys, pkgutil, importlib
sys.modules["unicorn"] = None  # as if it were not installed
import vmlib
for module in pkgutil.walk_packages(vmlib.__path__, "vmlib."):
    if module.name == "vmlib.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ImportError:
        assert module.name.startswith("vmlib.cpu.unicorn."), module.name
from vmlib.cpu import probe, open_vm, add_guest
from vmlib.errors import HostUnavailable
assert add_guest(1, 2).code
assert not probe("unicorn").usable and "not installed" in probe("unicorn").reason
try:
    open_vm("unicorn")
except HostUnavailable as error:
    assert "pip install" in error.fix
else:
    raise SystemExit("open_vm did not say that Unicorn is missing")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_processor_room_imports_without_its_engines(root):
    code = """
import sys, vmlib.cpu
assert not {"unicorn", "capstone", "keystone"} & sys.modules.keys(), "an engine was imported"
assert not [name for name in sys.modules if name.startswith("vmlib.cpu.unicorn.")]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def code_of(path):
    """The Python of a chapter or a lab, a piece at a time; lines for IPython are left out."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        pieces = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    else:
        pieces = re.findall(
            r"^```(?:\{code-cell\}|python\b|py\b)[^\n]*\n(.*?)^```", path.read_text(), re.M | re.S
        )
    for piece in pieces:
        lines = piece.splitlines()
        yield "\n".join(x for x in lines if not re.match(r"\s*([%!]|:\w|---$|tags:)", x))


def not_public(tree, root):
    """What a tree of Python imports from vmlib that is not a public name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
            yield from (n for n in names if n.startswith("vmlib."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vmlib":
            name = node.module.removeprefix("vmlib").lstrip(".")
            room = "." not in name and (root / "vmlib" / name / "__init__.py").is_file()
            if not (name and (room or name in PUBLIC)):
                yield node.module
                continue
            module = importlib.import_module(node.module)
            shown = getattr(module, "__all__", None)
            if shown is None:  # a plain module of names: what it defines without an underscore
                shown = [n for n, v in vars(module).items() if defined_in(module, n, v)]
            yield from (f"{node.module}.{o.name}" for o in node.names if o.name not in shown)


def defined_in(module, name, value):
    if name[0] == "_" or inspect.ismodule(value):
        return False
    return getattr(value, "__module__", module.__name__) == module.__name__


def test_chapters_and_labs_use_public_names_only(root):
    pages = [*root.glob("book/**/*.md"), *root.glob("labs/**/*.ipynb"), root / "README.md"]
    used = 0
    for path in pages:
        if "_build" in path.parts or ".ipynb_checkpoints" in path.parts:
            continue
        for piece in code_of(path):
            if "vmlib" not in piece:
                continue
            tree = ast.parse(piece)
            used += 1
            assert not list(not_public(tree, root)), path
    assert used > 20


@pytest.mark.parametrize(
    "line",
    [
        "from vmlib.cpu.falls import FALLS",
        "from vmlib.cpu import open_device",
        "import vmlib.cpu",
        "from vmlib import board",
        "from vmlib.loop_trace import record_loop",
        "from vmlib.units import re",
    ],
)
def test_other_names_are_noticed(root, line):
    assert list(not_public(ast.parse(line), root))


def test_dev_kvm_is_opened_in_one_file(root):
    found = {
        path.relative_to(root).as_posix()
        for path in root.glob("vmlib/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "/dev/kvm"
    }
    assert found == {"vmlib/cpu/kvm/vm.py"}


def test_the_library_prints_nothing(root):
    for path in root.glob("vmlib/**/*.py"):
        if path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not called, f"{path}:{node.lineno} prints"


def test_every_version_is_pinned(root):
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (root / name).read_text().splitlines():
            entry = line.split("#")[0].strip()
            assert not entry or "==" in entry or entry.startswith("-c "), f"{name}: {line}"


def test_installed_versions_are_the_pinned_ones(root):
    from importlib.metadata import version

    for line in (root / "requirements.txt").read_text().splitlines():
        if "==" in line:
            name, pinned = line.split("#")[0].strip().split("==")
            assert version(name) == pinned.split(";")[0].strip()
