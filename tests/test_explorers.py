"""What an explorer puts into a page: small, the same bytes every time, and nothing from outside."""

from __future__ import annotations

import gzip
import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unrolled import RNN, Bidirectional, GRUCell, SimpleCell, initialize_gru_params
from unrolled.lab import explorers
from unrolled.lab.explorers import _base
from unrolled.lab.figures import COLORS


def drawn(cell=GRUCell, *, units=(6, 6), features=1, outputs=10, curves=(10, 40), **options):
    """A `DrawExplorer` around an untrained network of these sizes."""
    rngs = nnx.Rngs(0)
    layer = Bidirectional(*(RNN(cell(features, size, rngs=rngs)) for size in units))
    readout = nnx.Linear(40 * 12, outputs, rngs=rngs)
    return explorers.DrawExplorer(
        layer, readout, np.linspace(-1, 1, 400).reshape(curves), **options
    )


EXPLORERS = [getattr(explorers, name) for name in explorers.__all__ if name != "Explorer"]
MAKE = {explorer: explorer for explorer in EXPLORERS} | {explorers.DrawExplorer: drawn}


def one_unit(**changed):
    params = initialize_gru_params(jax.random.key(0), input_dim=1, hidden_dim=1)
    return params | {name: jnp.full_like(params[name], value) for name, value in changed.items()}


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_the_page_gets_the_same_bytes_every_time_and_few_of_them(explorer):
    first, second = MAKE[explorer](), MAKE[explorer]()
    page = first._repr_html_()
    assert page == second._repr_html_()
    light = re.sub(r' data-(given|measured)=".*?"', "", page)
    assert (
        len(gzip.compress(light.encode())) <= 5_000 and len(gzip.compress(page.encode())) <= 20_000
    )
    assert repr(first) == repr(second)
    assert " at 0x" not in page + repr(first)


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_nothing_is_fetched_and_the_markup_closes(explorer):
    page = MAKE[explorer]()._repr_html_()
    assert not re.search(r"https?:|src=|href=|import\(|fetch\(|@import|url\(", page)
    assert page.count("<script>") == page.count("</script>") == 1
    tag = f"unrolled-{explorer.name}"
    assert page.startswith(f'<{tag} class="unrolled-explorer"') and f"</{tag}>" in page
    fallback = page.split("<p>")[1].split("</p>")[0]
    assert "run this cell" in fallback
    assert html.escape(explorer.__doc__.splitlines()[0]) in fallback  # what would be seen


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_every_control_has_a_start(explorer):
    page = MAKE[explorer]()._repr_html_()
    start = json.loads(html.unescape(re.search(r'data-start="(.*?)"', page)[1]))
    assert start == MAKE[explorer]().start
    assert all(isinstance(value, int | float) for value in start.values())


def test_an_explorer_has_the_colours_of_the_figures():
    style = (_base.files("unrolled.lab.explorers") / "base.js").read_text(encoding="utf-8")
    for quantity in ("input", "hidden", "reset", "update", "candidate", "memory", "gradient"):
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


def test_the_scan_explorer_starts_as_told():
    explorer = explorers.ScanExplorer([1, 2, 3, 4], opening=50, rate=0, taken=4, reverse=True)
    inputs = {f"x_{t}": t for t in range(1, 5)}
    assert explorer.start == inputs | {"opening": 50, "rate": 0, "taken": 4, "reverse": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deposits": [1, 2, 3]}, "deposits holds 3 numbers; expected 4"),
        ({"deposits": [1, 2, 3, 51]}, "x_4 is 51; its slider goes from -50 to 50"),
        ({"opening": -1}, "opening is -1; its slider goes from 0 to 200"),
        ({"rate": 0.6}, "rate is 0.6; its slider goes from -0.5 to 0.5"),
        ({"taken": 5}, "taken is 5; its slider goes from 0 to 4 in whole steps"),
    ],
)
def test_a_scan_beyond_the_sliders_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        explorers.ScanExplorer(**arguments)


def test_the_draw_explorer_carries_the_weights_to_four_decimals():
    rngs = nnx.Rngs(0)
    cells = [GRUCell(1, 6, bias_init=nnx.initializers.normal(), rngs=rngs) for _ in range(2)]
    readout = nnx.Linear(480, 10, rngs=rngs)
    curves = np.random.default_rng(0).normal(size=(10, 40))
    explorer = explorers.DrawExplorer(Bidirectional(*map(RNN, cells)), readout, curves, step=7)
    assert explorer.start == {"example": 3, "step": 7}
    np.testing.assert_allclose(explorer.given["curves"], curves, atol=0.005)
    carried = explorer.measured
    for part, name, weight in [
        ("forward", "W", cells[0].dense_i.kernel),
        ("forward", "b", cells[0].dense_i.bias),
        ("backward", "U", cells[1].dense_h.kernel),
        ("backward", "b_hn", cells[1].b_hn),
        ("readout", "W", readout.kernel),
        ("readout", "b", readout.bias),
    ]:
        np.testing.assert_allclose(np.array(carried[part][name]) / 1e4, weight[...], atol=6e-5)
    assert " data-measured=" in explorer._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cell": SimpleCell}, TypeError, "the forward cell is a SimpleCell; expected a GRUCell"),
        ({"features": 2}, ValueError, "in_features=2; a curve has 1"),
        ({"units": (6, 5)}, ValueError, r"shape \(480, 10\); expected \(440, 10\): 40 steps of 11"),
        ({"outputs": 3}, ValueError, r"shape \(480, 3\); expected \(480, 10\)"),
        ({"curves": (40, 10)}, ValueError, r"curves has shape \(40, 10\); expected \(10, 40\)"),
        ({"example": 10}, ValueError, "example is 10; its slider goes from 0 to 9"),
        ({"step": 0}, ValueError, "step is 0; its slider goes from 1 to 40"),
    ],
)
def test_a_network_that_the_page_cannot_run_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        drawn(**arguments)


def test_a_layer_without_a_second_direction_or_weights_that_diverged_are_refused():
    rngs = nnx.Rngs(0)
    layer = RNN(GRUCell(1, 6, rngs=rngs))
    readout = nnx.Linear(480, 10, rngs=rngs)
    with pytest.raises(TypeError, match="layer is a RNN; expected a Bidirectional"):
        explorers.DrawExplorer(layer, readout, np.zeros((10, 40)))
    both = Bidirectional(layer, RNN(GRUCell(1, 6, rngs=rngs)))
    with pytest.raises(ValueError, match="beyond the slider"):
        explorers.DrawExplorer(both, readout, np.full((10, 40), 5.5))
    readout.bias[...] = jnp.full(10, jnp.nan)
    with pytest.raises(ValueError, match="has the training diverged"):
        explorers.DrawExplorer(both, readout, np.zeros((10, 40)))
