"""Where there is no browser: one line says what to do, or CI installs one; never a silent skip."""

from __future__ import annotations

import os

import pytest

from tools import chromium


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose only programs are those that the test puts into a folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(chromium, "MAC_APPS", ())
    monkeypatch.setattr(chromium, "_find_playwrights_own", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def add_program(folder, name, script="exit 0"):
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    return program


def lines(captured):
    return captured.err.splitlines()


@pytest.mark.parametrize("ci", ["", "true"])  # CI without apt-get: it cannot install, and fails
def test_without_a_browser_one_line_says_how_to_get_one(machine, monkeypatch, capsys, ci):
    monkeypatch.setenv("CI", ci)
    assert chromium.main() == 1
    (line,) = lines(capsys.readouterr())
    assert line.startswith("No Chromium was found: install it with `") and "CHROMIUM" in line


def test_a_variable_that_names_nothing_is_said_to(machine, monkeypatch, capsys):
    add_program(machine, "chromium")
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    assert chromium.main() == 1
    assert lines(capsys.readouterr()) == [
        "CHROMIUM is '/nowhere/chrome', and no such program exists."
    ]


def test_a_browser_on_the_path_or_named_is_taken(machine, monkeypatch, capsys):
    found = add_program(machine, "google-chrome")
    assert chromium.main() == 0
    assert capsys.readouterr().out == f"The browser tests use {found}\n"
    mine = add_program(machine, "mine")
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert chromium.find() == str(mine)


def test_ci_installs_one(machine, monkeypatch, capfd):
    monkeypatch.setenv("CI", "true")
    add_program(
        machine,
        "apt-get",
        f'echo "$*" >> {machine}/asked\n'
        f'case "$*" in install*) echo "#!/bin/sh" > {machine}/chromium; '
        f"/bin/chmod +x {machine}/chromium;; esac",
    )
    assert chromium.main() == 0
    assert f"The browser tests use {machine}/chromium" in capfd.readouterr().out
    asked = (machine / "asked").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in asked] == ["update", "install"]


@pytest.mark.parametrize("script", ["exit 100", "exit 0"], ids=["apt-get fails", "nothing comes"])
def test_ci_that_gets_none_fails(machine, monkeypatch, capfd, script):
    monkeypatch.setenv("CI", "true")
    add_program(machine, "apt-get", script)
    assert chromium.main() == 1
    assert len(lines(capfd.readouterr())) == 1
