"""Write the declared repository into the first code cell of every notebook.

With an argument, declare that address in pyproject.toml first: `make repository URL=https://...`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebooks  # noqa: E402


def main() -> None:
    if len(sys.argv) > 1:
        url = sys.argv[1].removesuffix("/").removesuffix(".git")
        if not re.fullmatch(r"https://[\w.-]+/[\w.-]+/[\w.-]+", url):
            sys.exit(f"{url!r} is not of the form https://host/owner/name.")
        pyproject = ROOT / "pyproject.toml"
        text = pyproject.read_text(encoding="utf-8")
        pyproject.write_text(
            re.sub(r'^Repository = ".*"$', f'Repository = "{url}"', text, flags=re.MULTILINE),
            encoding="utf-8",
        )
    source = notebooks.setup_cell()
    for path in notebooks.all_notebooks():
        notebook = notebooks.read(path)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        if first.source != source:
            first.source = source
            path.write_text(notebooks.dumps(notebook), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: set-up cell renewed")
    print(f"The book is declared to live at {notebooks.declared_repository()}.")


if __name__ == "__main__":
    main()
