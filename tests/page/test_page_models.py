"""The chooser of models: what each takes, loading, giving up, precisions, and several that are compared."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from guarded import PATIENCE
from opening import show
from playwright.sync_api import APIResponse, Page, Route, expect
from serving import serving

import galago
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings


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


def test_a_list_that_comes_late_does_not_take_back_what_was_loaded(page: Page) -> None:
    show(page, "models")
    motion = page.get_by_test_id("model-motion")
    motion.get_by_role("button", name="Unload").click()
    expect(motion.get_by_role("button", name="Load", exact=True)).to_be_visible()
    late: list[tuple[Route, APIResponse]] = []

    def hold_first(route: Route) -> None:
        if late:
            route.continue_()
        else:
            late.append((route, route.fetch()))

    page.route("**/v1/models", hold_first)
    show(page, "look")
    show(page, "models")
    motion.get_by_role("button", name="Load", exact=True).click()
    expect(page.get_by_test_id("model")).to_contain_text("motion")
    [(route, response)] = late
    with page.expect_response("**/v1/models"):
        route.fulfill(response=response)
    show(page, "look")
    show(page, "models")
    expect(motion).to_contain_text("answers")
    expect(page.get_by_test_id("model")).to_contain_text("motion")
    page.get_by_test_id("model-scenes").get_by_role("button", name="Choose").click()


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


@pytest.mark.parametrize("end", ["loaded", "given up"])
def test_a_download_is_followed_and_can_be_given_up(opened: Callable[[str], Page], end: str) -> None:
    """Of a model that comes as slowly as this test says."""
    here, asked = threading.Event(), threading.Event()

    def load(name: str, progress: Any) -> galago.Model:
        if name == "motion":
            progress(1_000_000, 3_000_000)
            asked.set()
            assert here.wait(PATIENCE)
            progress(3_000_000, 3_000_000)
        return galago.load(name, device="cpu")

    pool = ModelPool(1 << 40, keep_alive=None, load=load)
    with serving(create_app(pool, ServerSettings(model=("scenes",)))) as url:
        page = opened(url)
        show(page, "models")
        row = page.get_by_test_id("model-motion")
        row.get_by_role("button", name="Load").click()
        expect(row.locator("progress")).to_have_attribute("value", "1000000")
        expect(row).to_contain_text("33 %")
        if end == "given up":
            row.get_by_role("button", name="Cancel").click()
            expect(row.locator("progress")).to_have_count(0)
            here.set()
            expect(row.get_by_role("button", name="Load")).to_be_enabled()
        else:
            page.reload()  # the server goes on, and another page sees that
            expect(row).to_contain_text("loading")
            here.set()
            row.get_by_role("button", name="Choose").click()
            expect(row).to_contain_text("answers")


def test_a_model_is_loaded_in_the_precision_that_is_chosen(opened: Callable[[str], Page]) -> None:
    pool = ModelPool(2_000_000_000, keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",)))) as url:
        page = opened(url)
        show(page, "models")
        large = page.get_by_test_id("model-moondream2")
        expect(large).to_contain_text("does not fit in 2.0 GB; int4 would")
        expect(large.get_by_role("button", name="Load")).to_be_disabled()
        large.get_by_label("int4", exact=True).check()
        expect(large).not_to_contain_text("does not fit")
        expect(large.get_by_role("button", name="Load")).to_be_enabled()
        small = page.get_by_test_id("model-motion")
        small.get_by_label("int8", exact=True).check()
        small.get_by_role("button", name="Load").click()
        expect(page.get_by_test_id("model")).to_contain_text("motion-int8 · int8")
        expect(page.get_by_test_id("model-motion-int8")).to_contain_text("answers")


def test_models_in_memory_are_compared(page: Page) -> None:
    page.get_by_role("tab", name="Caption").click()
    page.get_by_test_id("compare").check()
    page.get_by_test_id("caption-short").click()
    expect(page.get_by_test_id("answer")).to_have_count(2)
    for name, answer in zip(("scenes", "motion"), page.get_by_test_id("answer").all(), strict=True):
        expect(answer).to_have_attribute("data-state", "done")
        expect(answer).to_contain_text(name)
