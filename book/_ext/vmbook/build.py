"""``python -m vmbook.build``: build the book, strictly, and say how to open it.

A warning fails the build. After a failure Sphinx would remember the pages it has read and be
silent about them the next time, so its memory of them is dropped; executions stay cached.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from vmbook import records

KERNEL = """\
c = get_config()
c.IPKernelApp.log_level = "ERROR"
c.HistoryManager.enabled = False
"""


def prepare_kernels(root: Path) -> None:
    """Let pages run under a plain kernel: no personal IPython settings, no history, no chatter."""
    profile = root / "_build/.ipython/profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(KERNEL, encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ["PYTHONHASHSEED"] = "0"


def build(root: Path, verbose: bool = False) -> int:
    """Build the book at `root` into its ``_build/html``; return 0 where nothing was wrong."""
    prepare_kernels(root)
    # Beside JupyterLab, jsonschema would compile a grammar of web addresses for three seconds.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    from jupyter_book.sphinx import build_sphinx

    out = root / "_build/html"
    result = build_sphinx(
        str(root),
        str(out),
        path_config=str(root / "_config.yml"),
        confoverrides={
            "external_toc_path": str(root / "_toc.yml"),
            "latex_individualpages": False,
        },
        noconfig=True,
        warningiserror=True,
        keep_going=True,
        quiet=not verbose,
    )
    code = result if isinstance(result, int) else 1
    if code:
        (root / "_build/.doctrees/environment.pickle").unlink(missing_ok=True)
    return code


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="vmbook.build", description="Build the book.")
    parser.add_argument("--verbose", action="store_true", help="show what Sphinx says")
    arguments = parser.parse_args()
    start = time.monotonic()
    first = not (records.ROOT / "_build/html/search.html").is_file()
    print("Building the book" + (", running its code: about a minute" if first else "") + " …")
    sys.stdout.flush()
    code = build(records.ROOT, arguments.verbose or bool(os.environ.get("VERBOSE")))
    took = time.monotonic() - start
    if code:
        print(f"\nThe book was not built cleanly: see the warnings above ({took:.0f} s).")
        return code
    page = records.ROOT / "_build/html/index.html"
    print(f"Built in {took:.1f} s. Open it in a browser:\n  {page.as_uri()}")
    print(
        "or serve it to this machine alone and open http://127.0.0.1:8000/\n"
        f"  {os.path.relpath(sys.executable)} -m http.server --bind 127.0.0.1 "
        "--directory _build/html 8000"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
