"""The table of contents, as `_toc.yml` says it."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def parts() -> list[tuple[str, list[str]]]:
    """Return the parts of the book, each with its caption and its pages, such as book/api/gru."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = [("", [toc["root"]])]
    for part in toc["parts"]:
        pages = []
        for entry in part["chapters"]:
            pages += [entry["file"], *(section["file"] for section in entry.get("sections", []))]
        found.append((part["caption"], pages))
    return found


def pages() -> list[str]:
    """Return all pages of the book, in the order of reading."""
    return [page for _, pages in parts() for page in pages]
