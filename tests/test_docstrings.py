"""Every public name has a docstring, and its examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect

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
            assert "Args:" in doc and "Returns:" in doc, public
            for argument in inspect.signature(value).parameters:
                assert f"{argument}" in doc, f"{public} does not document {argument}"
        else:
            documented = doc + (inspect.getdoc(value.__call__) or "")
            for argument in inspect.signature(value.__init__).parameters:
                known = argument in ("self", "args", "kwargs") or argument in documented
                assert known, f"{public} does not document {argument}"
