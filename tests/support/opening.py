"""What tests of the page do in it, as a person would."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

BLUE = (36, 95, 235)
"""Of the circle in examples/scene.png"""


def show(page: Page, view: str) -> None:
    # On a phone the name leads to the pictures.
    there = ".brand" if view == "look" else f"nav a[data-view={view}]"
    page.locator(there).click()
    page.locator(f"#view-{view}").wait_for()


def look_at(page: Page, picture: Path) -> None:
    """Add a file, and wait until it is what is shown: a question before that is about the one before."""
    page.get_by_test_id("files").set_input_files(picture)
    shown = page.get_by_role("listbox", name="Pictures").get_by_role("option", name=f"{picture.name},")
    expect(shown).to_have_attribute("aria-selected", "true")


def ask(page: Page, tab: str, text: str) -> None:
    page.get_by_role("tab", name=tab).click()
    page.get_by_test_id("question").fill(text)
    page.get_by_test_id("send").click()


def last(page: Page, state: str = "done") -> Locator:
    """The newest answer of the tab, once it has come to this state."""
    answer = page.get_by_test_id("answer").last
    expect(answer).to_have_attribute("data-state", state)
    return answer


def screenshot(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.get_by_test_id("canvas").screenshot())).convert("RGB")).astype(int)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set."""
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max(), ys.max()


def near(pixels: np.ndarray, colour: tuple[int, int, int], most: int = 40) -> np.ndarray:
    return np.abs(pixels - np.array(colour)).max(axis=-1) < most
