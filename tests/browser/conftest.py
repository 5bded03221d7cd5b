"""One server and one Chromium for all browser tests, and a page that tells what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tools import chromium

BOOK = Path(__file__).resolve().parents[2] / "_build" / "html"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PAGE_TIMEOUT = 20_000  # milliseconds that one action in the browser may take


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def book_server() -> Iterator[str]:
    """The address of a server for the built book, such as http://127.0.0.1:40123."""
    assert (BOOK / "index.html").exists(), "the book is not built: run make book"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=BOOK)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; no host but this one can be reached from it."""
    path = chromium.find()
    assert path is not None, chromium.HOW_TO_GET_ONE
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


def watch(context: BrowserContext, home: str) -> list[str]:
    """Return a list that fills with whatever goes wrong in the pages of `context`.

    That is an error in the console, an exception, a request that fails, is refused, or goes
    anywhere but to addresses that begin with `home`.
    """
    problems: list[str] = []

    def on_request(request) -> None:
        if not request.url.startswith((home, "data:", "blob:")):
            problems.append(f"asks for {request.url}")

    def on_console(message) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"console {message.type}: {message.text}")

    context.set_default_timeout(PAGE_TIMEOUT)
    context.on("request", on_request)
    context.on("requestfailed", lambda r: problems.append(f"fails: {r.url} ({r.failure})"))
    context.on(
        "response",
        lambda r: problems.append(f"status {r.status}: {r.url}") if r.status >= 400 else None,
    )
    context.on("console", on_console)
    context.on("weberror", lambda error: problems.append(f"exception: {error.error}"))
    return problems


def settle(page: Page) -> None:
    """Wait until the fonts are there."""
    page.wait_for_load_state("load")
    page.evaluate("document.fonts.ready.then(() => {})")


@pytest.fixture
def page(browser: Browser, book_server: str) -> Iterator[Page]:
    """A fresh desktop page, light; `page.goto("/book/index.html")` opens a page of the book.

    After the test it must have had no console error, no exception, no failed request and no request
    to another server.
    """
    context = browser.new_context(base_url=book_server, viewport=DESKTOP, color_scheme="light")
    problems = watch(context, book_server)
    yield context.new_page()
    context.close()
    assert not problems, "\n".join(problems)
