"""The README's picture of a report: a desktop in light mode beside a phone in dark mode, by headless Chromium.

    python benchmarks/screenshots.py runs/demo/report.html docs/images/report.png

Needs chromium on the PATH.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

VIEWS = ((1180, "light"), (390, "dark"))
HEIGHT = 1500


def main(page: Path, out: Path) -> None:
    """Writes the picture."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no chromium or google-chrome on the PATH")
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, scheme in VIEWS:
            view = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)  # type: ignore[arg-type]
            view.goto(page.resolve().as_uri())
            if width < 500:
                view.locator("h2", has_text="While training").scroll_into_view_if_needed()
                view.evaluate("document.querySelectorAll('h2')[1].scrollIntoView()")
            shots.append(Image.open(io.BytesIO(view.screenshot())))
        browser.close()
    whole = Image.new("RGB", (sum(shot.width for shot in shots) + 20, HEIGHT), "#888888")
    x = 0
    for shot in shots:
        whole.paste(shot, (x, 0))
        x += shot.width + 20
    whole.save(out, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
