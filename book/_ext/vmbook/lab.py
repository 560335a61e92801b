"""``python -m vmbook.lab``: JupyterLab on the labs, for this machine alone.

Its settings live in ``_build/.lab``, so a reader's own JupyterLab stays as it is. News, update
checks and the extension manager are off: the labs need nothing from outside.
"""

import json
import os
import sys
from pathlib import Path

from vmbook import build, records

CONFIG = """\
c = get_config()
c.ServerApp.ip = "127.0.0.1"
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabApp.extension_manager = "readonly"
c.LabServerApp.collaborative = False
"""
NOTIFICATION = {"fetchNews": "false", "checkForUpdates": False}
DISABLED = {"disabledExtensions": {"@jupyterlab/extensionmanager-extension": True}}


def settings(folder: Path) -> dict[str, str]:
    """Write the settings below `folder` and return the environment that makes them hold."""
    config, user = folder / "config", folder / "settings"
    notification = user / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    for path, text in (
        (config / "jupyter_lab_config.py", CONFIG),
        (config / "labconfig/page_config.json", json.dumps(DISABLED)),
        (notification, json.dumps(NOTIFICATION)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTERLAB_SETTINGS_DIR": str(user),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }


def command(arguments: list[str]) -> list[str]:
    """Return the command line of JupyterLab; root (in a container) has to be allowed by name."""
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    # Served from the project, so that a lab's link to its chapter leads somewhere.
    where = [f"--ServerApp.root_dir={records.ROOT}", "--LabApp.default_url=/lab/tree/labs"]
    return [sys.executable, "-m", "jupyterlab", *where, *root, *arguments]


def main() -> None:
    """Become JupyterLab."""
    build.prepare_kernels(records.ROOT)
    os.environ.update(settings(records.ROOT / "_build/.lab"))
    line = command(sys.argv[1:])
    os.execv(line[0], line)


if __name__ == "__main__":
    main()
