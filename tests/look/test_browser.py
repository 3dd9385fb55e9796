"""The report in a real Chromium: nothing is asked of the network or complained about, and axe finds nothing.

Needs the extra ``browser`` and a Chromium that is installed (``$CHROMIUM``, ``chromium`` or ``google-chrome``).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.look.conftest import Made

pytestmark = pytest.mark.browser
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra: pip install 'clipspm[browser]'")
    pytest.importorskip("axe_playwright_python", reason="needs the extra: pip install 'clipspm[browser]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("there is no Chromium: install it, or name it with CHROMIUM")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(made: Made) -> Path:
    place = made.folder.parent / "report.html"
    place.write_text(made.page, encoding="utf-8")
    return place


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_it_is_quiet_fits_and_everyone_can_read_it(
    chromium: Any, file: Path, size: tuple[int, int], scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]  # only tables scroll sideways
    ink, paper = page.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.documentElement))"
    )
    assert (ink == "rgb(27, 31, 36)") == (paper == "rgb(255, 255, 255)") == (scheme == "light")
    line = page.locator("#training-loss-axes_1 text, svg text").first
    assert page.evaluate("e => getComputedStyle(e).fill", line.element_handle()) == ink  # figures follow
    for opened in (False, True):
        if opened:
            page.locator(".matrix button").first.click()
        found = Axe().run(page).response["violations"]
        assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == []
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    context.close()


def test_a_cell_opens_its_pair_by_mouse_and_by_keyboard(chromium: Any, file: Path) -> None:
    page = chromium.new_page()
    page.goto(file.as_uri())
    opened = page.locator("[popover]:popover-open")
    button = page.locator(".matrix button").nth(1)
    button.click()
    assert opened.count() == 1
    assert opened.get_attribute("id") == button.get_attribute("popovertarget")
    strip = opened.locator(".strip").first
    assert strip.is_visible()
    assert "data:image/jpeg" in page.evaluate(
        "e => getComputedStyle(e).backgroundImage", strip.element_handle()
    )
    opened.locator("button").click()
    assert opened.count() == 0
    button.focus()
    page.keyboard.press("Enter")
    assert opened.count() == 1
    page.keyboard.press("Escape")
    assert opened.count() == 0
    page.keyboard.press("Home")
    page.locator("body").press("Tab")
    assert page.evaluate("document.activeElement.tagName") in ("A", "BUTTON")
    page.close()


def test_no_name_became_markup(chromium: Any, file: Path) -> None:
    page = chromium.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(file.as_uri())
    assert page.locator("script, img").count() == 0
    assert page.get_by_text("<script>alert(1)</script>").count() > 3
    assert dialogs == []
    page.close()
