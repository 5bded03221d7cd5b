"""Mutants made by rule, and what is known of those that survive."""

from __future__ import annotations

import pytest

from tools import mutation, survey

MODULE = '''"""What it is for."""

import math

__all__ = ["scale"]


def scale(values, factor=2, *, axis=-1, name="weights.kernel"):
    """Multiply."""
    if factor < 0 and not values:
        raise ValueError(f"factor is {factor}; expected more.")
    values = list(values)
    table = {"first": values[1:], **options(axis=axis)}
    first, rest = table["first"], values.T
    return first * factor, where(rest, 1.5, None)
'''


@pytest.fixture(scope="module")
def found():
    return mutation.mutants(MODULE)


WHERE = "where(rest, 1.5, None)"
EXPECTED = {
    ("number", "factor=2", "factor=3"),
    ("number", "factor=2", "factor=1"),
    ("number", "axis=-1", "axis=0"),
    ("sign", "axis=-1", "axis=1"),
    ("text", '"weights.kernel"', "'weights.kernel_'"),
    ("comparison", "factor < 0", "(factor <= 0)"),
    ("comparison", "factor < 0", "(factor > 0)"),
    ("and, or", "factor < 0 and not values", "(factor < 0 or not values)"),
    ("condition dropped", "factor < 0 and not values", "(factor < 0)"),
    ("sign", "not values", "values"),
    ("another error", "ValueError", "TypeError"),
    ("statement deleted", "values = list(values)", "pass"),
    ("slice", "values[1:]", "values[1:-1]"),
    ("argument dropped", "options(axis=axis)", "options()"),
    ("elements swapped", "first, rest = ", "rest, first = "),
    ("transposition dropped", "values.T", "values"),
    ("return value", "return first * factor, where(rest, 1.5, None)", "return None"),
    ("elements swapped", "first * factor, where(rest, 1.5, None)", f"{WHERE}, first * factor"),
    ("arithmetic", "first * factor", "(first / factor)"),
    ("arguments swapped", "rest, 1.5", "1.5, rest"),
    ("number", "1.5", "3.0"),
    ("constant", "None", "0"),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "old", "new"), sorted(EXPECTED))
def test_each_operator_makes_its_mutant(found, operator, old, new):
    changed = [m.apply(MODULE) for m in found if m.operator == operator]
    assert MODULE.replace(old, new, 1) in changed


def test_prose_imports_and_what_is_exported_are_left_alone(found):
    for mutant in found:
        text = mutant.apply(MODULE)
        assert text.splitlines()[:6] == MODULE.splitlines()[:6]
        assert '"""Multiply."""' in text
        assert "expected more" in text or mutant.operator == "statement deleted"


def test_every_mutant_is_another_program_with_its_lines_in_place(found):
    texts = [mutant.apply(MODULE) for mutant in found]
    assert len(set(texts)) == len(texts) and MODULE not in texts
    for mutant, text in zip(found, texts):
        compile(text, "mutant", "exec")
        assert text.count("\n") == MODULE.count("\n") and mutant.function == "scale"


def test_a_mere_rewriting_is_no_mutant():
    source = "def f():\n    return 3 + 0\n"
    asked, every = mutation.mutants(source), mutation.mutants(source, rewritings=True)
    assert {m.new for m in every} - {m.new for m in asked} == {"(3 - 0)"}
    assert not mutation.mutants("X: int = 3\nimport math\n")


def test_a_default_counts_as_executed_where_the_function_runs(found):
    default = next(m for m in found if m.before.startswith("def scale"))
    assert set(default.lines) == set(range(10, 16))


def test_a_sample_has_a_share_of_every_file_and_comes_again():
    bugs = [(f"{name}.py", m) for name in "ab" for m in mutation.mutants(MODULE)]
    chosen = survey.sample(bugs, 20, seed=1)
    assert chosen == survey.sample(bugs, 20, seed=1) != survey.sample(bugs, 20, seed=2)
    assert len(set(chosen)) == 20 and sum(file == "a.py" for file, _ in chosen) == 10
    assert len(survey.sample(bugs, 0, seed=1)) == len(bugs)


def test_lines_move_with_the_text_and_new_ones_count():
    assert survey.carried({1, 3}, "a\nb\nc\n", "a\nnew\nb\nc\n") == {1, 2, 4, 5}
    assert survey.carried({2}, "a\nb\n", "a\nb\n") == {2}


def test_a_verdict_is_found_again_until_its_notebook_changes(tmp_path):
    what = {"file": "a.py", "function": "f"}
    book = {"x.ipynb": "1", "y.ipynb": "1"}

    def log(**changed):
        return survey.Log(tmp_path / "log", lambda name, red: {**book, **changed}[name] + red)

    log().add("noticed", "y.ipynb::Cell 3", ["x.ipynb"], **what)
    log().add("survived", "", ["x.ipynb", "y.ipynb"], **what)
    assert log().red("noticed") == log(**{"x.ipynb": "2"}).red("noticed") == "y.ipynb::Cell 3"
    assert log(**{"y.ipynb": "2"}).red("noticed") == log().red("survived") == log().red("new") == ""
    assert log(**{"y.ipynb": "2"}).green("survived") == log().green("noticed") == ["x.ipynb"]
    assert log().green("survived") == ["x.ipynb", "y.ipynb"] and log().green("new") == []


def test_every_explained_survivor_exists():
    known = survey.explanations()
    bugs = survey.all_bugs() if known else []
    assert not survey.outdated(known, bugs), "tools/survivors.toml explains what is not there"
    assert all(len(entry.why) > 20 for entry in known)
