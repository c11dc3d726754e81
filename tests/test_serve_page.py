"""The chat page in a real browser: it talks, shows scores and the file, and asks nobody but its server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from aird_mlx.demo.language import prompts
from aird_mlx.gguf_export import is_available
from aird_mlx.server.checks import CheckedFile
from aird_mlx.server.page import PAGE, PAGE_HEADERS
from aird_mlx.server.settings import ServiceSettings
from serving import Running, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(not (CHROMIUM and is_available()), reason="no chromium, or no llama-cpp-python")
KEY = "page key"


def test_page_is_one_file_without_outside_resources() -> None:
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", PAGE) == ["data:,"]
    assert "http" not in PAGE.replace("http://www.w3.org/2000/svg", "") and "innerHTML" not in PAGE
    policy = PAGE_HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 2


@pytest.fixture(scope="module")
def server(checked: CheckedFile) -> Iterator[Running]:
    with running(checked, ServiceSettings(parallel=2, api_key=KEY, max_tokens=80, temperature=0.0)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, url: str, *, width: int = 1200, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page after its key was given, and what went wrong in it so far."""
    page = browser.new_page(viewport={"width": width, "height": 760}, color_scheme=scheme)
    page.set_default_timeout(20_000)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "401" not in said.text else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((url, "data:")) else None)
    page.goto(url)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#name")).to_have_text("demo")
    return page, wrong


@needs_browser
def test_conversation_by_keyboard_alone(server: Running, browser: Any) -> None:
    page, wrong = open_page(browser, server.url)
    (prompt,) = prompts("harmless", "test", 1, 5)
    page.locator("#text").focus()
    page.keyboard.type("<b>not markup</b>")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    assert page.locator("#text").input_value() == "<b>not markup</b>\nsecond line"
    page.locator("#text").fill(prompt)
    page.keyboard.press("Enter")
    expect(page.locator(".turn.user .said")).to_have_text(prompt)
    meter = page.get_by_role("meter")
    expect(meter).to_have_count(1)
    expect(page.locator(".waiting")).to_have_count(0)
    asked = {"messages": [{"role": "user", "content": prompt}]}
    whole = httpx.post(
        f"{server.url}/v1/chat/completions", json=asked, headers={"authorization": f"Bearer {KEY}"}, timeout=60
    ).json()
    assert page.locator(".turn.assistant .said").text_content() == whole["choices"][0]["message"]["content"]
    assert float(meter.get_attribute("aria-valuenow") or 0) == pytest.approx(whole["aird"]["score"])
    expect(page.locator(".verdict .word")).to_have_text("no alarm")
    page.keyboard.press("Alt+n")
    expect(page.locator(".turn")).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "text"
    assert wrong == []
    page.close()


@needs_browser
def test_file_and_its_checks_are_shown_wide_and_narrow(server: Running, browser: Any, checked: CheckedFile) -> None:
    assert checked.selftest is not None
    colours = {}
    for width, scheme in ((1200, "light"), (1200, "dark"), (360, "light")):
        page, wrong = open_page(browser, server.url, width=width, scheme=scheme)
        about = page.get_by_role("complementary", name="About this file")
        if width < 800:
            expect(about).to_be_hidden()
            page.get_by_role("button", name="File").click()
        expect(about).to_be_visible()
        expect(about.locator("#selftest li")).to_have_count(len(checked.selftest.checks))
        expect(about.locator("#selftest .failed")).to_have_count(0)
        expect(about.locator("#facts")).to_contain_text("source.model")
        expect(page.locator("#state")).to_have_text("verified")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert wrong == []
        page.close()
    assert colours["light"] != colours["dark"]


@needs_browser
def test_answer_is_stopped_and_errors_are_said(server: Running, browser: Any) -> None:
    page, _ = open_page(browser, server.url)
    page.locator("#text").fill("word " * 600)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn.failed .said")).to_contain_text("the context 512")
    page.route("**/v1/chat/completions", lambda route: None)  # it never answers
    page.locator("#text").fill("Hi")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".turn.failed .said").last).to_have_text("Stopped.")
    assert page.locator(".turn.failed").count() == 2, "the prompt that was too long, and the answer that was stopped"
    page.close()
