"""Find the Chromium or Chrome that the browser tests use, or say how to get one.

`make test` runs this before anything else. Without a browser it fails: a check that was skipped
proves nothing. Only where CI=true does it install one by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
INSTALL = "brew install --cask chromium" if sys.platform == "darwin" else "apt-get install chromium"
HOW_TO_GET_ONE = f"No Chromium was found: install it with `{INSTALL}`, or name yours in CHROMIUM."


def find() -> str | None:
    """Return the path of a browser: $CHROMIUM, one on PATH, a macOS app, or Playwright's own.

    Raises:
      FileNotFoundError: CHROMIUM names something that does not exist.
    """
    named = os.environ.get("CHROMIUM")
    if named:
        found = shutil.which(named)
        if found is None:
            raise FileNotFoundError(f"CHROMIUM is {named!r}, and no such program exists.")
        return found
    for name in (*NAMES, *MAC_APPS):
        found = shutil.which(name)
        if found is not None:
            return found
    return _find_playwrights_own()


def _find_playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> None:
    """Install Chromium with apt-get, as root or through sudo."""
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    print("No Chromium was found and CI is set: installing it with apt-get.", flush=True)
    subprocess.run([*root, "apt-get", "update", "--quiet"], check=True)
    subprocess.run([*root, "apt-get", "install", "--quiet", "--yes", "chromium"], check=True)


def main() -> int:
    try:
        path = find()
        if path is None and os.environ.get("CI") == "true" and shutil.which("apt-get"):
            install()
            path = find()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    if path is None:
        print(HOW_TO_GET_ONE, file=sys.stderr)
        return 1
    print(f"The browser tests use {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
