"""Pictures and videos come to the page: files, drops, the camera, addresses; and what is asked of a video."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from guarded import PATIENCE
from opening import BLUE, ask, extent, last, look_at, near, screenshot, show
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from serving import serving
from websites import served

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"


def add(page: Page, video: Path) -> None:
    page.get_by_test_id("files").set_input_files(video)
    page.locator("#transport").wait_for()


def drop(page: Page, paths: list[Path]) -> None:
    """As a person drops them from a window of files; folders too."""
    box = page.locator("body").bounding_box()
    assert box
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        at = {"x": box["width"] / 3, "y": box["height"] / 2}
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_that_lies_on_its_side_is_seen_upright(
    page: Page, scene: Path, tmp_path: Path, orientation: int
) -> None:
    """As EXIF says; and what is sent is upright too, so that boxes lie where they belong."""
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(scene).convert("RGB").transpose(turn).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    look_at(page, tmp_path / "turned.jpg")
    ask(page, "Detect", "circle")
    last(page)
    pixels = screenshot(page)
    circle, box = extent(near(pixels, BLUE)), extent(near(pixels, (86, 180, 233), 12))
    assert circle[0] > pixels.shape[1] // 2, "the circle is at the right"
    assert all(abs(a - b) < 0.08 * (circle[2] - circle[0]) for a, b in zip(circle, box, strict=True)), (circle, box)


def test_a_huge_picture_is_made_smaller_before_it_is_sent(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (5000, 3000), "red").save(tmp_path / "huge.png")
    look_at(page, tmp_path / "huge.png")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Ask", "What color is it?")
    last(page)
    assert len(sent.value.post_data or "") < 200_000


def test_what_is_no_picture_is_said_so(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page.get_by_test_id("files").set_input_files(tmp_path / "notes.txt")
    expect(page.locator("#notice")).to_contain_text("notes.txt cannot be read")
    expect(page.locator("#strip li")).to_have_count(1)


def test_a_video_is_watched(page: Page) -> None:
    page.get_by_test_id("files").set_input_files(Path(__file__).parents[2] / "examples" / "clip.mp4")
    page.locator("#transport").wait_for()
    page.get_by_test_id("question").fill("What color is the shape?")
    page.get_by_test_id("watch").click()
    answer = page.get_by_test_id("answer").last
    expect(answer).to_have_attribute("data-state", "done", timeout=12 * 1000 * PATIENCE)  # as many answers
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


def test_a_whole_video_is_asked_about_where_the_model_takes_it(page: Page, tmp_path: Path) -> None:
    show(page, "models")
    page.get_by_test_id("model-motion").get_by_role("button", name="Choose").click()
    show(page, "look")
    add(page, CLIP)
    ask(page, "Ask", "What moves?")
    expect(last(page)).to_contain_text("green star")
    expect(last(page)).to_contain_text("whole video")
    last(page).get_by_test_id("code").click()
    code = page.locator("#dialog section").first.locator("code").inner_text()
    (tmp_path / CLIP.name).write_bytes(CLIP.read_bytes())
    said = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert "green star" in said.stdout, said


def test_what_was_found_is_drawn_over_its_own_frame(page: Page) -> None:
    add(page, CLIP)
    ask(page, "Point", "star")
    expect(last(page).locator(".found li")).to_have_count(1)
    expect(page.locator("#downloads")).to_be_visible()
    page.locator("#seek").fill("0.9")
    expect(page.locator("#downloads")).to_be_hidden()
    last(page).get_by_role("button", name="at 0.0 s").click()
    expect(page.locator("#downloads")).to_be_visible()


def test_pictures_are_dropped(page: Page, scene: Path) -> None:
    drop(page, [scene, CLIP])
    expect(page.locator("#strip li")).to_have_count(3)


def test_a_folder_is_dropped_on_the_library(page: Page, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday" / "beach").mkdir(parents=True)
    for name in ("holiday/a.png", "holiday/beach/b.png"):
        (tmp_path / name).write_bytes(scene.read_bytes())
    show(page, "library")
    page.get_by_test_id("library-what").select_option("question")
    drop(page, [tmp_path / "holiday"])
    expect(page.locator("#library-problem")).to_contain_text("what is to be asked")
    page.get_by_label("Question about each picture").fill("What color is the circle?")
    drop(page, [tmp_path / "holiday"])
    expect(page.get_by_test_id("library-told")).to_have_text("2 of 2 done, 0 failed")
    rows = page.get_by_test_id("library-rows").locator("li")
    expect(rows.filter(has_text="holiday/beach/b.png")).to_contain_text("blue")
    expect(rows.filter(has_text="holiday/a.png")).to_contain_text("blue")
