"""What make audit and make release conclude, without a service or a build."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tools import audit, notebooks, release

WORKFLOWS = sorted((notebooks.ROOT / ".github" / "workflows").glob("*.yml"))


def report(**packages):
    listed = [{"name": name, "version": "1", **rest} for name, rest in packages.items()]
    return json.dumps({"dependencies": listed, "fixes": []})


def test_an_audit_is_clean_only_if_every_package_was_known():
    assert audit.found(report(a={"vulns": []}, b={"vulns": []}), "", 2) == []
    with pytest.raises(audit.NotAsked, match="of 2 packages it knew 1"):
        audit.found(report(a={"vulns": []}, b={"skip_reason": "not found"}), "", 2)
    with pytest.raises(audit.NotAsked, match="of 2 packages it knew 1"):
        audit.found(report(a={"vulns": []}), "", 2)
    with pytest.raises(audit.NotAsked, match="Connection refused"):
        audit.found("", "Traceback\nConnection refused\n", 2)


def test_an_audit_names_what_it_finds():
    vulnerability = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": []}
    (line,) = audit.found(report(a={"vulns": [vulnerability]}), "", 1)
    assert line == "a 1: PYSEC-1, mended in 2"


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([[], [], []], 0),
        ([[], [], ["x"]], 1),
        (["gone", [], [], []], 0),
        ([[], [], "gone", "gone"], 2),
        (["gone", "gone"], 2),
    ],
    ids=["clean", "vulnerable", "the second service knows", "gone in between", "nobody to ask"],
)
def test_the_exit_code_of_an_audit(monkeypatch, capsys, answers, code):
    def ask(service, requirements):
        answer = answers.pop(0)
        if answer == "gone":
            raise audit.NotAsked("no network")
        return answer

    monkeypatch.setattr(audit, "ask", ask)
    assert audit.main() == code
    assert ("is unknown" in capsys.readouterr().out) == (code == 2)


def test_the_services_are_asked_for_torch_under_the_version_they_know():
    text = "torch==2.13.0+cpu ; sys_platform == 'linux' \\\n    --hash=sha256:1\njax==0.10.2 \\\n"
    assert audit.pins(text) == ["jax==0.10.2", "torch==2.13.0"]


def test_no_package_stands_twice_in_what_pip_audit_is_asked():
    for name in audit.FILES:
        names = [pin.split("==")[0] for pin in audit.pins((audit.ROOT / name).read_text("utf-8"))]
        assert len(names) > 30 and len(names) == len(set(names))


def test_a_tag_of_another_version_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(release, "BUILD", tmp_path)
    release.check_version(None)
    assert (tmp_path / "notes.md").read_text(encoding="utf-8").startswith("- ")
    with pytest.raises(SystemExit, match=r"The tag is v9, but the package is of version"):
        release.check_version("v9")


def test_the_notes_of_a_release_are_its_section_of_the_changelog():
    changelog = "# Changelog\n\n## 0.2.0 (2027-01-01)\n\n- b\n\n## 0.1.0 (2026-01-01)\n\n- a\n"
    assert release.notes(changelog, "0.1.0") == "- a\n"
    assert release.notes(changelog, "0.2.0") == "- b\n"
    with pytest.raises(SystemExit, match=r"no section for 0\.3\.0"):
        release.notes(changelog, "0.3.0")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_by_commit_and_makes_what_there_is(workflow):
    text = workflow.read_text(encoding="utf-8")
    for action in re.findall(r"uses: (.+)", text):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    makefile = (notebooks.ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"].values()
    runs = [step.get("run", "") for job in jobs for step in job["steps"]]
    choices = [job.get("strategy", {}).get("matrix", {}).get("command", []) for job in jobs]
    commands = "\n".join(sum(choices, runs))
    for targets in re.findall(r"^ *make ((?:[a-z-]+ ?)+)", commands, re.MULTILINE):
        for target in targets.split():
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
