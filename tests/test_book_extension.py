"""The book leads to the repository it is built in: a fork to itself, a copy to the declared one."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "book/_extensions/unrolled_book.py"


@pytest.fixture(scope="module")
def find_repository():
    spec = importlib.util.spec_from_file_location("unrolled_book", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.find_repository


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a declared repository, outside of git and with no variable set."""
    monkeypatch.delenv("BOOK_REPO_URL", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    declare(tmp_path, "https://github.com/declared/book")
    return tmp_path


def declare(folder, address):
    text = f'[project]\nname = "unrolled"\n[project.urls]\nRepository = "{address}"\n'
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def add_remote(folder, address):
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", address], check=True)


def test_declared_repository(folder, find_repository):
    assert find_repository(folder) == "https://github.com/declared/book"


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/alice/gru-book",
        "https://github.com/alice/gru-book.git",
        "git@github.com:alice/gru-book.git",
        "ssh://git@github.com/alice/gru-book.git",
        "https://name:secret@github.com/alice/gru-book.git",
    ],
)
def test_remote_comes_before_the_declared_repository(folder, find_repository, remote):
    add_remote(folder, remote)
    assert find_repository(folder) == "https://github.com/alice/gru-book"


def test_variable_comes_first(folder, find_repository, monkeypatch):
    add_remote(folder, "https://github.com/alice/gru-book")
    monkeypatch.setenv("BOOK_REPO_URL", "https://github.com/bob/book/")
    assert find_repository(folder) == "https://github.com/bob/book"


@pytest.mark.parametrize("remote", ["/srv/git/book.git", "https://example.org/alice/book.git"])
def test_remote_elsewhere_is_passed_over(folder, find_repository, remote):
    add_remote(folder, remote)
    assert find_repository(folder) == "https://github.com/declared/book"


def test_no_repository_at_all(folder, find_repository):
    declare(folder, "")
    assert find_repository(folder) is None
