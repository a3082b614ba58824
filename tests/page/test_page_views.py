"""The page's other views, and what holds for all of it: accessible, reachable by keyboard, at every width."""

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from opening import show
from playwright.sync_api import Page, expect

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
VIEWS = ("look", "library", "models", "machine")


def test_a_library_is_captioned_in_the_background(page: Page, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(scene.read_bytes())
    show(page, "library")
    page.get_by_test_id("library-files").set_input_files([tmp_path / name for name in ("a.png", "b.png", "broken.png")])
    told = page.get_by_test_id("library-told")
    expect(told).to_have_text("3 of 3 done, 1 failed")
    rows = page.get_by_test_id("library-rows").locator("li")
    expect(rows.filter(has_text="broken.png")).to_contain_text("cannot read it as a picture")
    expect(rows.filter(has_text="a.png")).to_contain_text("circle")
    page.get_by_label("Filter by text").fill("b.png")
    expect(rows).to_have_count(1)
    page.get_by_label("Filter by text").fill("")
    with page.expect_download() as download:
        page.get_by_test_id("csv").click()
    lines = Path(download.value.path()).read_bytes().decode().split("\r\n")
    assert lines[0] == "name,status,caption,error" and len(lines) == 4
    assert next(line for line in lines if line.startswith("a.png")).startswith("a.png,done,")
    page.reload()
    expect(told).to_have_text("3 of 3 done, 1 failed")


def test_the_machine_is_plotted(page: Page) -> None:
    show(page, "machine")
    expect(page.locator("#machine-lead")).to_contain_text("scenes, float32, on cpu")
    assert page.get_by_test_id("plot").count() >= 6
    expect(page.get_by_test_id("plot").filter(has_text="Memory of the process")).to_contain_text(re.compile("[MG]B"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found: dict[str, Any] = {}
    for view in VIEWS:
        show(page, view)
        if view in ("library", "models", "machine"):
            page.locator(f"#view-{view} h1").wait_for()
        # Not as a script of the page's, which its policy refuses.
        page.evaluate(AXE)
        result = page.evaluate("() => axe.run()")
        found |= {f"{view}: {one['id']}": [node["html"][:200] for node in one["nodes"]] for one in result["violations"]}
    assert not found, found


def test_all_can_be_reached_by_keyboard(page: Page) -> None:
    page.locator("body").press("Tab")
    reached = []
    for _ in range(80):
        name = page.evaluate(
            """() => {
                const { id, dataset, className, tagName } = document.activeElement;
                return id || dataset.name || dataset.view || className || tagName;
            }"""
        )
        if name == "BODY":
            break
        reached.append(name)
        page.keyboard.press("Tab")
    wanted = [
        "skip",
        "brand",
        "model",
        "look",
        "library",
        "models",
        "machine",
        "theme",
        "canvas",
        "tab-ask",
        "copy",
        "code",
    ]
    wanted += ["again", "remove", "question", "think", "files", "camera", "address", "forget"]
    assert [name for name in reached if name in wanted] == wanted, reached


def test_keys(page: Page) -> None:
    page.keyboard.press("3")
    expect(page.get_by_role("tab", name="Detect")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("/")
    expect(page.get_by_test_id("question")).to_be_focused()
    page.keyboard.type("3")
    expect(page.get_by_role("tab", name="Detect")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Detect").press("ArrowRight")
    expect(page.get_by_role("tab", name="Point")).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#dialog")).to_contain_text("stops what runs")


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_nothing_is_cut_or_scrolls_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844 if width == 390 else 800})
    for view in VIEWS:
        show(page, view)
        wide = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, view
    show(page, "look")
    for id in ("canvas", "tabs", "question", "strip", "forget"):
        box = page.locator(f"#{id}").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width, id
    if width >= 1024:
        tall = page.evaluate("() => document.documentElement.scrollHeight - document.documentElement.clientHeight")
        assert tall <= 0
    canvas = page.get_by_test_id("canvas").bounding_box()
    assert canvas and canvas["height"] > 180


def test_a_view_has_an_address(opened: Callable[[str], Page], url: str) -> None:
    page = opened(f"{url}/#models")
    expect(page.get_by_test_id("models")).to_be_visible()
    expect(page.locator("#view-look")).to_be_hidden()
