"""Every public name has a docstring, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest

MODULES = ["sequences", "scan", "cells", "layers", "convert", "lab.finite"]


def public_names(module):
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if (
            own
            and not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
        ):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"unrolled.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 4 and result.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented_with_an_example(name):
    module = importlib.import_module(f"unrolled.{name}")
    for public, value in public_names(module):
        doc = inspect.getdoc(value) or ""
        assert doc.splitlines()[0].endswith((".", ":")), public
        if public != "RNNBase":
            assert ">>>" in doc, f"{public} has no example"
        if inspect.isfunction(value):
            assert "Returns:" in doc, public


def documented_arguments(doc):
    """The names in a docstring's section `Args:`, in order; several may share a line."""
    section = re.search(r"^Args:\n((?: +\S.*\n?|\n)+)", doc, re.MULTILINE)
    entries = re.findall(r"^  (\S[^:]*):", section[1], re.MULTILINE) if section else []
    return [name.strip(" *") for entry in entries for name in entry.split(",")]


def arguments(function):
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return [] if names == ["args", "kwargs"] else names  # those of a class without its own


def callables(module):
    """Every public function, class and method of a module: its name, arguments and docstring."""
    for name, value in public_names(module):
        doc = inspect.getdoc(value) or ""
        if inspect.isfunction(value):
            yield name, arguments(value), doc
            continue
        yield name, arguments(value.__init__) or arguments(value), doc
        for method, function in vars(value).items():
            own = getattr(function, "__module__", None) == module.__name__  # nnx.tabulate adds some
            if own and inspect.isfunction(function) and (method == "__call__" or method[0] != "_"):
                yield f"{name}.{method}", arguments(function), inspect.getdoc(function) or ""


@pytest.mark.parametrize("name", ["gru", *MODULES])
def test_the_documented_arguments_are_those_of_the_signature(name):
    checked = 0
    for public, names, doc in callables(importlib.import_module(f"unrolled.{name}")):
        assert doc, f"{public} has no docstring"
        if not re.search(r"see (its )?`[\w.]*__call__`\.$", doc):  # documented there
            assert documented_arguments(doc) == names, public
            checked += len(names)
    assert checked


def test_a_docstring_s_arguments_are_read_as_they_are_written():
    doc = "One.\n\nArgs:\n  a: first: of\n    more: words.\n  b, c: two.\n\nReturns:\n  d: no."
    assert documented_arguments(doc) == ["a", "b", "c"]
    assert documented_arguments("Nothing.") == []
