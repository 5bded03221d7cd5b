"""Pin the requirement files anew from the ranges in pyproject.toml: `make lock`.

Every pin carries the SHA-256 of each file that the index holds for it, so that pip installs these
files, on every platform, or nothing. uv resolves once for all platforms and all Pythons. Only torch
needs help: PyPI's builds for Linux bring gigabytes of CUDA along, so there the pin is PyTorch's own
build for CPUs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {"requirements.txt": ["book", "dev"], "requirements-release.txt": ["release"]}
HEADERS = {
    "requirements.txt": """\
# The exact environment that `make test` proved: the book, its tests and the browser checks.
""",
    "requirements-release.txt": """\
# What `make dist`, `make audit` and `make sbom` run, in an environment of its own.
""",
}
MADE = "# Made by `make lock` from the ranges in pyproject.toml; change those, not this file.\n"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
ONLY_WITH_CUDA = re.compile(r"(cuda|nvidia)-|triton==")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", action="store_true", help="move no pin that the ranges still admit"
    )
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        uv = python.with_name("uv")
        for name, extras in FILES.items():
            stored = ROOT / name
            before = stored.read_text(encoding="utf-8") if stored.exists() else ""
            draft = Path(folder) / name
            draft.write_text("\n".join(versions(before)) if keep else "", encoding="utf-8")
            compile_pins(uv, ranges(extras), draft)
            pins = [with_cpu_build(pin, before) for pin in entries(draft.read_text("utf-8"))]
            stored.write_text(f"{HEADERS[name]}{MADE}{''.join(pins)}", encoding="utf-8")
            print(f"{name} now pins {len(pins)} packages.", file=sys.stderr)


def ranges(extras: list[str]) -> list[str]:
    """What pyproject.toml asks for; the package's own dependencies too, where it is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] if "book" in extras else []
    return [*asked, *(r for extra in extras for r in project["optional-dependencies"][extra])]


def compile_pins(uv: Path, requirements: list[str], output: Path) -> None:
    """Let uv resolve them for all platforms; pins in the output file stay where they can."""
    command = [uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
    command += ["--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--output-file", output, "-"]
    asked = "\n".join(requirements)
    subprocess.run(command, input=asked, text=True, check=True, stdout=subprocess.DEVNULL)


def versions(text: str) -> list[str]:
    """The pins of a requirement file without hashes, with the version of torch that PyPI knows."""
    found = re.findall(r"^\w\S+==[^\s+]+", text, re.MULTILINE)
    return sorted(set(found))


def entries(text: str) -> list[str]:
    """The pins of a requirement file with their hashes, but for what only CUDA needs."""
    pins = re.findall(r"^\w[^\n]*(?:\n +--hash=[^\n]*)*\n", text, re.MULTILINE)
    return [pin for pin in pins if not ONLY_WITH_CUDA.match(pin)]


def with_cpu_build(pin: str, before: str) -> str:
    """For torch the build for CPUs on Linux, and what PyPI has elsewhere; other pins unchanged."""
    found = re.match(r"torch==([\d.]+)", pin)
    if not found:
        return pin
    version = found[1]
    on_linux = f"torch=={version}+cpu ; sys_platform == 'linux'"
    hashes = cpu_hashes(version)
    if hashes is None:
        known = [entry for entry in entries(before) if entry.startswith(f"torch=={version}+cpu ")]
        if not known:
            raise SystemExit(f"{TORCH_INDEX} could not be asked for the hashes of torch {version}.")
        print(f"{TORCH_INDEX} could not be asked: torch keeps its hashes.", file=sys.stderr)
        hashes = re.findall(r"sha256:(\w+)", known[0])
    listed = "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes)
    elsewhere = re.sub(r"^\S+[^\n]*", f"torch=={version} ; sys_platform != 'linux' \\\\", pin)
    return f"{on_linux}{listed}\n{elsewhere}"


def cpu_hashes(version: str) -> list[str] | None:
    """The hashes of PyTorch's builds for CPUs on Linux, or None where its index is out of reach."""
    try:
        with urllib.request.urlopen(f"{TORCH_INDEX}/torch/", timeout=20) as answer:
            page = answer.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None
    wheel = rf"torch-{re.escape(version)}(?:\+|%2B)cpu-[\w-]*linux[\w-]*\.whl#sha256=(\w{{64}})"
    return sorted(set(re.findall(wheel, page))) or None


if __name__ == "__main__":
    main()
