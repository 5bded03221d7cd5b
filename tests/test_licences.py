"""What others have made is listed in THIRD_PARTY.md, and the licence of its makers is there."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
from importlib.metadata import distribution

import pytest

from tools import notebooks

ROOT = notebooks.ROOT
LISTED = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
HERE, IN_THE_BOOK = LISTED.split("## In the built book")
# The files in the repository that we have not written ourselves.
VENDORED = re.compile(r"/vendor/|/static/licenses/|\.(npz|npy|woff2?|ttf|otf)$|\.min\.\w+$")


@pytest.fixture(scope="module")
def licences():
    path = ROOT / "book" / "_extensions" / "unrolled_licences.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_vendored_file_is_listed_and_its_licence_is_there():
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    files = [name for name in tracked.stdout.splitlines() if VENDORED.search(f"/{name}")]
    assert len(files) > 20 or not tracked.stdout, "git lists them"
    places = re.findall(r"`((?:book|src)/[^`]+)`", HERE)
    for name in files:
        if not name.startswith("book/static/licenses/"):
            assert any(name.startswith(place) for place in places), f"{name} is not listed"
    for place in [*places, *re.findall(r"`(LICENSE[\w-]*)`", HERE)]:
        assert (ROOT / place).exists(), place


def test_katex_is_what_npm_has():
    folder = ROOT / "book" / "static" / "vendor" / "katex"
    sums = dict(
        reversed(line.split("  "))
        for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    )
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert present == {*sums, "README.md", "SHA256SUMS"}
    for name, expected in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    version = re.search(r"# KaTeX (\S+)", (folder / "README.md").read_text(encoding="utf-8"))[1]
    assert f"| KaTeX | {version} |" in HERE


def test_what_the_pages_bring_along_is_listed_with_its_licence(licences):
    listed = re.findall(
        r"^\| \[(.+?)\]\((.+?)\).*? \| (\S+) \| `(\S+)` \|$", IN_THE_BOOK, re.MULTILINE
    )
    components = [
        (c.name, c.source, c.licence, f"{c.name.lower().replace(' ', '-')}.txt")
        for c in licences.COMPONENTS
    ]
    assert listed == components
    for component in licences.COMPONENTS:
        text = licences.licence_text(component, ROOT / "book" / "static")
        assert re.search("copyright", text, re.IGNORECASE), component.name
        assert re.search("permission|redistribution", text, re.IGNORECASE), component.name
    stored = {path.name for path in (ROOT / "book" / "static" / "licenses").iterdir()}
    assert stored < {name for *_, name in components}


def test_the_versions_of_what_others_bring_along_are_the_listed_ones():
    brought = {
        "Bootstrap": ("pydata-sphinx-theme", "scripts/bootstrap.js.LICENSE.txt"),
        "Font Awesome Free": ("pydata-sphinx-theme", "scripts/fontawesome.js.LICENSE.txt"),
        "clipboard.js": ("sphinx-copybutton", "clipboard.min.js"),
    }
    for name, (package, suffix) in brought.items():
        version = re.search(rf"\[{re.escape(name)}\]\S* (\d+\.\d+\.\d+)", IN_THE_BOOK)[1]
        file = next(f for f in distribution(package).files if f.as_posix().endswith(suffix))
        assert version in file.read_text(encoding="utf-8")[:400], name


def test_a_file_that_nobody_accounts_for_is_named(licences, tmp_path):
    for name in ("book.css", "vendor/katex/fonts/KaTeX_Main-Bold.woff2", "scripts/stranger.js"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    assert licences.unknown(tmp_path) == ["scripts/stranger.js"]
