"""A small page with figures on it, opened from the disk in a real browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmlib.view import assets

STYLE = (
    "body{margin:0 auto;max-width:46rem;padding:1rem 1.25rem;font-family:sans-serif;"
    "background:#fff;color:#1c1e21}"
    "html[data-theme=dark]{--pst-color-background:#14181e}"
    "html[data-theme=dark] body{background:#14181e;color:#e8eaed}"
)


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`open_page(body, …)` writes a page and opens it from file://; script errors fail the test."""
    contexts: list[Any] = []
    errors: list[str] = []

    def open_(
        body: str,
        *,
        fragment: str = "",
        width: int = 1280,
        theme: str = "light",
        before: str = "",
        script: str | None = None,
        **options: Any,
    ) -> Any:
        text = (
            f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">'
            f"<title>page</title><style>{STYLE}{assets.stylesheet()}</style>"
            f"<main><h1>A page</h1>{body}</main>"
            f"<script>{before}</script><script>{script or assets.script()}</script></html>"
        )
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []
