"""What a release must agree on, hold and add up to. `make dist` and `make release` run this.

release.py version [TAG]    the version is the same everywhere, and the tag's
release.py archives         the wheel and the source distribution hold what they should
release.py collect          put everything into dist/, with checksums
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
BUILD = ROOT / "_build"
LICENCES = ("LICENSE", "LICENSE-TEXT", "THIRD_PARTY.md")
PACKAGE = ROOT / "src" / "unrolled"


def version() -> str:
    """The version of the package, which is that of the book."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)[1]


def notes(changelog: str, release: str) -> str:
    """What the changelog says of a release, without its heading."""
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        if heading.split()[0] == release:
            return body.strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section for {release}")


def check_version(tag: str | None) -> None:
    """Stop where version, citation, changelog and tag disagree; write the release's notes."""
    current = version()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    if f"\nversion: {current}\n" not in citation:
        raise SystemExit(f"CITATION.cff is not of version {current}")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if tag is not None:
        if tag != f"v{current}":
            raise SystemExit(f"The tag is {tag}, but the package is of version {current}")
        text = notes(changelog, current)
    else:
        text = notes(changelog, "Unreleased" if "\n## Unreleased" in changelog else current)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "notes.md").write_text(text, encoding="utf-8")
    print(f"Version {current}; its notes are in _build/notes.md.")


def package_files() -> set[str]:
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in files
        if "__pycache__" not in path.parts
    }


def wheel_faults(wheel: Path) -> set[str]:
    """The files that a wheel lacks or has too many: it holds the package and every licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"unrolled-{version()}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
    return names ^ (package_files() | metadata | {f"{info}/licenses/{name}" for name in LICENCES})


def source_faults(source: Path) -> set[str]:
    """The same for a source distribution."""
    folder = f"unrolled-{version()}/"
    with tarfile.open(source) as archive:
        names = {member.name.removeprefix(folder) for member in archive if member.isfile()}
    rest = {"PKG-INFO", "pyproject.toml", "README.md", "CHANGELOG.md", ".gitignore", *LICENCES}
    return names ^ ({f"src/{name}" for name in package_files()} | rest)


def check_archives() -> None:
    (wheel,) = DIST.glob("*.whl")
    (source,) = DIST.glob("*.tar.gz")
    for archive, faults in ((wheel, wheel_faults(wheel)), (source, source_faults(source))):
        if faults:
            raise SystemExit(f"{archive.name} lacks or should not have: {sorted(faults)}")
        print(f"{archive.name}: {archive.stat().st_size / 1e3:.0f} kB, whole")


def collect() -> None:
    """Put book, PDF and bill of materials beside wheel and source distribution; add them up."""
    name = f"unrolled-{version()}"
    shutil.copy(BUILD / "unrolled.zip", DIST / f"{name}-book.zip")
    shutil.copy(BUILD / "unrolled.pdf", DIST / f"{name}-book.pdf")
    shutil.copy(BUILD / "sbom.json", DIST / f"{name}-sbom.cdx.json")
    sums = DIST / "SHA256SUMS"
    files = sorted(path for path in DIST.iterdir() if path != sums)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    sums.write_text("".join(lines), encoding="utf-8")
    print(f"dist/ holds the release:\n{''.join(lines)}", end="")


def main(command: str, tag: str | None = None) -> None:
    if command == "version":
        check_version(tag)
    elif command == "archives":
        check_archives()
    elif command == "collect":
        collect()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
