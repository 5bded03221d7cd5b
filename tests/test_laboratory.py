"""A laboratory runs anew when a control moves, says what went wrong, and stores no widget."""

from __future__ import annotations

import doctest
import re

import matplotlib

matplotlib.use("agg")

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest

from tools import notebooks
from unrolled.lab import laboratory
from unrolled.lab.laboratory import WIDGET_VIEW, Laboratory


def powers(base=2, exponent=3, negative=False):
    """A bar as high as the power."""
    if base == 0:
        raise ZeroDivisionError("no power of <zero>")
    power = (-1 if negative else 1) * base**exponent
    _, ax = plt.subplots(figsize=(1, 1))
    ax.bar([0], [power])
    print(f"{base} to the {exponent}: {power}")


def powers_laboratory(**changes):
    controls = {"base": {"none": 0, "two": 2, "five": 5}, "exponent": range(1, 6)}
    return Laboratory(powers, **(controls | {"negative": [True, False]} | changes))


def shown(lab, monkeypatch):
    outputs = []
    monkeypatch.setattr(laboratory, "display", lambda data, raw: outputs.append(data))
    lab._ipython_display_()
    return outputs


def test_moving_a_control_changes_the_text_and_the_picture():
    lab = powers_laboratory()
    first = lab.picture
    assert lab.text == "2 to the 3: 8" and first.startswith(b"\x89PNG")
    lab.controls["exponent"].value = 4
    assert lab.text == "2 to the 4: 16" and "2 to the 4: 16" in lab._text.value
    lab.controls["base"].label = "five"
    lab.controls["negative"].value = True
    assert lab.text == "5 to the 4: -625" and lab.picture != first
    assert 'alt="A bar as high as the power."' in lab._picture.value
    assert "done in" in lab._message.value
    assert not plt.get_fignums(), "a figure left open would be shown below the cell as well"


def test_with_a_button_nothing_runs_before_it_is_pressed():
    lab = powers_laboratory(button="Compute")
    lab.controls["exponent"].value = 5
    assert lab.text == "2 to the 3: 8" and "press “Compute”" in lab._message.value
    lab.button.click()
    assert lab.text == "2 to the 5: 32" and not lab.button.disabled


def test_an_error_is_told_beside_the_controls_and_the_next_run_forgets_it():
    lab = powers_laboratory(button="Compute")
    lab.controls["base"].value = 0
    lab.button.click()
    message = lab._message.value
    assert "base 0, exponent 3" in message and "ZeroDivisionError: no power of &lt;zero" in message
    assert "in powers" in message and lab.text == "2 to the 3: 8" and not lab.button.disabled
    assert isinstance(lab.error, ZeroDivisionError)
    lab.controls["base"].value = 5
    lab.button.click()
    assert lab.text == "5 to the 3: 125" and lab.error is None and "done" in lab._message.value


def test_an_error_at_the_starting_values_stops_the_cell():
    def broken(base=0):
        return 1 / base

    with pytest.raises(ZeroDivisionError):
        Laboratory(broken, base=[0, 1])


def test_the_controls_have_names_and_kinds_that_a_screen_reader_can_say():
    lab = Laboratory(lambda learning_rate=1: None, learning_rate=[1, 2])
    assert lab.controls["learning_rate"].description == "learning rate"
    kinds = [type(control) for control in powers_laboratory().controls.values()]
    assert kinds == [ipywidgets.Dropdown, ipywidgets.BoundedIntText, ipywidgets.Checkbox]


@pytest.mark.parametrize(
    ("function", "controls", "message"),
    [
        (lambda length=1: None, {"lengths": [1]}, r"a control for `lengths`.* the arguments len"),
        (lambda length=1, units=2: None, {"length": [1]}, r"no control for `units`.*units=\[\.\."),
        (lambda length: None, {"length": [1]}, r"`length` has no default.* Write length=\.\.\."),
        (lambda length=3: None, {"length": [1, 2]}, r"begins with 3, .*the choices \[1, 2\]"),
        (lambda length=3: None, {"length": range(3)}, r"begins with 3, .*range\(0, 3\)"),
    ],
)
def test_a_wrong_control_is_named(function, controls, message):
    with pytest.raises(ValueError, match=message):
        Laboratory(function, **controls)


def test_without_a_kernel_there_are_words_and_the_first_result(monkeypatch):
    words, text, picture = shown(powers_laboratory(), monkeypatch)
    assert words["text/plain"] == "Laboratory(powers, base=2, exponent=3, negative=False)"
    plain = re.sub("<[^>]*>", " ", words["text/html"])
    assert "base: none,  two , five" in plain and "exponent:  3 , or another from 1 to 5" in plain
    assert "<li>negative: yes, <strong>no</strong></li>" in words["text/html"]
    assert text["text/plain"] == "2 to the 3: 8" and "image/png" in picture
    again = shown(powers_laboratory(), monkeypatch)
    assert len({output[WIDGET_VIEW]["model_id"] for output in [words, text, picture, *again]}) == 6


def test_what_the_first_run_lacks_has_its_place_below_the_controls(monkeypatch):
    lab = Laboratory(lambda loud=False: print("loud!") if loud else None, loud=[True, False])
    (panel,) = shown(lab, monkeypatch)
    assert WIDGET_VIEW in panel and "image/png" not in panel
    lab.controls["loud"].value = True
    assert lab.text == "loud!"


def test_the_canonical_form_of_a_notebook_holds_no_widget(monkeypatch):
    outputs = [
        nbformat.v4.new_output("display_data", data)
        for data in shown(powers_laboratory(), monkeypatch)
    ]
    cell = nbformat.v4.new_code_cell("Laboratory()", outputs=outputs, execution_count=1)
    metadata = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}}
    stored = notebooks.canonical(nbformat.v4.new_notebook(cells=[cell], metadata=metadata))
    assert "model_id" not in notebooks.dumps(stored) and "widgets" not in stored.metadata
    assert [sorted(output.data) for output in stored.cells[0].outputs] == [
        ["text/html", "text/plain"],
        ["text/plain"],
        ["image/png", "text/plain"],
    ]


def test_the_example_runs():
    result = doctest.testmod(laboratory)
    assert result.attempted >= 4 and result.failed == 0
