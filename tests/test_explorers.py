"""What an explorer puts into a page: small, the same bytes every time, and nothing from outside."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tools import notebooks
from unrolled import (
    RNN,
    Bidirectional,
    GRUCell,
    SimpleCell,
    StackedRNN,
    initialize_gru_params,
)
from unrolled.lab import explorers
from unrolled.lab.explorers import _base
from unrolled.lab.figures import COLORS


@cache
def network(cell=GRUCell, *, units=(6, 6), features=1, outputs=10):
    """An untrained bidirectional layer and its readout; made once, since it takes a while."""
    rngs = nnx.Rngs(0)
    simple = {"recurrent_kernel_init": nnx.initializers.lecun_normal(), "rngs": rngs}
    layer = Bidirectional(*(RNN(cell(features, size, **simple)) for size in units))
    return layer, nnx.Linear(40 * 12, outputs, rngs=rngs)


def drawn(*, curves=(10, 40), example=3, step=20, **sizes):
    """A `DrawExplorer` around an untrained network of these sizes."""
    ramp = np.linspace(-1, 1, 400).reshape(curves)
    return explorers.DrawExplorer(*network(**sizes), ramp, example=example, step=step)


@cache
def language_parts(cell=GRUCell, *, hidden=(128, 128), inputs=32, size=96):
    """An untrained character model: the embedding, the stack and the readout."""
    rngs = nnx.Rngs(0)
    simple = {"recurrent_kernel_init": nnx.initializers.lecun_normal(), "rngs": rngs}
    layers = [RNN(cell(*pair, **simple)) for pair in zip((inputs, *hidden), hidden)]
    embed = nnx.Embed(size, 32, rngs=rngs)
    return embed, StackedRNN(layers), nnx.Linear(hidden[-1], size, rngs=rngs)


def written(units=((0, 1, 1), (1, 2, -1), (1, 3, 1)), text="The ", temperature=0.5, **sizes):
    """A `LanguageExplorer` around an untrained model of these sizes."""
    return explorers.LanguageExplorer(
        *language_parts(**sizes), units, text=text, temperature=temperature
    )


EXPLORERS = [getattr(explorers, name) for name in explorers.__all__ if name != "Explorer"]
MAKE = {explorer: explorer for explorer in EXPLORERS}
MAKE |= {explorers.DrawExplorer: drawn, explorers.LanguageExplorer: written}
MOST_BYTES = {explorers.LanguageExplorer: 300_000}  # of a page, compressed; 20,000 for the others


def one_unit(**changed):
    params = initialize_gru_params(jax.random.key(0), input_dim=1, hidden_dim=1)
    return params | {name: jnp.full_like(params[name], value) for name, value in changed.items()}


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_the_page_gets_the_same_bytes_every_time_and_few_of_them(explorer):
    first, second = MAKE[explorer](), MAKE[explorer]()
    page = first._repr_html_()
    assert page == second._repr_html_()
    light = re.sub(r' data-(given|measured)=".*?"', "", page)
    assert len(gzip.compress(light.encode())) <= 6_000
    assert len(gzip.compress(page.encode())) <= MOST_BYTES.get(explorer, 20_000)
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


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_an_explorer_explains_itself_in_one_sentence(explorer):
    code = _base.files("unrolled.lab.explorers") / f"{explorer.name}.js"
    (intro,) = re.findall('static intro = "(.*)";', code.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[A-Z][^.?!]{40,}[.?!]", intro)


@cache
def beside():
    """The text next to each explorer, by its name: in a chapter the cell below it."""
    page = (notebooks.ROOT / "book/index.md").read_text(encoding="utf-8")
    found = {"pulse": page.partition("{explorer} PulseExplorer\n```\n")[2]}
    for path in notebooks.ROOT.glob("book/[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell, following in pairwise(cells):
            for name in re.findall(r"<unrolled-(\w+) ", str(cell.get("outputs"))):
                found[name] = "".join(following["source"])
    return found


@pytest.mark.parametrize("explorer", EXPLORERS)
def test_the_text_beside_an_explorer_proposes_an_experiment(explorer):
    assert re.search(r"\b([Ss]et|[Mm]ove|[Pp]ull) (it|the|\*|\$)", beside()[explorer.name])


def test_an_explorer_has_the_colours_of_the_figures():
    style = (_base.files("unrolled.lab.explorers") / "base.js").read_text(encoding="utf-8")
    for quantity in ("input", "hidden", "reset", "update", "candidate", "memory", "gradient"):
        assert f"--{quantity}: {COLORS[quantity]}" in style


def test_the_gates_explorer_starts_from_the_readers_own_unit():
    start = explorers.GatesExplorer(one_unit(Wz=2.5, bh=-1), x_t=1.0, h_prev=0.25).start
    assert (start["Wz"], start["bh"], start["x_t"], start["h_prev"]) == (2.5, -1.0, 1.0, 0.25)


REFUSED = [
    (explorers.GatesExplorer, {"params": initialize_gru_params(jax.random.key(0), 1, 2)}, "(2, 1)"),
    (
        explorers.GatesExplorer,
        {"params": one_unit(Wz=11)},
        "Wz is 11; its slider goes from -10 to 10",
    ),
    (explorers.GatesExplorer, {"params": {"Wz": 1.0}}, "params lacks Uz, bz"),
    (explorers.GatesExplorer, {"x_t": 3.0}, "x_t is 3; its slider goes from -2 to 2"),
    (explorers.GatesExplorer, {"h_prev": -1.5}, "h_prev is -1.5; its slider goes from -1 to 1"),
    (explorers.GatesExplorer, {"h_prev": float("nan")}, "h_prev is nan"),
    (explorers.PulseExplorer, {"bz": -8.5}, "its slider goes from -8 to 2"),
    (explorers.PulseExplorer, {"bz": 3}, "its slider goes from -8 to 2"),
    (explorers.PulseExplorer, {"bz": float("nan")}, "its slider goes from -8 to 2"),
    (explorers.DirectionsExplorer, {"inputs": [0.0] * 7}, "inputs holds 7 numbers; expected 8"),
    (
        explorers.DirectionsExplorer,
        {"inputs": [0.0] * 7 + [1.5]},
        "x_8 is 1.5; its slider goes from -1",
    ),
    (explorers.DirectionsExplorer, {"inputs": [float("nan")] * 8}, "x_1 is nan"),
    (explorers.DirectionsExplorer, {"length": 9}, "length is 9; its slider goes from 0 to 8"),
    (explorers.DirectionsExplorer, {"step": 0}, "step is 0; its slider goes from 1 to 8"),
    (explorers.DirectionsExplorer, {"step": 2.5}, "step is 2.5"),
    (explorers.ScanExplorer, {"deposits": [1, 2, 3]}, "deposits holds 3 numbers; expected 4"),
    (
        explorers.ScanExplorer,
        {"deposits": [1, 2, 3, 51]},
        "x_4 is 51; its slider goes from -50 to 50",
    ),
    (explorers.ScanExplorer, {"opening": -1}, "opening is -1; its slider goes from 0 to 200"),
    (explorers.ScanExplorer, {"rate": 0.6}, "rate is 0.6; its slider goes from -0.5 to 0.5"),
    (
        explorers.ScanExplorer,
        {"taken": 5},
        "taken is 5; its slider goes from 0 to 4 in whole steps",
    ),
    (explorers.CellsExplorer, {"inputs": [0.0] * 8}, "inputs holds 8 numbers; expected 12"),
    (
        explorers.CellsExplorer,
        {"inputs": [0.0] * 11 + [-1]},
        "x_12 is -1; its slider goes from 0 to 1",
    ),
    (explorers.CellsExplorer, {"bias": 9}, "bias is 9; its slider goes from -2 to 8"),
    (explorers.CellsExplorer, {"weight": -1}, "weight is -1; its slider goes from 0 to 12"),
    (explorers.CellsExplorer, {"step": 13}, "step is 13; its slider goes from 1 to 12"),
    (
        explorers.GradientExplorer,
        {"U": np.ones((2, 3))},
        "U has shape (2, 3); expected (hidden_dim,",
    ),
    (explorers.GradientExplorer, {"U": np.eye(9)}, "U has 9 units; this explorer shows up to 8"),
    (
        explorers.GradientExplorer,
        {"U": np.full((2, 2), np.inf)},
        "U has a number that is not finite",
    ),
    (explorers.GradientExplorer, {"U": np.array([[0, 1], [0, 0]])}, "U has the spectral radius 0"),
    (explorers.GradientExplorer, {"U": 3 * np.eye(2)}, "radius is 3; its slider goes from 0 to 2"),
    (
        explorers.GradientExplorer,
        {"strength": -0.1},
        "strength is -0.1; its slider goes from 0 to 2",
    ),
    (explorers.GradientExplorer, {"steps": 101}, "steps is 101; its slider goes from 5 to 100"),
]


@pytest.mark.parametrize(("explorer", "arguments", "message"), REFUSED)
def test_what_the_sliders_cannot_show_is_refused(explorer, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explorer(**arguments)


def test_the_directions_explorer_starts_as_told():
    start = explorers.DirectionsExplorer([0.5] * 8, length=3, step=2).start
    assert start == {f"x_{t}": 0.5 for t in range(1, 9)} | {"length": 3, "step": 2}


def test_the_scan_explorer_starts_as_told():
    explorer = explorers.ScanExplorer([1, 2, 3, 4], opening=50, rate=0, taken=4, reverse=True)
    inputs = {f"x_{t}": t for t in range(1, 5)}
    assert explorer.start == inputs | {"opening": 50, "rate": 0, "taken": 4, "reverse": 1}


def test_the_cells_explorer_starts_as_told():
    start = explorers.CellsExplorer([0.5] * 12, bias=1, weight=4, step=2).start
    inputs = {f"x_{t}": 0.5 for t in range(1, 13)}
    assert start == inputs | {"bias": 1, "weight": 4, "step": 2}


def test_the_gradient_explorer_takes_a_matrix_of_ones_own():
    turn = np.array([[0.0, -0.5], [0.5, 0.0]])
    explorer = explorers.GradientExplorer(turn, strength=0.3, steps=20)
    assert explorer.start == {"radius": 0.5, "strength": 0.3, "steps": 20}
    assert explorer.given == {"U": [[0, -1], [1, 0]]}
    unit = np.array(explorers.GradientExplorer().given["U"])
    assert abs(np.abs(np.linalg.eigvals(unit)).max() - 1) < 1e-4


def test_the_draw_explorer_carries_the_weights_to_four_decimals():
    layer, readout = network()
    cells = [layer.forward_rnn.cell, layer.backward_rnn.cell]
    for cell, bias in zip(cells, (0.25, -0.5)):
        cell.dense_i.bias[...], cell.b_hn[...] = (
            jnp.linspace(-1, bias, 18),
            jnp.linspace(-1, bias, 6),
        )
    curves = np.random.default_rng(0).normal(size=(10, 40))
    explorer = explorers.DrawExplorer(layer, readout, curves, step=7)
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
    both, readout = network()
    with pytest.raises(TypeError, match="layer is an RNN; expected a Bidirectional"):
        explorers.DrawExplorer(both.forward_rnn, readout, np.zeros((10, 40)))
    with pytest.raises(ValueError, match="beyond the slider"):
        explorers.DrawExplorer(both, readout, np.full((10, 40), 5.5))
    diverged = nnx.clone(readout)
    diverged.bias[...] = jnp.full(10, jnp.nan)
    with pytest.raises(ValueError, match="has the training diverged"):
        explorers.DrawExplorer(both, diverged, np.zeros((10, 40)))


def test_the_language_explorer_carries_the_weights_in_eight_bits():
    embed, _, readout = language_parts()
    explorer = written()
    assert explorer.start == {"temperature": 0.5, "unit": 0}
    assert explorer.given == {"inputs": 32, "hidden": 128, "layers": 2, "text": "The "}
    carried = explorer.measured
    whole = np.frombuffer(base64.b64decode(carried["int8"]), "i1")
    real = np.frombuffer(base64.b64decode(carried["float32"]), "<f4")
    kernel = np.asarray(readout.kernel[...])
    scales, bias = real[-192:-96], real[-96:]
    np.testing.assert_array_equal(bias, readout.bias[...])
    found = whole[-kernel.size :].reshape(kernel.shape) * scales
    assert (np.abs(found - kernel) <= 0.51 * scales).all()
    assert np.abs(whole[: embed.embedding.size]).max() == 127
    matrices = 96 * 32 + 32 * 384 + 3 * 128 * 384 + 128 * 96
    assert len(whole) == matrices
    assert len(real) == 32 + 2 * (3 * 384 + 128) + 2 * 96  # scales, biases


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cell": SimpleCell}, TypeError, "a layer is a SimpleCell; expected an RNN around"),
        ({"hidden": (128, 64)}, ValueError, "expected 128 units in each"),
        ({"inputs": 16}, ValueError, "32 inputs of the first, as many as the embedding has"),
        ({"size": 90}, ValueError, "expected ((96, 32), (128, 96))"),
        ({"text": "π"}, ValueError, "printable ASCII only"),
        ({"units": ((2, 0, 1),) * 3}, ValueError, "layers from 0 to 1"),
        ({"units": ((0, 0, 1),)}, ValueError, "expected three (layer, unit, sign)"),
        ({"temperature": 2}, ValueError, "temperature is 2; its slider goes from 0 to 1.5"),
    ],
)
def test_a_model_that_the_page_cannot_run_is_refused(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        written(**arguments)
