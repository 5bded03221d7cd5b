"""What make bench-pages concludes from what Lighthouse reports."""

from __future__ import annotations

import json
import threading
import urllib.request
from functools import partial
from http.server import ThreadingHTTPServer

from benchmarks import pages
from tools import toc


def visit(performance, accessibility=100):
    return {
        "scores": {
            "performance": performance,
            "accessibility": accessibility,
            "best-practices": 100,
            "seo": 100,
        },
        "milliseconds": {"total-blocking-time": 1},
        "shift": 0.01,
        "machine": 1500,
    }


def test_the_median_of_the_speed_counts_and_the_worst_of_all_else():
    scores = pages.summary([visit(60), visit(97, 90), visit(92)])["scores"]
    assert scores["performance"] == 92 and scores["accessibility"] == 90
    assert pages.misses("mobile", scores) == ["accessibility 90, not 100"]
    assert pages.misses("desktop", visit(94)["scores"]) == ["performance 94, not 95"]


def test_every_page_of_the_contents_is_measured():
    names = toc.pages()
    assert names[0] == "book/index"
    assert {"book/02_gates", "book/solutions/02_gates", "book/api/gru"} < set(names)


def test_the_server_compresses_as_a_host_does_and_late_pictures_count(tmp_path, monkeypatch):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images/late.png").write_bytes(b"1234567")
    page = '<img alt="" src="../_images/late.png">' + " " * 10_000
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(pages.GzipHandler, directory=tmp_path))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{home}/page.html") as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            sent = len(answer.read())
        server.shutdown()
    assert sent < 200
    monkeypatch.setattr(pages, "BOOK", tmp_path)
    found = [{"requests": [{"url": f"{home}/page.html", "bytes": sent}]}]
    assert pages.total_bytes("page", home, found) == sent + 7


def test_every_page_was_measured_and_met_its_targets():
    results = json.loads(pages.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == toc.pages(), "make bench-pages"
    for name, page in results.items():
        assert page["bytes"] <= pages.MOST_BYTES, name
        for form in pages.TARGETS:
            assert not pages.misses(form, page[form]["scores"]), name
