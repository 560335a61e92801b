"""``python -m vmbook.notice``: NOTICE, made from the metadata of the installed packages."""

import re
import sys
from importlib import metadata

from vmbook import records

HEAD = """\
Virtualization, Inside Out: what it uses, and under which licences

Made by `python -m vmbook.notice` from the metadata of the packages in requirements.txt.
None of them is part of this repository; `make book` installs them. Built pages carry copies of
the style sheets and scripts of the theme (sphinx-book-theme, pydata-sphinx-theme, which bring
Bootstrap, MIT, and outlines of Font Awesome Free icons, CC BY 4.0), of Sphinx and its
extensions, and, on pages with a plot, of plotly.js (MIT).

Unicorn is licensed under the GNU General Public License, version 2, whatever its package's
metadata says. It is imported in one file, vmlib/cpu/unicorn/raw.py; all else works without it.
"""
SAID_ELSEWHERE = {"unicorn": "GPL-2.0"}


def licence(name: str) -> str:
    """Return a package's licence in one line, from its metadata."""
    if name.lower() in SAID_ELSEWHERE:
        return SAID_ELSEWHERE[name.lower()]
    about = metadata.metadata(name)
    if about.get("License-Expression"):
        return about["License-Expression"]
    kinds = [
        line.split("::")[-1].strip()
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    if kinds:
        return ", ".join(dict.fromkeys(kinds))
    text = (about.get("License") or "").strip()
    return text.splitlines()[0][:60] if text else "not stated in its metadata"


def notice() -> str:
    """Return the text of NOTICE."""
    pins = (records.ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", pins, re.M)
    width = max(len(name) + len(version) for name, version in names) + 3
    rows = [f"{f'{name} {version}':{width}}{licence(name)}" for name, version in names]
    return HEAD + "\n" + "\n".join(rows) + "\n"


def main() -> int:
    """Write NOTICE."""
    (records.ROOT / "NOTICE").write_text(notice(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
