"""The zip of the book: whole, in one folder, the same bytes for the same pages."""

from __future__ import annotations

import os
import zipfile

from tools.pack import pack


def test_the_same_pages_give_the_same_bytes(tmp_path):
    book = tmp_path / "html"
    (book / "book").mkdir(parents=True)
    for name in ("index.html", "book/b.html", "book/a.html", ".buildinfo"):
        (book / name).write_text(name, encoding="utf-8")
    pack(book, tmp_path / "1.zip")
    os.utime(book / "index.html", (0, 0))
    pack(book, tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        names = ["unrolled/book/a.html", "unrolled/book/b.html", "unrolled/index.html"]
        assert archive.namelist() == names
        assert archive.read(names[0]) == b"book/a.html"
