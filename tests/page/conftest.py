"""A browser, and a server of the bundled models whose page it opens."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guarded import PATIENCE
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from serving import serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream"]
ARGUMENTS += ["--use-fake-ui-for-media-stream"]
# A name that is not this machine's own, so that what needs https is missing.
ARGUMENTS += ["--host-resolver-rules=MAP galago.test 127.0.0.1"]

# A slow machine is no fault.
expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for all tests: as long as it is there, an event loop seems to run in this thread."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = tmp_path_factory.mktemp("page") / "jobs.db"
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    settings = ServerSettings(model=("scenes", "motion"), jobs_db=str(database), jobs_keep_s=3600)
    with serving(create_app(pool, settings)) as url:
        yield url


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor who was never here; what goes wrong in the page fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(1000 * PATIENCE)
    yield context
    context.close()


@pytest.fixture
def faults() -> list[str]:
    """What went wrong in a page, in words; empty at the end unless a test says otherwise."""
    return []


@pytest.fixture
def opened(context: BrowserContext, faults: list[str]) -> Iterator[Callable[[str], Page]]:
    def open_it(address: str) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.goto(address)
        return page

    yield open_it
    assert not faults


@pytest.fixture
def page(opened: Callable[[str], Page], url: str) -> Page:
    """The page of a first visit, once the example's question is answered."""
    page = opened(url)
    page.locator(".answer[data-state=done]").wait_for()
    page.wait_for_function("() => !document.querySelector('.strip li.runs')")
    return page


@pytest.fixture
def scene() -> Path:
    return Path(__file__).parents[2] / "examples" / "scene.png"
