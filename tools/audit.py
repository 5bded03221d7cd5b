"""Ask whether a pinned package has a known vulnerability: `make audit` runs pip-audit.

It ends with 0 when a service knew every pin and no vulnerability, with 1 when there is one, and
with 2 when no service could be asked: then nothing is known, and that is not "clean".
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("requirements.txt", "requirements-release.txt")
SERVICES = {"pypi": "PyPI", "osv": "OSV"}
# Vulnerabilities that cannot reach anybody here: the id, and why.
ACCEPTED: dict[str, str] = {}


class NotAsked(Exception):
    """The service did not answer, or did not know a package."""


def pins(text: str) -> list[str]:
    """What a requirement file pins, for all platforms, as the services know it: without "+cpu"."""
    return sorted(set(re.findall(r"^[\w.-]+==[\w.!]+", text, re.MULTILINE)))


def ask(service: str, requirements: list[str]) -> list[str]:
    """Return what the service says against these pins; it must know each of them."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "pins.txt"
        listed.write_text("\n".join(requirements), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service]
        command += ["--progress-spinner", "off", "--format", "json", "--no-deps", "--disable-pip"]
        command += [f"--ignore-vuln={identity}" for identity in ACCEPTED]
        done = subprocess.run([*command, "--requirement", listed], capture_output=True, text=True)
    return found(done.stdout, done.stderr, len(requirements))


def found(answer: str, errors: str, asked: int) -> list[str]:
    """Read pip-audit's report."""
    try:
        packages = json.loads(answer)["dependencies"]
    except ValueError:
        raise NotAsked(errors.strip().rpartition("\n")[2][:200] or "no answer") from None
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown or len(packages) != asked:
        raise NotAsked(f"of {asked} packages it knew {len(packages) - len(unknown)}")
    return [
        f"{package['name']} {package['version']}: {vulnerability['id']}, "
        f"mended in {', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for package in packages
        for vulnerability in package["vulns"]
    ]


def main() -> int:
    # File by file: pip-audit refuses a list that has two versions of a package.
    files = [pins((ROOT / name).read_text(encoding="utf-8")) for name in FILES]
    packages = set().union(*files)
    for service, name in SERVICES.items():
        try:
            ask(service, files[0][:1])  # one is enough to see that there is nobody
            against = {line for requirements in files for line in ask(service, requirements)}
        except NotAsked as reason:
            print(f"{name} could not be asked: {reason}", file=sys.stderr)
            continue
        for line in sorted(against):
            print(line)
        print(f"{name} knows {len(against)} vulnerabilities in {len(packages)} packages.")
        return 1 if against else 0
    print("No service could be asked: whether there are vulnerabilities is unknown.")
    return 2


if __name__ == "__main__":
    sys.exit(main())
