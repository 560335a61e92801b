"""``python venv.py FOLDER``: make the virtual environment, or say what is missing.

Runs under whatever Python the reader has, so it uses the standard library and old syntax only.
"""

import os
import subprocess
import sys

OLDEST = (3, 11)


def main(folder):
    """Make the environment at `folder` unless there is a usable one."""
    if sys.version_info < OLDEST:
        found = "%d.%d" % sys.version_info[:2]
        return (
            "The book needs Python 3.11 or later; %s is Python %s.\n"
            "If a later one is installed, name it:  make PYTHON=python3.12 book"
            % (sys.executable, found)
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
            "On Debian and Ubuntu:  apt install python%d.%d-venv" % sys.version_info[:2]
        )
    print("Making a virtual environment in %s …" % folder, flush=True)
    venv.create(folder, with_pip=True, clear=os.path.exists(folder), symlinks=os.name != "nt")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
