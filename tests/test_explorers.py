"""What an explorer puts into a page: small, the same bytes every time, and nothing from outside."""

from __future__ import annotations

import html
import json
import re

import jax
import jax.numpy as jnp
import pytest

from unrolled import initialize_gru_params
from unrolled.lab import explorers
from unrolled.lab.explorers import _base
from unrolled.lab.figures import COLORS

EXPLORERS = [getattr(explorers, name) for name in explorers.__all__ if name != "Explorer"]


def one_unit(**changed):
    params = initialize_gru_params(jax.random.key(0), input_dim=1, hidden_dim=1)
    return params | {name: jnp.full_like(params[name], value) for name, value in changed.items()}


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_the_page_gets_the_same_bytes_every_time_and_few_of_them(explorer):
    page = explorer()._repr_html_()
    assert page == explorer()._repr_html_()
    assert len(page.encode()) <= 10_000
    assert repr(explorer()) == repr(explorer())
    assert " at 0x" not in page + repr(explorer())


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_nothing_is_fetched_and_the_markup_closes(explorer):
    page = explorer()._repr_html_()
    assert not re.search(r"https?:|src=|href=|import\(|fetch\(|@import|url\(", page)
    assert page.count("<script>") == page.count("</script>") == 1
    tag = f"unrolled-{explorer.name}"
    assert page.startswith(f'<{tag} class="unrolled-explorer"') and f"</{tag}>" in page
    fallback = page.split("<p>")[1].split("</p>")[0]
    assert "run this cell" in fallback


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_every_control_has_a_start(explorer):
    page = explorer()._repr_html_()
    start = json.loads(html.unescape(re.search(r'data-start="(.*?)"', page)[1]))
    assert start == explorer().start
    assert all(isinstance(value, int | float) for value in start.values())


def test_an_explorer_has_the_colours_of_the_figures():
    style = (_base.files("unrolled.lab.explorers") / "base.js").read_text(encoding="utf-8")
    for quantity in ("input", "hidden", "reset", "update", "candidate"):
        assert f"--{quantity}: {COLORS[quantity]}" in style


def test_the_gates_explorer_starts_from_the_readers_own_unit():
    start = explorers.GatesExplorer(one_unit(Wz=2.5, bh=-1), x_t=1.0, h_prev=0.25).start
    assert (start["Wz"], start["bh"], start["x_t"], start["h_prev"]) == (2.5, -1.0, 1.0, 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": initialize_gru_params(jax.random.key(0), 1, 2)}, r"Wz has shape \(2, 1\)"),
        ({"params": one_unit(Wz=11)}, "Wz is 11; its slider goes from -10 to 10"),
        ({"params": {"Wz": 1.0}}, "params lacks Uz, bz"),
        ({"x_t": 3.0}, "x_t is 3; its slider goes from -2 to 2"),
        ({"h_prev": -1.5}, "h_prev is -1.5; its slider goes from -1 to 1"),
        ({"h_prev": float("nan")}, "h_prev is nan"),
    ],
)
def test_what_the_sliders_cannot_show_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        explorers.GatesExplorer(**arguments)


@pytest.mark.parametrize("bz", [-8.5, 3, float("nan")])
def test_a_pulse_beyond_the_slider_is_refused(bz):
    with pytest.raises(ValueError, match="its slider goes from -8 to 2"):
        explorers.PulseExplorer(bz)


def test_the_directions_explorer_starts_as_told():
    start = explorers.DirectionsExplorer([0.5] * 8, length=3, step=2).start
    assert start == {f"x_{t}": 0.5 for t in range(1, 9)} | {"length": 3, "step": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": [0.0] * 7}, "inputs holds 7 numbers; expected 8"),
        ({"inputs": [0.0] * 7 + [1.5]}, "x_8 is 1.5; its slider goes from -1 to 1"),
        ({"inputs": [float("nan")] * 8}, "x_1 is nan"),
        ({"length": 9}, "length is 9; its slider goes from 0 to 8"),
        ({"step": 0}, "step is 0; its slider goes from 1 to 8"),
        ({"step": 2.5}, "step is 2.5"),
    ],
)
def test_directions_beyond_the_sliders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        explorers.DirectionsExplorer(**arguments)
