"""Run every lab and keep its outputs: ``python -m vmbook.labs [NAME…]``.

The stored outputs are what the tests compare with. Widget state is not stored: it would put the
player's script into each notebook, and neither page nor JupyterLab needs it.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from vmbook.records import ROOT


def execute(path: Path) -> None:
    """Run one lab from a fresh kernel in its own folder, and write it back."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": path.parent}})
    client.execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day: a difference in every run
    nbformat.write(notebook, path)


def main(names: list[str]) -> int:
    """Execute the named labs, or all."""
    for path in sorted((ROOT / "labs").glob("*/*.ipynb")):
        if not names or path.stem in names:
            print(path.relative_to(ROOT))
            execute(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
