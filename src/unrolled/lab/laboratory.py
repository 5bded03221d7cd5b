"""Laboratories: change a number, and the kernel computes anew.

An explorer computes in the page itself. A laboratory needs a kernel, because it trains networks or
runs those that the chapter has trained.
"""

from __future__ import annotations

import base64
import html
import io
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from inspect import Parameter, cleandoc, signature
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
from IPython.core.pylabtools import print_figure
from IPython.display import display

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
Choices = range | Sequence | Mapping[str, Any]


class Laboratory:
    """A function with a control for each of its arguments, run again when one of them is changed.

    The function prints, draws a Matplotlib figure (without `plt.show()`), or both; what it returns
    is kept in `result`. The defaults of its arguments are the starting values, and these it has to
    survive; what goes wrong later is told beside the controls.

    In a notebook a laboratory is the last line of a cell. Where no kernel runs, as in the book's
    pages, the cell shows in words what can be changed, and the result for the starting values.

    Args:
      function: what to run; the first line of its docstring describes the figure.
      button: the label of a button that starts a run. Without one, each change does.
      **controls: for each argument what it may be: a list of values, a dict from labels to values,
        `[True, False]` for a tick box, or a `range` of whole numbers.

    Raises:
      ValueError: a control is not an argument, an argument has no control, or a starting value is
        not among the choices.

    Example:
      >>> def halve(number=8, times=3):
      ...     print(number / 2**times)
      >>> laboratory = Laboratory(halve, number=[8, 16], times=range(1, 11))
      >>> laboratory.controls["times"].value = 4
      >>> print(laboratory.text)
      0.5
    """

    def __init__(self, function: Callable, /, *, button: str | None = None, **controls: Choices):
        self.function = function
        self.choices = controls
        self.start = _starting_values(function, controls)
        self.controls = {
            name: _control(name, choices, self.start[name]) for name, choices in controls.items()
        }
        self.error: BaseException | None = None
        """What the last run raised, if it did."""

        self.result, self.text, self.picture = _run(function, self.start)
        """What the function has returned, printed and, as the bytes of a PNG, drawn."""

        self._message, self._text, self._picture = (ipywidgets.HTML() for _ in range(3))
        self._show_results()
        self.button = None if button is None else ipywidgets.Button(description=button)
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        if self.button is not None:
            self.button.on_click(lambda _: self.run())

    def run(self) -> None:
        """Run the function with the values of the controls and show what comes of it."""
        values = {name: control.value for name, control in self.controls.items()}
        self._say("computing …")
        self._enable(False)
        began = time.perf_counter()
        try:
            self.result, self.text, self.picture = _run(self.function, values)
            self.error = None
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            self._say_what_went_wrong(error, values)
        else:
            self._show_results()
            self._say(f"done in {time.perf_counter() - began:.1f} seconds")
        finally:
            self._enable(True)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.start.items())
        return f"Laboratory({_name(self.function)}, {values})"

    def _ipython_display_(self) -> None:
        # One output for the controls, one for the text, one for the picture. Front ends with a
        # kernel show the widget in each, all others what stands beside it.
        panel = [*self.controls.values(), self._message]
        if self.button is not None:
            panel.insert(-1, self.button)
        panel += [
            widget
            for widget, result in ((self._text, self.text), (self._picture, self.picture))
            if not result
        ]
        words = {"text/plain": repr(self), "text/html": self._in_words()}
        display(words | _view(ipywidgets.VBox(panel)), raw=True)
        if self.text:
            display({"text/plain": self.text} | _view(self._text), raw=True)
        if self.picture:
            shown = {"text/plain": "<Figure>", "image/png": _base64(self.picture)}
            display(shown | _view(self._picture), raw=True)

    def _in_words(self) -> str:
        items = "".join(
            f"<li>{_label(name)}: {_choices_in_words(choices, self.start[name])}</li>"
            for name, choices in self.choices.items()
        )
        return (
            '<div class="laboratory"><p><strong>Laboratory.</strong> '
            "Run this notebook, in Jupyter or in Colab, and you can change here</p>"
            f"<ul>{items}</ul><p>What follows is the result for the values in bold.</p></div>"
        )

    def _changed(self, change: Mapping[str, Any]) -> None:
        if self.button is None:
            self.run()
        else:
            self._say(f"changed; press “{html.escape(self.button.description)}”")

    def _enable(self, enabled: bool) -> None:
        if self.button is not None:
            self.button.disabled = not enabled

    def _show_results(self) -> None:
        self._text.value = self._picture.value = ""
        if self.text:
            self._text.value = f'<pre style="white-space: pre-wrap">{html.escape(self.text)}</pre>'
        if self.picture:
            description = cleandoc(self.function.__doc__ or "the result").splitlines()[0]
            self._picture.value = (
                f'<img alt="{html.escape(description)}" style="background: white; max-width: 100%" '
                f'src="data:image/png;base64,{_base64(self.picture)}">'
            )

    def _say(self, message: str) -> None:
        self._message.value = f'<div role="status"><em>{message}</em></div>'

    def _say_what_went_wrong(self, error: BaseException, values: Mapping[str, Any]) -> None:
        given = ", ".join(f"{_label(name)} {value}" for name, value in values.items())
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        details = "".join(traceback.format_exception(error))
        self._message.value = (
            f'<div role="alert"><strong>This did not work</strong> ({html.escape(given)}): '
            f"{html.escape(reason)}<br>What you see below is still the result from before."
            f"<details><summary>Where it happened</summary><pre>{html.escape(details)}</pre>"
            "</details></div>"
        )


def _starting_values(function: Callable, controls: Mapping[str, Choices]) -> dict[str, Any]:
    arguments = signature(function).parameters
    known = f"`{_name(function)}` has the arguments {', '.join(arguments) or '(none)'}"
    for name in controls:
        if name not in arguments:
            raise ValueError(
                f"there is a control for `{name}`, but {known}. Control what the function takes."
            )
    for name, argument in arguments.items():
        if name not in controls:
            raise ValueError(f"{known}, but there is no control for `{name}`. Add {name}=[...].")
        if argument.default is Parameter.empty:
            raise ValueError(
                f"`{name}` has no default, so there is no value to begin with. Write {name}=... "
                f"in the definition of `{_name(function)}`."
            )
        values = _values(controls[name])
        if argument.default not in values:
            raise ValueError(
                f"`{name}` begins with {argument.default!r}, which is not among the choices "
                f"{controls[name]!r}. Add it there, or change the default."
            )
    return {name: arguments[name].default for name in controls}


def _control(name: str, choices: Choices, start: Any) -> ipywidgets.ValueWidget:
    # Kinds that a screen reader can name; sliders are not among them.
    settings = {"description": _label(name), "style": {"description_width": "initial"}}
    if isinstance(choices, range):
        limits = {"min": min(choices), "max": max(choices), "step": abs(choices.step)}
        return ipywidgets.BoundedIntText(value=start, **limits, **settings)
    if _is_yes_or_no(choices):
        return ipywidgets.Checkbox(value=start, indent=False, **settings)
    options = list(zip(_labels(choices), _values(choices)))
    return ipywidgets.Dropdown(options=options, value=start, **settings)


def _is_yes_or_no(choices: Choices) -> bool:
    return all(isinstance(value, bool) for value in _values(choices))


def _values(choices: Choices) -> list:
    return list(choices.values() if isinstance(choices, Mapping) else choices)


def _labels(choices: Choices) -> list[str]:
    return [str(choice) for choice in choices]  # of a dict: its keys


def _choices_in_words(choices: Choices, start: Any) -> str:
    if isinstance(choices, range):
        return f"<strong>{start}</strong>, or another from {min(choices)} to {max(choices)}"
    labels = ["yes", "no"] if _is_yes_or_no(choices) else _labels(choices)
    values = [True, False] if _is_yes_or_no(choices) else _values(choices)
    words = [html.escape(label) for label in labels]
    place = values.index(start)
    words[place] = f"<strong>{words[place]}</strong>"
    return ", ".join(words)


def _run(function: Callable, values: Mapping[str, Any]) -> tuple[Any, str, bytes | None]:
    """Return what a call returns, prints, and draws last; its figures are closed again."""
    before, printed = set(plt.get_fignums()), io.StringIO()
    try:
        with redirect_stdout(printed):
            result = function(**values)
        drawn = [number for number in plt.get_fignums() if number not in before]
        picture = print_figure(plt.figure(drawn[-1]), bbox_inches="tight") if drawn else None
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)
    return result, printed.getvalue().rstrip("\n"), picture


def _view(widget: ipywidgets.Widget) -> dict[str, Any]:
    model = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {WIDGET_VIEW: model}


def _label(name: str) -> str:
    return name.replace("_", " ")


def _name(function: Callable) -> str:
    return getattr(function, "__name__", "the function")


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")
