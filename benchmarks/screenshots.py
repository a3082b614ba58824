"""Pictures of the page, from the page itself: of the README, or of every view at every width, light and dark.

    python benchmarks/screenshots.py          # docs/detect.png and docs/models.png
    python benchmarks/screenshots.py --all shots/

Needs Chromium and playwright (`pip install -e '.[test]'`).
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from server_program import server_program

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
VIEWS = ("look", "library", "models", "machine")
TABS = ("Ask", "Caption", "Detect", "Point", "Gaze")
SIZES = ((390, 844), (1024, 768), (1920, 1080))
COLOURS = 128
"""Of a small PNG: the page has few"""


def settle(page: Page) -> None:
    """Wait until nothing runs, and all that is to be drawn is."""
    page.wait_for_function("() => !document.querySelector('.answer[data-state=running], .strip li.runs')")
    page.wait_for_timeout(300)


def visit(page: Page, url: str) -> None:
    page.goto(url)
    page.locator(".answer[data-state=done]").wait_for(timeout=60_000)
    settle(page)


def ask(page: Page, tab: str, text: str) -> None:
    page.get_by_role("tab", name=tab).click()
    page.get_by_test_id("question").fill(text)
    page.get_by_test_id("send").click()
    settle(page)


def show(page: Page, view: str) -> None:
    page.evaluate("view => (location.hash = view)", view)
    page.locator(f"#view-{view}").wait_for()
    page.wait_for_timeout(600)


def save(page: Page, path: Path) -> None:
    """As a PNG of few colours, which a README can bear."""
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def of_readme(page: Page, url: str) -> None:
    visit(page, url)
    ask(page, "Detect", "face, square, cross")
    save(page, DOCS / "detect.png")
    show(page, "models")
    save(page, DOCS / "models.png")


def of_all(page: Page, url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    visit(page, url)
    for tab in ("Detect", "Point"):
        ask(page, tab, "face, square")
    page.get_by_role("tab", name="Caption").click()
    page.get_by_test_id("caption-long").click()
    settle(page)
    show(page, "library")
    page.get_by_test_id("library-files").set_input_files([ROOT / "examples" / "scene.png"])
    page.wait_for_function("() => document.querySelector('#library-rows [data-state=done]')")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            for view in VIEWS:
                show(page, view)
                for tab in TABS if view == "look" else ("",):
                    if tab:
                        page.get_by_role("tab", name=tab).click()
                        page.wait_for_timeout(100)
                    name = "-".join(filter(None, (view, tab.lower(), str(width), scheme)))
                    save(page, folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every view, at every width, light and dark")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("needs Chromium: apt-get install chromium")
    with (
        tempfile.TemporaryDirectory() as folder,
        server_program("-m", "scenes", "--jobs-db", f"{folder}/jobs.db") as (_, url),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        if options.all:
            of_all(page, url, options.all)
        else:
            of_readme(page, url)
        browser.close()


if __name__ == "__main__":
    main()
