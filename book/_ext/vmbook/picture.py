"""The README's picture, taken from the built book: ``make picture``."""

import shutil
import sys

from playwright.sync_api import sync_playwright

from vmbook.records import ROOT

PAGE = ROOT / "_build/html/book/cpu/run-a-vm.html"
PICTURE = ROOT / "book/_assets/readme.png"
STEP = 22  # KVM_RUN has returned for the first time: the arrow reaches the bottom lane


def main() -> int:
    """Open chapter 1, step its figure to the first exit, and keep what is seen."""
    chromium = shutil.which("chromium")
    if chromium is None or not PAGE.is_file():
        print("This needs chromium and a built book.")
        return 1
    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page(viewport={"width": 1080, "height": 1200}, device_scale_factor=1.5)
        page.goto(PAGE.as_uri())
        page.evaluate(f"document.getElementById('add').vmPlayer.go({STEP})")
        # The page's bars would lie over the figure.
        page.add_style_tag(content=".bd-header-article, .bd-header {display: none !important}")
        page.locator("#add").scroll_into_view_if_needed()
        page.locator("#add").screenshot(path=PICTURE, animations="disabled")
        browser.close()
    print(f"Wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
