"""What must stay in step: commands, pins, ranges, the declared repository, the pages."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import unrolled
from tools import mutants, notebooks

ROOT = notebooks.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_command_the_documents_name_exists_and_every_target_explains_itself():
    makefile = text("Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE))
    assert targets == explained
    for document in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *pages("*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)", text(document)))
        named |= set(re.findall(r"^make ([a-z-]+)", text(document), re.MULTILINE))
        assert named <= targets, document


def pages(pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "book").glob(pattern))]


def test_the_examples_of_the_readme_run_and_give_the_shapes_they_name():
    first, second = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert (names["final_h"].shape, names["outputs_h"].shape) == ((8,), (10, 8))
    exec(second, names)
    outputs = names["outputs"]
    assert outputs.shape == (2, 10, 16) and outputs[1, 6].any() and not outputs[1, 7:].any()


PIN = re.compile(
    r"^([\w.-]+)==([\w.+!]+)(?: ; [^\\\n]+)? \\\n(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    ("name", "extras"),
    [("requirements.txt", ["book", "dev"]), ("requirements-release.txt", ["release"])],
)
def test_the_pins_satisfy_the_ranges_and_every_one_has_its_hashes(name, extras):
    rest = re.sub("^#.*\n", "", PIN.sub("", text(name)), flags=re.MULTILINE)
    assert rest == "", "neither a pin with hashes nor a comment"
    pinned = [(canonicalize_name(package), version) for package, version in PIN.findall(text(name))]
    asked = [r for extra in extras for r in PROJECT["optional-dependencies"][extra]]
    asked += PROJECT["dependencies"] if "book" in extras else []
    for requirement in map(Requirement, asked):
        versions = {version for package, version in pinned if package == requirement.name}
        assert versions, f"{requirement.name} is not pinned"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}: {versions}"


def test_linux_gets_the_torch_without_cuda():
    lines = [line for line in text("requirements.txt").splitlines() if line.startswith("torch==")]
    version = lines[0].split("+")[0]
    assert lines[0] == f"{version}+cpu ; sys_platform == 'linux' \\"
    assert lines[1] == f"{version} ; sys_platform != 'linux' \\"
    assert not re.search(r"^(nvidia|cuda|triton)", text("requirements.txt"), re.MULTILINE)


def test_nothing_that_colab_has_is_capped():
    for requirement in map(
        Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["book"]
    ):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">="}, f"{requirement} could move what a Colab machine has"


def test_binder_installs_the_package_and_what_the_chapters_import_and_nothing_else():
    lines = [line for line in text("binder/requirements.txt").splitlines() if line[0] != "#"]
    assert lines == [".[book]"] and "book" in PROJECT["optional-dependencies"]
    python = text("binder/runtime.txt").strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")


def test_the_declared_repository_is_the_same_everywhere():
    assert f'repository-code: "{notebooks.declared_repository()}"' in text("CITATION.cff")
    assert f"version: {unrolled.__version__}" in text("CITATION.cff")


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"book/[\w/]+", text("_toc.yml")))
    existing = {name.rsplit(".", 1)[0] for name in [*pages("**/*.md"), *pages("*.ipynb")]}
    existing = {name for name in existing if "/static/" not in name}
    existing |= {name.removesuffix(".ipynb") for name in pages("solutions/*.ipynb")}
    assert listed == existing
    assert yaml.safe_load(text("_toc.yml"))["root"] == "book/index"


def test_every_public_name_is_on_an_api_page():
    documented = " ".join(text(name) for name in pages("api/*.md"))
    for name in unrolled.__all__:
        module = getattr(unrolled, name).__module__
        assert re.search(rf"\b{module}\b", documented), f"{name} is on no API page"


@pytest.mark.parametrize("name", unrolled.__all__)
def test_every_public_name_documents_itself(name):
    documented = getattr(unrolled, name)
    assert documented.__doc__, name
    assert ">>>" in documented.__doc__, f"{name} has no runnable example"


def test_every_mutant_changes_exactly_one_place_of_the_package_and_has_a_name_of_its_own():
    for mutant in mutants.MUTANTS:
        source = text(f"src/unrolled/{mutant.file}")
        assert source.count(mutant.old) == 1 and mutant.old != mutant.new, mutant
    assert len({(mutant.file, mutant.name) for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)


def test_the_stack_never_imports_the_lab():
    for path in (ROOT / "src" / "unrolled").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for forbidden in ("unrolled.lab", "matplotlib", "ipywidgets"):
            assert not re.search(rf"^\s*(import|from) {forbidden}", source, re.MULTILINE), path.name


def test_nothing_names_this_machine():
    tracked = [
        path
        for pattern in ("*.md", "*.toml", "*.yml", "*.txt", "*.cff", "Makefile")
        for path in ROOT.glob(pattern)
    ]
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tools/*.py"), *notebooks.all_notebooks()]
    for path in [*tracked, *sources]:
        assert not re.search(r"/(root|home|work)/\w", path.read_text(encoding="utf-8")), path
