"""Every file that the pages bring along is known, and the licence of its makers lies beside it.

When all pages are written, `_static/licenses` gets the licence of each component and a list of
them. A file that belongs to no component stops the build: say below whose it is. THIRD_PARTY.md
says the same for readers of the repository.
"""

from __future__ import annotations

from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from sphinx.application import Sphinx

FOLDER = "licenses"
OURS = (
    *("book.css", "book.js", "cover.png", "explorers/*", "favicon.svg", "search.js"),
    *(f"{FOLDER}/*", "vendor/katex/README.md", "vendor/katex/SHA256SUMS"),
)


class Component(NamedTuple):
    """Something of others in the built pages: its files in `_static`, as patterns, its licence."""

    name: str
    source: str
    licence: str
    files: tuple[str, ...]
    text: str
    """The file with the licence: in `_static`, or in the distribution named before a colon."""


COMPONENTS = [
    Component(
        "KaTeX",
        "https://katex.org",
        "MIT",
        ("vendor/katex/LICENSE", "vendor/katex/katex.min.css", "vendor/katex/fonts/*.woff2"),
        "vendor/katex/LICENSE",
    ),
    Component(
        "Sphinx",
        "https://www.sphinx-doc.org",
        "BSD-2-Clause",
        (
            *("basic.css", "doctools.js", "documentation_options.js", "language_data.js"),
            *("searchtools.js", "sphinx_highlight.js", "file.png", "minus.png", "plus.png"),
            "unrolled.css",  # its rules that the pages use, with those of the theme
        ),
        "sphinx:LICENSE.rst",
    ),
    Component(
        "PyData Sphinx Theme",
        "https://github.com/pydata/pydata-sphinx-theme",
        "BSD-3-Clause",
        ("scripts/pydata-sphinx-theme.js", "unrolled.css"),
        "pydata-sphinx-theme:licenses/LICENSE",
    ),
    Component(
        "Sphinx Book Theme",
        "https://github.com/executablebooks/sphinx-book-theme",
        "BSD-3-Clause",
        ("scripts/sphinx-book-theme.js", "images/logo_*", "unrolled.css"),
        "sphinx-book-theme:licenses/LICENSE",
    ),
    Component(
        "Bootstrap",
        "https://getbootstrap.com",
        "MIT",
        ("scripts/bootstrap.js", "scripts/bootstrap.js.LICENSE.txt", "unrolled.css"),
        "licenses/bootstrap.txt",
    ),
    Component(
        "Popper",  # inside of Bootstrap's script
        "https://popper.js.org",
        "MIT",
        ("scripts/bootstrap.js",),
        "licenses/popper.txt",
    ),
    Component(
        "Font Awesome Free",  # only the icons that are used, in fonts with a name of their own
        "https://fontawesome.com",
        "OFL-1.1",
        ("fa-*.woff", "unrolled.css"),
        "licenses/font-awesome-free.txt",
    ),
    Component(
        "sphinx-copybutton",
        "https://github.com/executablebooks/sphinx-copybutton",
        "MIT",
        ("copybutton*", "copy-button.svg", "check-solid.svg"),
        "sphinx-copybutton:LICENSE",
    ),
    Component(
        "clipboard.js",
        "https://clipboardjs.com",
        "MIT",
        ("clipboard.min.js",),
        "licenses/clipboard.js.txt",
    ),
    Component(
        "MyST-NB",
        "https://myst-nb.readthedocs.io",
        "BSD-3-Clause",
        ("mystnb.*.css", "unrolled.css"),
        "myst-nb:licenses/LICENSE",
    ),
    Component(
        "Pygments",
        "https://pygments.org",
        "BSD-2-Clause",
        ("pygments.css", "unrolled.css"),
        "pygments:licenses/LICENSE",
    ),
    Component(
        "accessible-pygments",
        "https://github.com/Quansight-Labs/accessible-pygments",
        "BSD-3-Clause",
        ("pygments.css", "unrolled.css"),
        "accessible-pygments:licenses/LICENSE",
    ),
]


def unknown(static: Path) -> list[str]:
    """The files below `_static` that nobody has accounted for."""
    known = [*OURS, *(pattern for component in COMPONENTS for pattern in component.files)]
    files = (path.relative_to(static).as_posix() for path in static.rglob("*") if path.is_file())
    return sorted(name for name in files if not any(fnmatch(name, pattern) for pattern in known))


def licence_text(component: Component, static: Path) -> str:
    """What the makers of a component ask everybody to pass on with it."""
    package, colon, name = component.text.rpartition(":")
    if not colon:
        return (static / name).read_text(encoding="utf-8")
    for file in distribution(package).files or ():
        if file.parts[0].endswith(".dist-info") and file.as_posix().endswith(f"/{name}"):
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError(f"{package} comes without its {name}")


def finish(app: Sphinx, exception: Exception | None) -> None:
    """Put the licences beside the files; stop where a file is nobody's."""
    if exception is not None or app.builder.name != "html":
        return
    static = Path(app.outdir) / "_static"
    strangers = unknown(static)
    if strangers:
        raise ValueError(f"say whose they are, in {Path(__file__).name}: {', '.join(strangers)}")
    listed = ["What these pages bring along, with the licence of its makers:\n"]
    for component in COMPONENTS:
        file = static / FOLDER / f"{component.name.lower().replace(' ', '-')}.txt"
        file.write_text(licence_text(component, static), encoding="utf-8")
        files = "".join(f"\n  {name}" for name in component.files)
        header = f"{component.name}, {component.source}: {component.licence}, see {file.name}"
        listed.append(f"{header}{files}\n")
    (static / FOLDER / "README.txt").write_text("\n".join(listed), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", finish, priority=950)  # after unrolled_pages has cleared away
    return {"parallel_read_safe": True, "parallel_write_safe": True}
