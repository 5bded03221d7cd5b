"""Which tests stay together in one process, where they share what they open."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

# An example imports what lies beside it.
sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

PAGE = re.compile(r"tests/browser/.*[\[-]([\w/]+\.html)\]$")
# These prepare something costly for all their tests: runs of an example, a wheel, devices.
TOGETHER = re.compile(r"tests/test_(examples|colab|sharding)\.py")


def group(nodeid: str) -> str:
    """Return the group of a test, by its name: a page of the book, or one for all other tests.

    In the browser, those share the explorers, which are costly to open, and a PDF; as the largest
    group they begin first. A unit test is a group of its own, except those of some modules.
    """
    if nodeid.startswith("tests/browser/"):
        page = PAGE.search(nodeid)
        return page[1] if page else "others"
    module = TOGETHER.match(nodeid)
    return module[0] if module else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Group the tests for `--dist loadgroup`.

    The marks of pytest-xdist would do, but from pytest 9.2 on it no longer sees them and gives the
    tests to any process (pytest-dev/pytest-xdist#1386).
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        _split_scope = staticmethod(group)

    return ByGroup(config, log)
