"""Tiny books, built in a temporary copy of the project by the same extension."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXT = ROOT / "book/_ext"
sys.path.insert(0, str(EXT))

HEAD = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n"


@dataclass
class Tree:
    """A temporary project with a book in it."""

    root: Path

    @property
    def html(self) -> Path:
        return self.root / "_build/html"

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def page(self, name: str, text: str) -> None:
        """Write a page and list it in the table of contents."""
        self.write(f"book/{name}.md", (HEAD if "{code-cell}" in text else "") + text)
        pages = sorted(p.stem for p in (self.root / "book").glob("*.md") if p.stem != "index")
        toc = "format: jb-book\nroot: book/index\n"
        if pages:
            toc += "chapters:\n" + "".join(f"  - file: book/{each}\n" for each in pages)
        self.write("_toc.yml", toc)

    def read(self, name: str) -> str:
        return (self.html / f"book/{name}.html").read_text(encoding="utf-8")

    def build(self) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.root / "book/_ext"), str(self.root)])
        return subprocess.run(
            [sys.executable, "-m", "vmbook.build"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "VERBOSE": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def plant(root: Path) -> Tree:
    """Make a project with an empty book and a vmlib of one line."""
    unused = shutil.ignore_patterns("__pycache__")
    shutil.copytree(EXT, root / "book/_ext", ignore=unused)
    shutil.copytree(ROOT / "book/_assets", root / "book/_assets", ignore=unused)
    for name in ("_config.yml", "requirements.in", "requirements.txt"):
        shutil.copyfile(ROOT / name, root / name)
    tree = Tree(root)
    tree.write("vmlib/__init__.py", "VALUE = 41\n")
    return tree


@pytest.fixture
def tiny_book(tmp_path: Path) -> Iterator[Tree]:
    """Return a project with an empty book."""
    return plant(tmp_path)
