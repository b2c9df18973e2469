"""Takes a picture of a page, as a reader sees its top.

    python tests/report/screenshot.py PAGE.html OUT.png [WIDTH HEIGHT]

Needs what the tests in a browser need: playwright, and a Chromium of the machine's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update""".split()
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The Chromium that BSDKIT_CHROMIUM names, or the first on the path."""
    return os.environ.get("BSDKIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def main() -> None:
    from playwright.sync_api import sync_playwright

    page_file, out, *size = sys.argv[1:]
    width, height = map(int, size or (1280, 1600))
    browser_path = find_browser()
    if browser_path is None:
        sys.exit(f"no browser here ({', '.join(NAMES)}); BSDKIT_CHROMIUM may name one")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(Path(page_file).resolve().as_uri())
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
