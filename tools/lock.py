"""Pin requirements.txt anew: install the newest set that pyproject.toml admits, and freeze it."""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The exact environment that `make test` proved: the book, its tests and the browser checks.
# Made by `make lock` from the ranges in pyproject.toml; change those, not this file.
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", f"{ROOT}[book,dev]"], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "unrolled"], check=True)
        frozen = subprocess.run(
            [*pip, "list", "--format=freeze", "--exclude", "pip"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    frozen = re.sub(r"\+\w+$", "", frozen, flags=re.MULTILINE)  # torch==2.13.0+cpu
    (ROOT / "requirements.txt").write_text(HEADER + frozen, encoding="utf-8")
    print(f"requirements.txt now pins {len(frozen.splitlines())} packages.", file=sys.stderr)


if __name__ == "__main__":
    main()
