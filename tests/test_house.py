"""The house stands as planned: layers, types, style, names, and what may be imported where."""

import ast
import subprocess
import sys

import pytest

PUBLIC_ONLY = ("labs", "book")


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
