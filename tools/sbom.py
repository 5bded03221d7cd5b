"""Write the software bill of materials, _build/sbom.json: `make sbom` runs cyclonedx-py.

It lists what is installed in .venv and pinned in requirements.txt, with versions, licences and who
needs whom; and what the repository and the built book hold of others (THIRD_PARTY.md).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
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
    add_licences(bill)
    known = {component["name"].lower() for component in bill["components"]}
    ours, built = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8").split("## In the built")
    bill["components"] += vendored(ours)
    bill["components"] += [
        part for part in parts(built) if part["name"].lower().replace(" ", "-") not in known
    ]
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
        text,
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


def parts(text: str) -> list[dict]:
    """What the second table lists, the parts of the pages, as components."""
    row = r"^\| \[([^]]+)\]\((.+?)\)(?: ([\d.]+))?(?:: [^|]*)? \| ([^|]+) \| ([^|]+) \|"
    return [
        {
            "type": "library",
            "bom-ref": f"{name}, in the pages",
            "name": name,
            **({"version": version} if version else {}),
            "description": f"in the built pages; comes with {carrier}",
            "licenses": [{"license": {"name": licence}}],
            "externalReferences": [{"type": "website", "url": source}],
        }
        for name, source, version, carrier, licence in re.findall(row, text, re.MULTILINE)
        if carrier != "this repository"
    ]


def add_licences(bill: dict) -> None:
    """Name the licence of a package that says it only in prose, or only in a file."""
    site = next((ROOT / ".venv/lib").glob("python*/site-packages"))
    installed = {d.metadata["Name"]: d for d in metadata.distributions(path=[str(site)])}
    for component in bill["components"]:
        if "licenses" not in component:
            package = installed[component["name"]]
            files = (f.read_text("utf-8") for f in package.files if f.name.startswith("LICENSE"))
            licence = package.metadata["License"] or re.search(".*Licen.*", next(files))[0]
            component["licenses"] = [{"license": {"name": licence.strip()}}]


if __name__ == "__main__":
    main()
