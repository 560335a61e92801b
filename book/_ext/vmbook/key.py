"""Which outputs may be reused: a key over what a page's code runs on.

jupyter-cache keys an execution by the cells alone, so a page would go on showing what an older
vmlib computed. Here each state of vmlib (its guests and the pinned packages included) has a
cache folder of its own, and a changed key makes Sphinx read every page again.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vmbook import records


def _files(folder: Path) -> Iterable[Path]:
    if folder.is_file():
        return [folder]
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def digest(root: Path, names: Iterable[str]) -> str:
    """Return one hash over the names and contents of the files below `names`."""
    total = hashlib.sha256()
    for name in names:
        for path in _files(root / name):
            total.update(path.relative_to(root).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def code_key(root: Path) -> str:
    """Return the key of what executed pages depend on: code, packages, and files beside a page.

    The view's scripts and style are no part of it: no output holds them, every build writes them.
    """
    code = (p for p in _files(root / "vmlib") if p.suffix not in (".js", ".css"))
    beside = (p for p in (root / "book").glob("*/**/*") if p.is_file() and p.suffix != ".md")
    data = sorted(p.relative_to(root).as_posix() for p in beside)
    own = [name for name in data if not name.startswith("book/_") and "/." not in name]
    names = [path.relative_to(root).as_posix() for path in code]
    return digest(root, [*names, "requirements.txt", *own])


def look_key(root: Path) -> str:
    """Return the key of what written pages depend on besides: extension, look, records."""
    parts = [digest(root, ["book/_ext", "book/_assets", "checks"])]
    parts += [name for record in records.all_ids() for name in records.load(record).stale]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def set_keys(app: Any, config: Any) -> None:
    """Point the execution cache at this state's folder and drop the folders of older states."""
    root = Path(app.srcdir)
    config.vmbook_code_key = code_key(root)
    config.vmbook_look_key = look_key(root)
    caches = Path(app.outdir).parent / ".jupyter_cache"
    for old in caches.glob("*"):
        if old.name != config.vmbook_code_key:
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()
    config.nb_execution_cache_path = str(caches / config.vmbook_code_key)


def setup(app: Any) -> None:
    """Add the two keys as configuration values that make pages out of date."""
    app.add_config_value("vmbook_code_key", "", "env", str)
    app.add_config_value("vmbook_look_key", "", "html", str)
    app.connect("config-inited", set_keys)
