"""The page in a browser, over a real server and the bundled model: what a person asks is answered, and seen."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from guarded import PATIENCE
from opening import BLUE, ask, extent, last, look_at, near, screenshot
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect
from serving import NO_CLIENT, serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

MAX_BYTES = 150_000


def test_a_first_visit_shows_the_example_with_its_question_answered(page: Page) -> None:
    expect(page.get_by_test_id("text")).to_have_text("blue")
    expect(page.locator("#hint")).to_contain_text("drawn scenes")
    expect(page.locator("#hint a")).to_contain_text("moondream2")


def test_the_box_lies_over_the_circle(page: Page) -> None:
    """Its lines, seen, around the circle's pixels, seen."""
    pixels = screenshot(page)
    circle = extent(near(pixels, BLUE))
    box = extent(near(pixels, (86, 180, 233), 12))
    side = circle[2] - circle[0]
    assert side > 150
    assert all(abs(a - b) < 0.06 * side for a, b in zip(circle, box, strict=True)), (circle, box)
    page.get_by_role("tab", name="Detect").click()
    expect(page.get_by_test_id("count")).to_have_text("1")


def test_hovering_is_linked_both_ways(page: Page) -> None:
    page.get_by_role("tab", name="Detect").click()
    left, top, right, bottom = extent(near(screenshot(page), BLUE))
    page.get_by_test_id("canvas").hover(position={"x": int(left + right) // 2, "y": int(top + bottom) // 2})
    row = page.locator(".found li")
    expect(row).to_have_class("hovered")
    page.mouse.move(5, 5)
    expect(row).not_to_have_class("hovered")
    row.hover()
    expect(row).to_have_class("hovered")


def test_zooming_keeps_what_is_under_the_pointer_there(page: Page) -> None:
    view = json.loads(page.get_by_test_id("canvas").get_attribute("data-view") or "")
    page.get_by_test_id("canvas").hover(position={"x": 300, "y": 200})
    page.mouse.wheel(0, -300)
    page.wait_for_function("scale => JSON.parse(canvas.dataset.view).scale > scale", arg=view["scale"])
    zoomed = json.loads(page.get_by_test_id("canvas").get_attribute("data-view") or "")
    for axis, at in (("x", 300), ("y", 200)):
        before, after = ((at - v[axis]) / v["scale"] for v in (view, zoomed))
        assert before == pytest.approx(after, abs=0.01)
    page.get_by_test_id("canvas").dblclick()
    page.wait_for_function("x => JSON.parse(canvas.dataset.view).x === x", arg=view["x"])


def test_two_fingers_zoom_and_one_moves(page: Page) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})

    def touch(kind: str, *points: tuple[int, int]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def view() -> Any:
        return json.loads(page.get_by_test_id("canvas").get_attribute("data-view") or "")

    whole = view()
    touch("touchStart", (300, 300), (400, 300))
    touch("touchMove", (250, 300), (450, 300))
    touch("touchEnd")
    page.wait_for_function("scale => JSON.parse(canvas.dataset.view).scale > 1.5 * scale", arg=whole["scale"])
    zoomed = view()
    touch("touchStart", (300, 300))
    touch("touchMove", (330, 280))
    touch("touchEnd")
    page.wait_for_function("x => JSON.parse(canvas.dataset.view).x > x", arg=zoomed["x"])
    assert view()["y"] < zoomed["y"] and view()["scale"] == zoomed["scale"]
    page.get_by_role("button", name="Fit").click()
    page.wait_for_function("scale => JSON.parse(canvas.dataset.view).scale === scale", arg=whole["scale"])


def test_where_things_are_is_one_map_and_its_inverse(page: Page) -> None:
    worst = page.evaluate(
        """async () => {
            const { fit, toPicture, toScreen, zoom } = await import('/app/geometry.js');
            let worst = 0;
            for (const [width, height] of [[640, 480], [30, 4000], [5000, 7]]) {
                const whole = fit({ width, height }, { width: 900, height: 600 });
                for (const factor of [1, 2.5, 100]) {
                    const view = zoom(whole, whole, factor, { x: 123, y: 456 });
                    for (const point of [{ x: 0, y: 0 }, { x: 0.3, y: 0.9 }, { x: 1, y: 1 }]) {
                        const back = toPicture(view, { width, height }, toScreen(view, { width, height }, point));
                        worst = Math.max(worst, Math.abs(back.x - point.x), Math.abs(back.y - point.y));
                    }
                }
            }
            return worst;
        }"""
    )
    assert worst < 1e-9


def test_several_words_are_several_searches(page: Page) -> None:
    ask(page, "Detect", "face, square, circle")
    expect(page.get_by_test_id("answer")).to_have_count(3)  # the circle was looked for already
    for answer in page.get_by_test_id("answer").all():
        expect(answer).to_have_attribute("data-state", "done")
        expect(answer.get_by_test_id("count")).to_have_text("1")
        expect(answer.locator(".found li")).to_have_count(1)


def test_a_point_and_a_gaze(page: Page) -> None:
    ask(page, "Point", "circle")
    expect(last(page).locator(".found li")).to_have_count(1)
    page.get_by_role("tab", name="Gaze").click()
    page.get_by_test_id("pick").click()
    box = page.get_by_test_id("canvas").bounding_box()
    view = json.loads(page.get_by_test_id("canvas").get_attribute("data-view") or "")
    assert box
    page.mouse.click(
        box["x"] + view["x"] + 0.39 * 320 * view["scale"], box["y"] + view["y"] + 0.46 * 270 * view["scale"]
    )
    expect(last(page).locator(".found li")).to_contain_text("looks")


@pytest.mark.parametrize("length", ["short", "normal", "long"])
def test_a_caption_comes_piece_by_piece(page: Page, length: str) -> None:
    page.get_by_role("tab", name="Caption").click()
    page.evaluate(
        """() => {
            window.seen = new Set();
            const texts = () => document.querySelectorAll('[data-testid=text]');
            const look = () => texts().forEach((p) => seen.add(p.textContent.length));
            new MutationObserver(look).observe(answers, { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.get_by_test_id(f"caption-{length}").click()
    text = last(page).get_by_test_id("text").inner_text()
    assert "circle" in text.lower()
    assert page.evaluate("seen.size") > 3


def test_a_follow_up_goes_with_what_was_said(page: Page) -> None:
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Ask", "And the square?")
    messages = sent.value.post_data_json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "blue"
    last(page)


def test_escape_stops_what_runs(page: Page, url: str) -> None:
    page.get_by_role("tab", name="Caption").click()
    page.route("**/v1/caption", lambda route: route.continue_(post_data=endless(route.request.post_data_json)))
    page.get_by_test_id("caption-long").click()
    page.wait_for_function("() => document.querySelector('.answer[data-state=running] .text')?.textContent.length > 10")
    page.keyboard.press("Escape")
    answer = last(page, "stopped")
    kept = answer.get_by_test_id("text").inner_text()
    assert len(kept) > 10
    while httpx.get(f"{url}/v1/stats").json()["processing"]:
        pass
    assert answer.get_by_test_id("text").inner_text() == kept


def endless(body: Any) -> str:
    """The same request, with an answer of many tokens that are drawn at random."""
    return json.dumps(body | {"settings": {"temperature": 2.0, "max_tokens": 1500, "top_p": 1.0}})


def test_pictures_and_answers_are_there_after_a_reload_until_they_are_forgotten(page: Page, scene: Path) -> None:
    look_at(page, scene)
    ask(page, "Ask", "What color is the square?")
    expect(last(page).get_by_test_id("text")).to_have_text("yellow")
    page.wait_for_timeout(400)  # until it is written, 200 ms after the last change
    page.reload()
    expect(page.locator("#strip li")).to_have_count(2)
    expect(page.get_by_test_id("text").last).to_have_text("yellow")
    page.get_by_test_id("forget").click()
    page.get_by_test_id("sure").click()
    expect(page.locator("#strip li")).to_have_count(0)
    page.reload()
    expect(page.locator("#strip li")).to_have_count(1)  # the example again


def test_a_server_that_is_gone_is_said_so_and_found_again(
    page: Page, context: BrowserContext, faults: list[str]
) -> None:
    context.set_offline(True)
    ask(page, "Ask", "What shape is blue?")
    expect(last(page, "failed").locator(".error")).to_have_text("The server does not answer.")
    expect(page.get_by_test_id("gone")).to_contain_text("trying again")
    context.set_offline(False)
    expect(page.get_by_test_id("gone")).to_have_count(0)
    page.get_by_test_id("answer").last.get_by_test_id("again").click()
    expect(last(page).get_by_test_id("text")).to_have_text("circle")
    assert all("ERR_INTERNET_DISCONNECTED" in fault for fault in faults)
    faults.clear()


def test_a_key_is_asked_for_and_kept_for_the_session(opened: Callable[[str], Page], faults: list[str]) -> None:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",), api_keys=("right",)))) as url:
        page = opened(url)
        expect(page.locator("#notice")).to_contain_text("wants a key")
        page.get_by_test_id("key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("not one of the server's")
        page.get_by_test_id("key").fill("right")
        page.keyboard.press("Enter")
        expect(last(page)).to_contain_text("blue")
        page.reload()
        expect(last(page)).to_contain_text("blue")
        expect(page.locator("#notice")).to_be_empty()
    assert faults and all("401" in fault for fault in faults)
    faults.clear()


def test_it_works_without_https_on_another_machine(opened: Callable[[str], Page]) -> None:
    """There pages have no clipboard and no randomUUID."""
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",), host="0.0.0.0"))) as url:
        page = opened(url.replace("127.0.0.1", "galago.test"))
        assert page.evaluate("() => !isSecureContext && !navigator.clipboard")
        expect(page.get_by_test_id("text")).to_have_text("blue")
        page.locator("[data-name=copy]").click()
        expect(page.locator("[data-name=copy]")).to_have_text("Copied")


def test_a_call_is_shown_as_code(page: Page) -> None:
    page.get_by_test_id("code").click()
    dialog = page.locator("#dialog")
    expect(dialog.locator("h3")).to_have_text(["curl", "openai (Python)", "moondream (Python)", "JavaScript"])
    expect(dialog).to_contain_text("What color is the circle?")
    assert "base64," not in dialog.inner_text().replace("data:;base64,", "")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()


@pytest.mark.parametrize("kind", ["curl", "openai (Python)", "moondream (Python)"])
def test_what_is_shown_as_code_runs(page: Page, scene: Path, tmp_path: Path, kind: str) -> None:
    if kind.startswith("moondream"):
        pytest.importorskip("moondream", reason=NO_CLIENT)
    page.get_by_test_id("code").click()
    code = (
        page.locator("#dialog section").filter(has=page.get_by_role("heading", name=kind)).locator("code").inner_text()
    )
    (tmp_path / "example.png").write_bytes(scene.read_bytes())
    command = ["bash", "-c", code] if kind == "curl" else [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode == 0 and "blue" in said.stdout, said


@pytest.mark.parametrize("tab", ["Caption", "Detect", "Point"])
def test_other_calls_run_as_code_too(page: Page, scene: Path, tmp_path: Path, tab: str) -> None:
    name = 'a scene\'s "$HOME".png'
    (tmp_path / name).write_bytes(scene.read_bytes())
    look_at(page, tmp_path / name)
    if tab == "Caption":
        page.get_by_role("tab", name=tab).click()
        page.get_by_test_id("caption-short").click()
    else:
        ask(page, tab, "square")
    last(page).get_by_test_id("code").click()
    code = page.locator("#dialog section").first.locator("code").inner_text()
    said = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    wanted = {"Caption": "caption", "Detect": "objects", "Point": "points"}[tab]
    assert json.loads(said.stdout)[wanted], said


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_javascript_runs(page: Page, scene: Path) -> None:
    page.get_by_test_id("code").click()
    code = page.locator("#dialog section").last.locator("code").inner_text()
    image = "data:image/png;base64," + base64.b64encode(scene.read_bytes()).decode()
    module = f"const image = {json.dumps(image)};\n{code}"
    said = subprocess.run(
        ["node", "--input-type=module", "-e", module], capture_output=True, text=True, timeout=PATIENCE
    )
    assert "blue" in said.stdout, said


def test_it_is_painted_at_once(opened: Callable[[str], Page], url: str) -> None:
    """In a few times what the same browser needs for an empty page."""
    page = opened(f"{url}/docs")
    paint = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    page.wait_for_function(paint)
    plain = page.evaluate(paint)
    page.goto(url)
    page.wait_for_function(paint)
    assert page.evaluate(paint) < 10 * plain


def test_what_was_found_is_downloaded(page: Page) -> None:
    page.get_by_role("tab", name="Detect").click()
    with page.expect_download() as download:
        page.get_by_test_id("png").click()
    drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    circle, box = extent(near(drawn, BLUE)), extent(near(drawn, (86, 180, 233), 12))
    assert all(abs(a - b) < 0.06 * (circle[2] - circle[0]) for a, b in zip(circle, box, strict=True))
    with page.expect_download() as download:
        page.get_by_test_id("json").click()
    told = json.loads(Path(download.value.path()).read_text())
    assert [one["detect"] for one in told["found"]] == ["circle"] and told["found"][0]["x_max"] > 0.9


def test_what_was_found_is_hidden_and_shown(page: Page) -> None:
    page.get_by_role("tab", name="Detect").click()
    chip = page.get_by_test_id("chip")
    for is_shown in ("false", "true"):
        before = screenshot(page)
        chip.click()
        expect(chip).to_have_attribute("aria-pressed", is_shown)
        page.wait_for_function("shown => document.getElementById('downloads').hidden !== shown", arg=is_shown == "true")
        drawn = near(screenshot(page), (86, 180, 233), 12).sum(), near(before, (86, 180, 233), 12).sum()
        assert (drawn[0] > drawn[1]) == (is_shown == "true")


def test_nothing_is_loaded_from_elsewhere_and_it_is_small(
    opened: Callable[[str], Page], context: BrowserContext, url: str
) -> None:
    sizes: dict[str, int] = {}
    others: list[str] = []

    def watch(request: Any) -> None:
        if not request.url.startswith((url, "blob:", "data:")):
            others.append(request.url)

    context.on("request", watch)
    context.on(
        "response", lambda r: sizes.update({r.url: len(r.body())}) if "/app/" in r.url or r.url == f"{url}/" else None
    )
    page = opened(url)
    page.locator(".answer[data-state=done]").wait_for()
    for view in ("library", "models", "machine"):
        page.evaluate("view => (location.hash = view)", view)
        page.locator(f"#view-{view} h1").wait_for()
    assert not others
    assert 20_000 < sum(sizes.values()) <= MAX_BYTES, sizes
