"""Write the software bill of materials, _build/sbom.json: `make sbom` runs cyclonedx-py.

It lists what is installed in .venv and pinned in requirements.txt, with versions, licences and who
needs whom; and what the repository itself holds of others (THIRD_PARTY.md).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "_build" / "sbom.json"


def main() -> None:
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
    command += ["--pyproject", ROOT / "pyproject.toml", "--mc-type", "library"]
    done = subprocess.run(
        [*command, ROOT / ".venv/bin/python"], check=True, capture_output=True, text=True
    )
    bill = json.loads(done.stdout)
    leave_out_strangers(bill, (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    init = (ROOT / "src/unrolled/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', init, re.MULTILINE)[1]
    unrolled = bill["metadata"]["component"]
    unrolled |= {"version": version, "purl": f"pkg:pypi/unrolled@{version}"}
    bill["components"] += vendored((ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8"))
    text = json.dumps(bill, indent=1, ensure_ascii=False, sort_keys=True)
    mistake = JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(
        text
    )
    assert mistake is None, mistake
    assert "file:" not in text and str(ROOT) not in text, "a path of this machine"
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(f"{text}\n", encoding="utf-8")
    print(f"{OUTPUT.relative_to(ROOT)}: {len(bill['components'])} components")


def leave_out_strangers(bill: dict, requirements: str) -> None:
    """Drop what is not pinned: pip, which comes with Python, and what a reader has added."""

    def spelled(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", requirements, re.MULTILINE)
    pinned = {(spelled(name), version) for name, version in pins}
    strangers = {
        component["bom-ref"]
        for component in bill["components"]
        if (spelled(component["name"]), component["version"]) not in pinned
    }
    bill["components"] = [c for c in bill["components"] if c["bom-ref"] not in strangers]
    bill["dependencies"] = [
        {**d, "dependsOn": [ref for ref in d.get("dependsOn", ()) if ref not in strangers]}
        for d in bill["dependencies"]
        if d["ref"] not in strangers
    ]
    print(f"Not pinned and left out: {', '.join(sorted(strangers))}.")


def vendored(text: str) -> list[dict]:
    """What the first table of THIRD_PARTY.md lists, as components."""
    table = re.findall(
        r"^\| ([^|,]+?)(?:, [^|]*)? \| ([^|]+) \| \[[^]]*\]\((.+?)\) \| ([^|]+) \|",
        text.split("## In the built book")[0],
        re.MULTILINE,
    )
    return [
        {
            "type": "library" if "npm" in source else "data",
            "bom-ref": name,
            "name": name,
            "version": version,
            "licenses": [{"license": {"name": licence}}],
            "externalReferences": [{"type": "website", "url": source}],
        }
        for name, version, source, licence in table
    ]


if __name__ == "__main__":
    main()
