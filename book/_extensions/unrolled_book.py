"""What the book decides while it is built: static files, repository links, fresh sidebars."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

from docutils import nodes
from flax import nnx
from mdit_py_plugins.anchors.index import slugify
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.ext import autodoc
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from unrolled.lab import explorers
from unrolled.lab.exercises import EXERCISES

STATIC = "book/static"
LAUNCH = {
    "colab_url": "https://colab.research.google.com",
    "binderhub_url": "https://mybinder.org",
    "notebook_interface": "jupyterlab",
}
PREVIEW = re.compile(
    r'<meta (?:name="(?:description|twitter)|property="og:)[^>]*>|<link rel="canonical"[^>]*>'
)
ROOT_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={home}">
<link rel="icon" href="data:,">
{preview}
<title>{title}</title>
<main><h1>{title}</h1><p><a href="{home}">Open the book</a></p></main>
</html>
"""


def find_repository(root: Path) -> str | None:
    """Return the GitHub address of this book, or None.

    The first that names one counts: the environment variable BOOK_REPO_URL, the git remote
    `origin` (so a fork links to itself), `[project.urls] Repository` in pyproject.toml.
    """
    remote = subprocess.run(
        ["git", "-C", str(root), "remote", "get-url", "origin"], capture_output=True, text=True
    ).stdout
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project.get("urls", {}).get("Repository", "")
    for address in (os.environ.get("BOOK_REPO_URL", ""), remote, declared):
        match = re.search(r"github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?$", address.strip())
        if match:
            return "https://github.com/{}/{}".format(*match.groups())
    return None


def find_site(root: Path) -> str | None:
    """Return the address at which this book is published, ending in a slash, or None.

    It is the environment variable BOOK_SITE_URL or else the GitHub Pages of the repository.
    """
    site = os.environ.get("BOOK_SITE_URL", "").strip()
    repository = find_repository(root)
    if not site and repository is not None:
        owner, name = repository.split("/")[-2:]
        host = f"{owner.lower()}.github.io"
        site = f"https://{host}" if name.lower() == host else f"https://{host}/{name}"
    return f"{site.rstrip('/')}/" if site else None


def configure(app: Sphinx, config: Config) -> None:
    """Add the static files and, when the repository is known, what leads to it."""
    config.html_baseurl = find_site(Path(app.srcdir)) or ""
    config.html_static_path = [*config.html_static_path, STATIC]
    config.html_css_files = [*config.html_css_files, "book.css"]
    config.html_js_files = [*config.html_js_files, "book.js"]
    repository = find_repository(Path(app.srcdir))
    config.html_theme_options = {
        **config.html_theme_options,
        "repository_url": repository or "",
        "repository_branch": "main",
        "path_to_docs": "",
        "use_repository_button": repository is not None,
        "launch_buttons": LAUNCH if repository else {},
    }


def remove_old_pages(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Delete the pages of chapters that are no longer in the table of contents."""
    for page in removed:
        Path(app.builder.get_outfilename(page)).unlink(missing_ok=True)
    return []


def rewrite_when_all_pages_change(app: Sphinx, env: BuildEnvironment) -> Iterable[str]:
    """Write every page again when what all of them show changed.

    That is a title, the table of contents, a template, a style sheet, a script, or an extension.
    """
    titles = sorted((page, title.astext()) for page, title in env.titles.items())
    book = Path(app.srcdir) / "book"
    sources = [
        p for kind in ("_extensions/*.py", "_templates/*", "static/*.*") for p in book.glob(kind)
    ]
    code = [path.read_bytes() for path in sorted(sources)]
    shown = repr((titles, env.toctree_includes, find_site(Path(app.srcdir)), code))
    contents = hashlib.sha256(shown.encode()).hexdigest()
    if getattr(env, "unrolled_contents", contents) == contents:
        env.unrolled_contents = contents
        return []
    env.unrolled_contents = contents
    return env.found_docs


def write_root_page(app: Sphinx, exception: Exception | None) -> None:
    """Write index.html beside the folder of pages: it leads to the home page, as its preview."""
    if exception is None and app.builder.name == "html":
        home = app.builder.get_target_uri(app.config.root_doc)
        preview = "\n".join(PREVIEW.findall((Path(app.outdir) / home).read_text(encoding="utf-8")))
        page = ROOT_PAGE.format(home=home, title=app.config.html_title, preview=preview)
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def remember_warnings(app: Sphinx, exception: Exception | None) -> None:
    """Leave a note beside the pages while a warning is left.

    A warning stops nobody from reading: it may be about a reader's own cells. The tests ask for the
    note, and while it is there `make book` reads all pages anew, so that nothing goes unsaid.
    """
    note = Path(app.outdir).with_name("warned")
    note.unlink(missing_ok=True)
    if exception is not None or app._warncount:
        note.write_text(f"{exception or app._warncount}\n", encoding="utf-8")


def read_as_plain_text(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Let a docstring say (*batch, features) and `RNN`s: reStructuredText sees markup in both."""

    def escape(match: re.Match[str]) -> str:
        return {"*": r"\*", "`s": r"`\ s"}.get(match[0], match[0])

    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            code, star, plural = r"`[^`]*`(?!s\b)", r"(?<=[( ])\*(?=\w+(?:[,)]|$))", r"(?<=\w)`s\b"
            lines[i] = re.sub(f"{code}|{star}|{plural}", escape, line)


class ExplorerDirective(SphinxDirective):
    """Put an explorer of `unrolled.lab.explorers` into a page that is not a notebook."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        explorer = getattr(explorers, self.arguments[0])()
        return [nodes.raw("", explorer._repr_html_(), format="html")]


class DownloadsDirective(SphinxDirective):
    """Say where the book can be had as a PDF and as a zip: beside the published pages."""

    def run(self) -> list[nodes.Node]:
        site = find_site(Path(self.env.srcdir))
        if site is None:
            return []
        text = (
            f"**Take it along.** The whole book as a [PDF]({site}unrolled.pdf), to print, or as a "
            f"[zip]({site}unrolled.zip) of these pages, which needs no network: unpack it and open "
            "`index.html`."
        )
        return self.parse_text_to_nodes(text)


class ExercisesDirective(SphinxDirective):
    """List every exercise of the book, chapter by chapter, with its difficulty and its place."""

    def run(self) -> list[nodes.Node]:
        lines = []
        for chapter in sorted(Path(self.env.srcdir).glob("book/[0-9][0-9]_*.ipynb")):
            self.env.note_dependency(str(chapter))
            number = int(chapter.name[:2])
            lines += [f"## {self.env.titles[f'book/{chapter.stem}'].astext()}", ""]
            lines += ["| Exercise | Difficulty |", "|---|---|"]
            for name, exercise in EXERCISES.items():
                if int(name.split(".")[0]) == number:
                    heading = f"Exercise {name} ({exercise.difficulty}): {exercise.title}"
                    link = f"[{name} {exercise.title}]({chapter.name}#{slugify(heading)})"
                    lines.append(f"| {link} | {exercise.difficulty} |")
            lines += ["", f"[Solutions](solutions/{chapter.name})", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


class SelfChecks(SphinxTransform):
    """Put a self-check's question and its options into one group, for the eye and for the ear.

    A notebook has them one after the other: `**Check yourself.** ...`, then `<details>` for each
    option. So they read well where this extension is not at work, in Jupyter and in Colab.
    """

    default_priority = 850
    option = '<details class="choice'
    group = '<div class="self-check" role="group" aria-label="Check yourself">'

    def apply(self, **kwargs: object) -> None:
        for lead in list(self.document.findall(nodes.strong)):
            if lead.astext() == "Check yourself.":
                section, first = lead.parent.parent, lead.parent.parent.index(lead.parent)
                texts = [node.astext() for node in section[first:]]
                ends = [
                    place
                    for place, (text, following) in enumerate(zip(texts, [*texts[1:], ""]), first)
                    if text.startswith("</details>") and not following.startswith(self.option)
                ]
                if ends and any(text.startswith(self.option) for text in texts):
                    section.insert(ends[0] + 1, nodes.raw("", "</div>", format="html"))
                    section.insert(first, nodes.raw("", self.group, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("explorer", ExplorerDirective)
    app.add_directive("downloads", DownloadsDirective)
    app.add_directive("exercises", ExercisesDirective)
    app.add_transform(SelfChecks)
    app.connect("config-inited", configure)
    # Show the arguments of a module's __init__, not the (*args, **kwargs) of Flax's metaclass.
    call = type(nnx.Module).__call__
    autodoc._METACLASS_CALL_BLACKLIST.append(f"{call.__module__}.{call.__qualname__}")
    app.connect("env-get-outdated", remove_old_pages)
    app.connect("env-updated", rewrite_when_all_pages_change)
    app.connect("autodoc-process-docstring", read_as_plain_text, priority=400)  # before napoleon
    app.connect("build-finished", write_root_page, priority=400)
    app.connect("build-finished", remember_warnings, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
