"""What builds the book's pages, apart from vmlib: a Sphinx extension and its helpers."""

from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Register every part of the extension (Sphinx calls this)."""
    from vmbook import (
        badges,
        exits,
        figures,
        finish,
        fold,
        key,
        mathml,
        mime,
        predict,
        records,
        status,
        verify,
    )

    root = records.ROOT
    app.config.templates_path.insert(0, str(root / "book/_assets/templates"))
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it unasked
    for part in (key, mime, mathml, fold, badges, exits, predict, figures, finish, status, verify):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
