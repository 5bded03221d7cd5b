"""Pack the built book as a zip to take along: the same pages give the same bytes. `make zip`."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "_build" / "html"
OUTPUT = ROOT / "_build" / "unrolled.zip"
NEVER = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold, in place of the time of the build


def pack(book: Path, output: Path) -> None:
    """Write every file of the book, in order and without its date, into the folder `unrolled`."""
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(book.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                name = f"unrolled/{path.relative_to(book).as_posix()}"
                entry = zipfile.ZipInfo(name, NEVER)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes())


def main() -> int:
    pack(BOOK, OUTPUT)
    size = OUTPUT.stat().st_size / 1e6
    print(f"{OUTPUT.relative_to(ROOT)}: {size:.1f} MB; unpack it and open unrolled/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
