"""What a lab needs from the notebook around it: errors that read like a sentence.

A reader who runs a cell before the one above it gets a `NameError` and a traceback of somebody
else's machinery. `friendly_errors()` answers with one line that says what to do.
"""

from typing import Any

from vmlib.errors import VmlibError


def explain(error: BaseException) -> str:
    """Return what to tell the reader about an error in a cell."""
    if isinstance(error, NameError):
        return (
            f"`{error.name}` is not there yet. A cell above makes it: run the cells in order "
            "(menu Run, Run All Above Selected Cell), then this one again."
        )
    return f"{type(error).__name__}: {error}"


def friendly_errors() -> None:
    """Answer vmlib's own errors and names that are missing with a sentence. A no-op in a script."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((VmlibError, NameError), _show)


def _show(shell: Any, kind: type, error: BaseException, *_: Any, **__: Any) -> Any:
    """Show one line, and return a traceback of that line, so that the cell still has failed."""
    line = explain(error)
    shell._showtraceback(kind, error, [line])
    return [line]
