"""``python environment.py FOLDER``: make the virtual environment, or say what is missing.

Runs under whatever Python the reader has, so it needs nothing but the standard library.
"""

import os
import subprocess
import sys

OLDEST = (3, 11)


def main(folder):
    """Make the environment at `folder` unless there is a usable one."""
    major, minor = sys.version_info[:2]
    if (major, minor) < OLDEST:
        return (
            f"The book needs Python 3.11 or later; {sys.executable} is Python {major}.{minor}.\n"
            "If a later one is installed, name it:  make PYTHON=python3.12 book"
        )
    python = os.path.join(folder, "bin", "python")
    if os.path.exists(python) and not subprocess.call(
        [python, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))"],
        stderr=subprocess.DEVNULL,
    ):
        return 0
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        return (
            "This Python cannot make virtual environments: a part of it is packaged apart.\n"
            f"On Debian and Ubuntu:  apt install python{major}.{minor}-venv"
        )
    print(f"Making a virtual environment in {folder} …", flush=True)
    venv.create(folder, with_pip=True, clear=os.path.exists(folder), symlinks=os.name != "nt")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
