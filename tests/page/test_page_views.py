"""The page's other views, and what holds for all of it: accessible, reachable by keyboard, at every width."""

import re
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from guarded import PATIENCE
from playwright.sync_api import BrowserContext, Page, expect
from serving import serving
from websites import served

import galago
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
VIEWS = ("look", "library", "models", "machine")


def show(page: Page, view: str) -> None:
    # On a phone the name leads to the pictures.
    there = ".brand" if view == "look" else f"nav a[data-view={view}]"
    page.locator(there).click()
    page.locator(f"#view-{view}").wait_for()


def test_a_model_is_chosen_unloaded_and_loaded(page: Page, url: str) -> None:
    show(page, "models")
    motion = page.get_by_test_id("model-motion")
    motion.get_by_role("button", name="Unload").click()
    expect(motion.get_by_role("button", name="Load", exact=True)).to_be_visible()
    loaded = {one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"] if one["loaded"]}
    assert loaded == {"scenes"}
    motion.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_test_id("model")).to_contain_text("motion")
    show(page, "look")
    expect(page.get_by_role("tab", name="Detect")).to_have_class("lacks")
    show(page, "models")
    page.get_by_test_id("model-scenes").get_by_role("button", name="Choose").click()
    expect(page.get_by_test_id("model")).to_contain_text("scenes")


def test_the_chooser_says_what_each_model_takes(page: Page) -> None:
    show(page, "models")
    row = page.get_by_test_id("model-moondream2")
    expect(row).to_contain_text("captions, questions")
    expect(row).to_contain_text("2.4 GB")
    expect(row.get_by_title("INT8:")).to_be_visible()
    expect(page.locator("#view-models")).to_contain_text("Lightweight (CPU-friendly)")
    expect(page.locator("#view-models")).to_contain_text("Drawn scenes only")


def test_a_load_that_fails_says_why(page: Page, faults: list[str]) -> None:
    show(page, "models")
    # The hub cannot be reached from the tests.
    row = page.get_by_test_id("model-smolvlm-256m")
    row.get_by_role("button", name="Load").click()
    expect(row.get_by_role("alert")).not_to_be_empty()
    expect(row.get_by_role("button", name="Load")).to_be_enabled()
    faults.clear()


def test_a_download_is_followed_and_left_to_itself(opened: Callable[[str], Page]) -> None:
    """Of a model that comes as slowly as this test says."""
    here, asked = threading.Event(), threading.Event()

    def load(name: str, progress: Any) -> galago.Model:
        if name == "motion":
            progress(1_000_000, 3_000_000)
            asked.set()
            assert here.wait(PATIENCE)
        return galago.load(name, device="cpu")

    pool = ModelPool(1 << 40, keep_alive=None, load=load)
    with serving(create_app(pool, ServerSettings(model=("scenes",)))) as url:
        page = opened(url)
        show(page, "models")
        row = page.get_by_test_id("model-motion")
        row.get_by_role("button", name="Load").click()
        expect(row.locator("progress")).to_have_attribute("value", "1000000")
        expect(row).to_contain_text("33 %")
        row.get_by_role("button", name="Leave").click()
        expect(row.locator("progress")).to_have_count(0)
        expect(row).to_contain_text("loading")  # the server goes on
        here.set()
        row.get_by_role("button", name="Choose").click()
        expect(row).to_contain_text("answers")


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


def test_a_video_is_watched(page: Page) -> None:
    page.get_by_test_id("files").set_input_files(Path(__file__).parents[2] / "examples" / "clip.mp4")
    page.locator("#transport").wait_for()
    page.get_by_test_id("question").fill("What color is the shape?")
    page.get_by_test_id("watch").click()
    answer = page.get_by_test_id("answer").last
    expect(answer).to_have_attribute("data-state", "done")
    parts = answer.get_by_test_id("timeline").locator("span")
    frames = parts.evaluate_all("all => all.map((part) => Number(part.style.flexGrow))")
    assert sum(frames) == 12 and len(frames) == answer.locator(".spans li").count()
    answer.locator(".spans button").last.click()
    found = re.match(r"[\d.]+", answer.locator(".spans button").last.inner_text())
    assert found
    last = float(found[0])
    page.wait_for_function("at => Math.abs(parseFloat(document.getElementById('clock').value) - at) < 0.2", arg=last)


def test_the_camera_gives_a_picture(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["camera"])
    page.locator("#camera").click()
    page.wait_for_function("() => document.querySelector('dialog video')?.videoWidth > 0")
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#strip li")).to_have_count(2)


def test_a_view_has_an_address(opened: Callable[[str], Page], url: str) -> None:
    page = opened(f"{url}/#models")
    expect(page.get_by_test_id("models")).to_be_visible()
    expect(page.locator("#view-look")).to_be_hidden()


def test_a_picture_is_added_by_its_address(opened: Callable[[str], Page], scene: Path, faults: list[str]) -> None:
    """The server fetches it: the page may load nothing from other sites."""
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    settings = ServerSettings(model=("scenes",), allow_image_hosts=("127.0.0.1",))
    with (
        serving(create_app(pool, settings)) as url,
        served(scene.read_bytes()) as site,
        served(b"<script>no picture</script>") as other,
    ):
        page = opened(url)
        page.locator(".answer[data-state=done]").wait_for()
        page.locator("#address").click()
        address = page.get_by_label("Address of a picture")
        refusals = ((other, "neither a picture"), (f"{site}/none", "404"), ("http://10.0.0.1/", "public"))
        for wrong, words in refusals:
            address.fill(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("dialog .error")).to_contain_text(words)
        address.fill(f"{site}/a.png")
        page.keyboard.press("Enter")
        expect(page.locator("#strip li")).to_have_count(2)
        assert httpx.post(f"{url}/app/fetch", content=f'{{"url": "{site}"}}').status_code == 400, "another site could"
    assert all("400" in fault for fault in faults)
    faults.clear()


def test_models_in_memory_are_compared(page: Page) -> None:
    page.get_by_role("tab", name="Caption").click()
    page.get_by_test_id("compare").check()
    page.get_by_test_id("caption-short").click()
    expect(page.get_by_test_id("answer")).to_have_count(2)
    for name, answer in zip(("scenes", "motion"), page.get_by_test_id("answer").all(), strict=True):
        expect(answer).to_have_attribute("data-state", "done")
        expect(answer).to_contain_text(name)
