"""Explorers in the built page: by keyboard, mouse and touch they equal what Python computes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.conftest import DESKTOP, PHONE, settle, watch
from unrolled import RNN, Bidirectional, GRUCell, LSTMCell, SimpleCell, gru_sequence, gru_step
from unrolled.gru import PARAMETER_SHAPES
from unrolled.lab.language import CHARACTERS, encode

pytestmark = pytest.mark.browser

CHAPTERS = {
    "pulse": "/book/index.html",
    "gradient": "/book/01_memory.html",
    "gates": "/book/02_gates.html",
    "scan": "/book/03_scan.html",
    "cells": "/book/07_lstm.html",
    "directions": "/book/10_bidirectional.html",
    "draw": "/book/10_bidirectional.html",
    "language": "/book/14_language.html",
}
"""Where each explorer is, by the name in its tag."""


@pytest.fixture(scope="module")
def opened(browser: Browser, book_server: str) -> Iterator[Callable[[str], Locator]]:
    """Open an explorer's chapter, once for all tests, and set the explorer back to its start.

    The screen can be touched, so a mouse and a finger both work.
    """
    context = browser.new_context(
        base_url=book_server, viewport=DESKTOP, has_touch=True, color_scheme="light"
    )
    problems = watch(context, book_server)
    pages: dict[str, Page] = {}

    def open_chapter(name: str) -> Locator:
        chapter = CHAPTERS[name]
        if chapter not in pages:
            pages[chapter] = context.new_page()
            pages[chapter].goto(chapter)
            settle(pages[chapter])
        pages[chapter].bring_to_front()  # behind another, a page draws only once a second
        explorer = pages[chapter].locator(f"unrolled-{name}").first
        explorer.scroll_into_view_if_needed()
        explorer.get_by_role("button", name="Reset").click()
        return explorer

    yield open_chapter
    context.close()
    assert not problems, "\n".join(problems)


def shown_by(explorer: Locator) -> tuple[dict[str, float], dict]:
    """The values of all sliders, and the numbers that the page has made of them."""
    shown = explorer.evaluate("element => ({ state: element.state, values: element.values })")
    return shown["state"], shown["values"]


def in_window(explorer: Locator, x: float, y: float) -> tuple[float, float]:
    """Where in the window a place of the picture is, once the picture is in its middle."""
    picture = explorer.locator("svg")
    picture.evaluate("svg => svg.scrollIntoView({ block: 'center', behavior: 'instant' })")
    box = picture.bounding_box()
    return box["x"] + box["width"] / 340 * x, box["y"] + box["width"] / 340 * y


def touch(explorer: Locator, x: float, y: float) -> None:
    """Tap the picture, at a place in the picture's own units."""
    explorer.page.touchscreen.tap(*in_window(explorer, x, y))


def draw(explorer: Locator, *places: tuple[float, float]) -> None:
    """Press the mouse on the picture at the first place, draw through the others and let go."""
    mouse = explorer.page.mouse
    first, *others = [in_window(explorer, *place) for place in places]
    mouse.move(*first)
    mouse.down()
    for place in others:
        mouse.move(*place, steps=6)
    mouse.up()


def draw_with_a_finger(explorer: Locator, *places: tuple[float, float]) -> None:
    """The same with real touches, which the browser could take for scrolling."""
    session = explorer.page.context.new_cdp_session(explorer.page)
    points = [dict(zip("xy", in_window(explorer, *place))) for place in places]
    for point in points:
        kind = "touchMove" if point is not points[0] else "touchStart"
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    session.detach()


@jax.jit
def gru_by_python(params, h_prev, x_t):
    inputs = jnp.zeros((20, 1)).at[0].set(x_t)
    return gru_step(params, h_prev, x_t)[0], gru_sequence(params, h_prev, inputs)[1]


def python_values(state: dict[str, float]) -> dict[str, np.ndarray]:
    """What `gru_step` and `gru_sequence` make of the sliders' values."""
    params = {
        name: jnp.full((1,) * len(dims), state[name], jnp.float32)
        for name, dims in PARAMETER_SHAPES.items()
    }
    h_prev, x_t = (jnp.array([state[name]], jnp.float32) for name in ("h_prev", "x_t"))
    h_t, outputs_h = gru_by_python(params, h_prev, x_t)
    return {"h_t": np.asarray(h_t)[0], "outputs_h": np.asarray(outputs_h)[:, 0]}


def expect_python_numbers(explorer: Locator) -> dict[str, float]:
    """Compare the page's numbers with Python's; return the values of all sliders."""
    state, values = shown_by(explorer)
    for name, expected in python_values(state).items():
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=1e-6, err_msg=name)
    blended = (1 - values["update"]) * state["h_prev"] + values["update"] * values["candidate"]
    assert abs(blended - values["h_t"]) < 1e-12
    return state


@pytest.fixture
def explorer(opened) -> Locator:
    return opened("gates")


def test_it_starts_with_the_numbers_that_the_chapter_prints(explorer):
    state = expect_python_numbers(explorer)
    assert (state["x_t"], state["h_prev"]) == (0.5, -0.8)
    numbers = explorer.locator("dd").all_inner_texts()
    assert numbers == ["0.5000", "0.3799", "0.6225", "−0.0655"]
    for number in numbers:
        assert number.replace("−", "-") in explorer.page.locator("main").text_content()


def test_the_keyboard_reaches_and_moves_every_slider(explorer):
    page = explorer.page
    first = explorer.get_by_label("Input xt")
    first.focus()
    page.keyboard.press("ArrowRight")
    assert expect_python_numbers(explorer)["x_t"] == pytest.approx(0.6)
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert expect_python_numbers(explorer)["h_prev"] == -1
    page.keyboard.press("Tab")
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    state = expect_python_numbers(explorer)
    assert state["bz"] == -6
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert expect_python_numbers(explorer)["br"] == 10
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens "All weights"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert expect_python_numbers(explorer)["Wz"] == 1.5
    explorer.get_by_text("All weights").click()


def test_the_mouse_drags_a_slider(explorer):
    page = explorer.page
    box = explorer.locator("#bz").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.85 * box["width"], y, steps=4)
    page.mouse.up()
    assert 6 <= expect_python_numbers(explorer)["bz"] <= 8
    assert explorer.evaluate("element => element.values.update") > 0.99


def test_all_eleven_sliders_at_odd_values(explorer):
    for shift in (0.0, 2.5):
        for position, name in enumerate(["x_t", "h_prev", *PARAMETER_SHAPES]):
            slider = explorer.locator(f"#{name}")
            low, high, step = slider.evaluate("({ min, max, step }) => [+min, +max, +step]")
            value = low + (high - low) * ((0.13 + 0.37 * position + shift) % 1)
            value = f"{low + step * round((value - low) / step):.2f}"
            slider.evaluate(
                "(slider, value) => { slider.value = value;"
                " slider.dispatchEvent(new Event('input', { bubbles: true })) }",
                value,
            )  # also where "All weights" is closed
            expect_python_numbers(explorer)


def test_closed_open_and_reset(explorer):
    values = "element => element.values"
    explorer.locator("#bz").fill("-10")
    assert abs(explorer.evaluate(values)["h_t"] - -0.8) < 1e-3
    explorer.locator("#bz").fill("10")
    explorer.locator("#br").fill("-10")
    opened = explorer.evaluate(values)
    assert abs(opened["h_t"] - np.tanh(2 * 0.5)) < 1e-3
    explorer.get_by_role("button", name="Reset").click()
    assert explorer.locator("#bz").input_value() == "0"
    state = expect_python_numbers(explorer)
    assert (state["bz"], state["br"]) == (0, 0)


def test_the_sentence_for_screen_readers_follows(explorer):
    sentence = explorer.locator("[aria-live=polite]")
    expect(sentence).to_contain_text("62 % of the way from the old state −0.80")
    explorer.locator("#bz").fill("-6")
    expect(sentence).to_contain_text("0 % of the way from the old state −0.80")


LUMINANCE = """(element) => {
  const context = document.createElement("canvas")
    .getContext("2d", { willReadFrequently: true });
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (color) => {
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const style = getComputedStyle(element);
  const colors = ["input", "hidden", "reset", "update", "candidate", "memory", "gradient"];
  const contrast = (color) => {
    const [low, high] = [luminance(color), luminance(style.backgroundColor)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  return { text: contrast(style.color),
           drawn: colors.map((name) => contrast(style.getPropertyValue("--" + name))) };
}"""


# What each control says, and how high it is: a box together with its label.
CONTROLS = """controls => controls.map(c => [
  (c.labels?.[0] ?? c).innerText.trim(),
  (c.type === "checkbox" ? c.labels[0] : c).getBoundingClientRect().height])"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_each_fits_a_phone_in_light_and_dark_without_motion(opened, name):
    explorer = opened(name)
    page = explorer.page
    page.set_viewport_size(PHONE)
    open_or_close = "(all, open) => { for (const details of all) details.open = open }"
    explorer.locator("details").evaluate_all(open_or_close, True)
    box = explorer.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    assert explorer.evaluate("element => element.scrollWidth <= element.clientWidth")
    for role in ("slider", "checkbox", "combobox", "button"):
        for words, height in explorer.get_by_role(role).evaluate_all(CONTROLS):
            assert words and height >= 24
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        dark = "[dark]" if scheme == "dark" else ":not([dark])"
        page.locator(f"unrolled-{name}{dark}").first.wait_for()
        contrast = explorer.evaluate(LUMINANCE)
        assert contrast["text"] >= 4.5
        assert min(contrast["drawn"]) >= 3  # bars, dots and lines; words have the text's colour
    slider = explorer.get_by_role("slider").first
    before = shown_by(explorer)[0]
    slider.tap(position={"x": 0.9 * slider.bounding_box()["width"], "y": 14})
    assert shown_by(explorer)[0] != before
    assert explorer.evaluate("element => element.shadowRoot.getAnimations().length") == 0
    explorer.locator("details").evaluate_all(open_or_close, False)
    page.set_viewport_size(DESKTOP)


@pytest.fixture
def pulse(opened) -> Locator:
    return opened("pulse")


def pulse_by_python(state: dict[str, float]) -> np.ndarray:
    """The eight states that `gru_sequence` computes with the home page's parameters."""
    weights = {"Wz": 4.0, "Wh": 3.0, "bz": state["bz"]}
    params = {
        name: jnp.full((1,) * len(dims), weights.get(name, 0.0), jnp.float32)
        for name, dims in PARAMETER_SHAPES.items()
    }
    inputs = jnp.array([[state[f"x_{t}"]] for t in range(1, 9)], jnp.float32)
    return np.asarray(gru_sequence(params, jnp.zeros(1), inputs)[1])[:, 0]


def expect_pulse(pulse: Locator) -> dict[str, float]:
    state, values = shown_by(pulse)
    np.testing.assert_allclose(values["outputs_h"], pulse_by_python(state), rtol=0, atol=1e-6)
    return state


def test_the_home_page_is_alive_on_its_first_screen(pulse):
    assert pulse.evaluate("e => e.getBoundingClientRect().top + scrollY") < 600
    assert expect_pulse(pulse)["x_2"] == 1
    pulse.get_by_label("5").click()
    pulse.get_by_label("2").tap()
    state = expect_pulse(pulse)
    assert (state["x_2"], state["x_5"]) == (0, 1)
    expect(pulse.locator("[aria-live=polite]")).to_contain_text("Input at step 5.")


def test_the_home_pages_figure_by_the_keyboard_alone(pulse):
    keyboard = pulse.page.keyboard
    pulse.get_by_label("1", exact=True).focus()
    keyboard.press("Space")
    assert expect_pulse(pulse)["x_1"] == 1
    for _ in range(8):
        keyboard.press("Tab")
    keyboard.press("End")
    assert expect_pulse(pulse)["bz"] == 2
    keyboard.press("Tab")
    keyboard.press("Enter")  # "Reset"
    state = expect_pulse(pulse)
    assert (state["x_1"], state["bz"]) == (0, -3)
    assert not pulse.get_by_label("1", exact=True).is_checked()


@pytest.fixture
def directions(opened) -> Locator:
    return opened("directions")


def both_directions() -> Bidirectional:
    """The package's layer with the weights of the explorer's two units."""
    layers = []
    for _ in range(2):
        cell = GRUCell(1, 1, rngs=nnx.Rngs(0))
        cell.dense_i.kernel[...] = jnp.array([[0.5, -1.0, 2.5]])  # reset, update, candidate
        cell.dense_i.bias[...] = jnp.array([1.0, 1.5, 0.0])
        cell.dense_h.kernel[...] = jnp.array([[0.0, 0.0, 0.5]])
        layers.append(RNN(cell))
    return Bidirectional(*layers)


@jax.jit
def read_both_ways(inputs, lengths):
    return both_directions()(inputs, seq_lengths=lengths, return_carry=True)


def expect_directions(directions: Locator) -> dict[str, float]:
    state, values = shown_by(directions)
    inputs = jnp.array([[[state[f"x_{t}"]] for t in range(1, 9)]], jnp.float32)
    (forward, backward), outputs = read_both_ways(inputs, jnp.array([int(state["length"])]))
    expected = {
        "forward": outputs[0, :, 0],
        "backward": outputs[0, :, 1],
        "forward_carry": forward[0, 0],
        "backward_carry": backward[0, 0],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-5, err_msg=name)
    return state


def test_directions_start_with_the_numbers_that_the_chapter_prints(directions):
    state = expect_directions(directions)
    assert (state["step"], state["length"], state["value"]) == (3, 6, 0.2)
    printed = directions.page.locator("main").text_content()
    for number in directions.locator("dd").all_inner_texts():
        assert number.replace("−", "-") in printed
    expect(directions.locator("[aria-live=polite]")).to_contain_text(
        "has seen inputs 1 to 3, the backward state 0.36 has seen inputs 6 back to 3."
    )


def test_the_keyboard_changes_a_step_its_input_and_the_length(directions):
    page = directions.page
    directions.locator("#step").focus()
    page.keyboard.press("End")
    state = expect_directions(directions)
    assert (state["step"], state["value"]) == (8, 0.4)  # the slider shows what stands there
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    assert expect_directions(directions)["x_8"] == -1
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert expect_directions(directions)["length"] == 8
    page.keyboard.press("Home")
    state = expect_directions(directions)
    assert state["length"] == 0
    expect(directions.locator("[aria-live=polite]")).to_contain_text("Step 8 is padding")
    directions.get_by_role("button", name="Reset").click()
    state = expect_directions(directions)
    assert (state["step"], state["length"], state["x_8"]) == (3, 6, 0.4)


def test_a_click_into_the_picture_chooses_a_step(directions):
    for step in (1, 5, 8):
        draw(directions, (50 + 34 * step, 90))
        state = expect_directions(directions)
        assert state["step"] == step and state["value"] == state[f"x_{step}"]
        assert directions.locator("#step").input_value() == str(step)
    touch(directions, 50 + 34 * 6, 200)
    assert expect_directions(directions)["step"] == 6


def test_the_length_changes_what_the_backward_state_has_seen(directions):
    values = "element => [element.values.forward[2], element.values.backward[2]]"
    seen = []
    for length in range(8, -1, -1):
        directions.locator("#length").fill(str(length))
        assert expect_directions(directions)["length"] == length
        seen.append(directions.evaluate(values))
    forward, backward = zip(*seen)
    assert len(set(forward[:6])) == 1 and len(set(backward[:6])) == 6
    assert seen[6:] == [[0, 0]] * 3


@pytest.fixture
def scan(opened) -> Locator:
    return opened("scan")


@partial(jax.jit, static_argnames="reverse")
def account_by_python(opening, deposits, rate, reverse):
    """The balance and the interest of each year."""

    def year(balance, deposit):
        interest = rate * balance
        new = balance + interest + deposit
        return new, (new, interest)

    return jax.lax.scan(year, opening, deposits, reverse=reverse)[1]


def expect_scan(scan: Locator) -> dict[str, float]:
    """Compare the steps taken with those of `jax.lax.scan`."""
    state, values = shown_by(scan)
    taken, reverse = int(state["taken"]), bool(state["reverse"])
    deposits = jnp.array([state[f"x_{t}"] for t in range(1, 5)])
    balances, interests = account_by_python(state["opening"], deposits, state["rate"], reverse)
    in_order = balances[::-1] if reverse else balances
    carries = [state["opening"], *in_order[:taken]]
    np.testing.assert_allclose(values["carries"], carries, rtol=1e-6, atol=1e-5)
    read = slice(4 - taken, 4) if reverse else slice(0, taken)
    np.testing.assert_allclose(values["ys"][read], interests[read], rtol=1e-6, atol=1e-5)
    return state


def test_a_scan_is_stepped_by_buttons_and_ends_where_the_chapter_does(scan):
    assert expect_scan(scan)["taken"] == 2
    assert scan.locator("dd").all_inner_texts() == ["120.00", "20.00", "152.00", "12.00"]
    forward, back = (scan.get_by_role("button", name=f"Step {way}") for way in ("forward", "back"))
    sentence = scan.locator("[aria-live=polite]")
    forward.click()
    assert expect_scan(scan)["taken"] == 3
    for _ in range(2):  # there is no fifth step
        scan.page.keyboard.press("Enter")
        assert expect_scan(scan)["taken"] == 4
    expect(sentence).to_contain_text(
        "it returns the carry 256.92 and the outputs 10.00, 12.00, 15.20, 19.72."
    )
    assert "256.92" in scan.page.locator("main").text_content()
    back.tap()
    back.focus()
    for taken in (3, 2, 1, 0, 0):
        assert expect_scan(scan)["taken"] == taken
        scan.page.keyboard.press("Space")
    expect(sentence).to_contain_text("No step is taken yet.")


def test_a_scan_by_the_keyboard_alone_forwards_and_in_reverse(scan):
    keyboard = scan.page.keyboard
    scan.get_by_label("reverse=True").focus()
    keyboard.press("Space")
    keyboard.press("Tab")
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    state = expect_scan(scan)
    assert (state["reverse"], state["taken"]) == (1, 1)
    assert scan.evaluate("element => element.values.at") == 4  # the last input is read first
    keyboard.press("End")
    keyboard.press("Tab")
    keyboard.press("Enter")  # opens the deposits
    keyboard.press("Tab")
    keyboard.press("End")
    state = expect_scan(scan)
    assert (state["taken"], state["x_1"]) == (4, 50)
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")
    keyboard.press("Tab")
    keyboard.press("Enter")  # "Step back"
    assert expect_scan(scan)["taken"] == 3


def test_a_deposit_reaches_no_output_before_the_year_after_it(scan):
    scan.locator("#taken").fill("4")
    before = shown_by(scan)[1]["ys"]
    scan.get_by_text("Deposits, opening").click()
    scan.locator("#x_2").fill("50")
    expect_scan(scan)
    after = shown_by(scan)[1]["ys"]
    assert after[:2] == before[:2] and after[2] > before[2] and after[3] > before[3]
    scan.locator("#rate").fill("-0.35")
    expect_scan(scan)
    scan.get_by_text("Deposits, opening").click()


@pytest.fixture
def curve(opened) -> Locator:
    return opened("draw")


@jax.jit
def read_by_python(weights, inputs):
    """Both directions' states and the probabilities, by the package with the page's weights."""
    layers = []
    for direction in ("forward", "backward"):
        cell = GRUCell(1, 6, rngs=nnx.Rngs(0))
        w = weights[direction]
        cell.dense_i.kernel[...], cell.dense_i.bias[...] = w["W"], w["b"]
        cell.dense_h.kernel[...], cell.b_hn[...] = w["U"], w["b_hn"]
        layers.append(RNN(cell))
    outputs = Bidirectional(*layers)(inputs[:, None])  # (40, 12)
    scores = outputs.reshape(-1) @ weights["readout"]["W"] + weights["readout"]["b"]
    return outputs[:, :6], outputs[:, 6:], jax.nn.softmax(scores)


def expect_reading(curve: Locator) -> tuple[dict[str, float], np.ndarray]:
    """Compare the states and probabilities with the package's; return the state and the curve."""
    state, values = shown_by(curve)
    weights = jax.tree.map(
        lambda numbers: np.array(numbers, np.float32) / 10_000,
        curve.evaluate("element => element.measured"),
        is_leaf=lambda numbers: isinstance(numbers, list),
    )
    inputs = np.array([state[f"x_{t}"] for t in range(1, 41)], np.float32)
    forward, backward, probabilities = read_by_python(weights, inputs)
    np.testing.assert_allclose(values["forward"], forward, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values["backward"], backward, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values["probabilities"], probabilities, rtol=0, atol=1e-5)
    assert values["ranked"][0] == int(np.argmax(probabilities))
    return state, inputs


def test_the_trained_network_reads_the_test_curves(curve):
    right = 0
    for digit in range(10):
        curve.get_by_label("Begin with").select_option(f"a test curve of a {digit}")
        expect_reading(curve)
        right += shown_by(curve)[1]["ranked"][0] == digit
    assert right >= 6  # the network is right nine times in ten
    curve.get_by_label("Begin with").select_option("a flat line")
    assert not expect_reading(curve)[1].any()
    expect(curve.locator("[aria-live=polite]")).to_contain_text("You began with a flat line")


def test_a_curve_is_drawn_with_the_mouse_and_with_a_finger(curve):
    before, states = expect_reading(curve)[1], shown_by(curve)[1]
    draw(curve, (27 + 7.8 * 9, 74 - 14 * 3), (27 + 7.8 * 19, 74 + 14 * 2))
    state, inputs = expect_reading(curve)
    assert state["step"] == 20 and state["example"] == 3
    np.testing.assert_allclose(inputs[9:20], np.linspace(3, -2, 11), atol=0.4)  # no gaps
    assert (inputs[:9] == before[:9]).all() and (inputs[20:] == before[20:]).all()
    values = shown_by(curve)[1]
    assert values["forward"][:9] == states["forward"][:9] != values["forward"][9:18]
    assert values["backward"][20:] == states["backward"][20:]
    touch(curve, 27 + 7.8 * 4, 74 - 14 * 4)
    state, inputs = expect_reading(curve)
    assert state["step"] == 5 and abs(inputs[4] - 4) < 0.1
    assert (inputs[5:9] == before[5:9]).all()
    draw_with_a_finger(curve, *((27 + 7.8 * t, 20 + 3 * t) for t in range(20, 36, 3)))
    state, inputs = expect_reading(curve)
    assert state["step"] == 36
    np.testing.assert_allclose(inputs[20:36], np.linspace(-0.43, -3.64, 16), atol=0.2)


def test_a_curve_is_drawn_by_the_keyboard_alone(curve):
    keyboard = curve.page.keyboard
    curve.get_by_label("Begin with").focus()
    keyboard.press("End")  # the flat line
    keyboard.press("Tab")
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    keyboard.press("Tab")
    keyboard.press("PageUp")
    state, inputs = expect_reading(curve)
    assert state["example"] == 10 and state["step"] == 2
    assert inputs[1] == state["value"] > 0 and not inputs[2:].any()
    keyboard.press("Tab")
    keyboard.press("Enter")  # "Reset"
    assert expect_reading(curve)[0]["example"] == 3


@pytest.fixture
def gradient(opened) -> Locator:
    return opened("gradient")


@jax.jit
def jacobians_by_python(kernel, noise):
    """The derivative of each of 100 states of the package's `SimpleCell` by the initial one."""
    cell = SimpleCell(8, 8, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...], cell.dense_h.kernel[...] = jnp.eye(8), kernel

    def states(initial_h):
        return jax.lax.scan(lambda h, x: cell(h, x), initial_h, noise)[1]

    at = jnp.zeros(8)
    return jax.jacfwd(states)(at), states(at)


def expect_gradient(gradient: Locator) -> dict[str, float]:
    state, values = shown_by(gradient)
    seed, noise = 1, []
    for _ in range(800):
        seed = seed * 16807 % 2147483647
        noise.append(3**0.5 * (2 * seed / 2147483647 - 1))
    steps = int(state["steps"])
    with jax.enable_x64(True):
        kernel = state["radius"] * jnp.array(gradient.evaluate("element => element.given.U")).T
        strong = state["strength"] * jnp.array(noise).reshape(100, 8)
        jacobians, states = jacobians_by_python(kernel, strong)
        expected = np.linalg.norm(jacobians[:steps], ord=2, axis=(1, 2))
        slope = float(jnp.mean(1 - states[:steps] ** 2))
    np.testing.assert_allclose(values["norms"], expected, rtol=1e-5)
    assert abs(values["slope"] - slope) < 1e-5
    assert abs(values["rate"] / expected[-1] ** (1 / steps) - 1) < 1e-5
    assert (expected[: values["reach"]] >= 0.01).all()
    return state


def test_a_gradient_vanishes_and_explodes_as_in_python(gradient):
    assert expect_gradient(gradient) == {"radius": 0.9, "strength": 0, "steps": 50}
    for radius, strength in ((1.1, 0), (1.1, 0.5), (2, 0.3), (0.5, 2)):
        gradient.locator("#radius").fill(str(radius))
        gradient.locator("#strength").fill(str(strength))
        gradient.locator("#steps").fill("100")
        expect_gradient(gradient)
    assert shown_by(gradient)[1]["norms"][-1] < 1e-40
    expect(gradient.locator("[aria-live=polite]")).to_contain_text("it has vanished")
    gradient.locator("#radius").fill("0")
    assert set(shown_by(gradient)[1]["norms"]) == {0}


def test_a_gradient_by_the_keyboard_alone(gradient):
    keyboard = gradient.page.keyboard
    gradient.get_by_label("Spectral radius").focus()
    for _ in range(4):
        keyboard.press("ArrowRight")
    keyboard.press("Tab")
    keyboard.press("Home")
    keyboard.press("Tab")
    keyboard.press("End")
    assert expect_gradient(gradient) == {"radius": 1.1, "strength": 0, "steps": 100}
    expect(gradient.locator("[aria-live=polite]")).to_contain_text("it explodes")


@pytest.fixture
def cells(opened) -> Locator:
    return opened("cells")


@jax.jit
def cells_by_python(inputs, bias, weight):
    """Memory and state of the package's LSTM unit, and the state of its GRU unit."""
    zeros = {"recurrent_kernel_init": nnx.initializers.zeros_init(), "rngs": nnx.Rngs(0)}
    lstm, gru = LSTMCell(1, 1, **zeros), GRUCell(1, 1, **zeros)
    for layer, kernel in ((lstm.ii, 0.0), (lstm.if_, 0.0), (lstm.ig, 2.0), (lstm.io, 0.0)):
        layer.kernel[...] = jnp.full((1, 1), kernel)
    lstm.hi.bias[...], lstm.ho.bias[...] = jnp.full(1, 4.0), jnp.full(1, 4.0)
    lstm.hf.bias[...] = jnp.full(1, bias)
    gru.dense_i.kernel[...] = jnp.array([[0.0, -weight, 2.0]])  # r, z, n
    gru.dense_i.bias[...] = jnp.array([0.0, bias, 0.0])

    def both(carry, x):
        pair, _ = lstm(carry[0], x)
        hidden, _ = gru(carry[1], x)
        return (pair, hidden), (*pair, hidden)

    zero = jnp.zeros(1)
    return jax.lax.scan(both, ((zero, zero), zero), inputs[:, None])[1]


def expect_cells(cells: Locator) -> tuple[dict[str, float], dict]:
    state, values = shown_by(cells)
    inputs = jnp.array([state[f"x_{t}"] for t in range(1, 13)])
    expected = cells_by_python(inputs, state["bias"], state["weight"])
    for name, numbers in zip(("memory", "shown", "hidden"), expected):
        np.testing.assert_allclose(values[name], numbers[:, 0], rtol=0, atol=1e-5, err_msg=name)
    return state, values


def test_an_lstm_counts_what_is_drawn_and_a_gru_does_not(cells):
    expect_cells(cells)
    cells.locator("#bias").fill("5")
    cells.locator("#weight").fill("8")
    _, values = expect_cells(cells)
    assert values["memory"][8] > 2.5 and max(values["hidden"]) < np.tanh(2)
    draw(cells, (45, 260), (45 + 25 * 11, 212))  # a ramp over all twelve steps
    state, values = expect_cells(cells)
    ramp = [state[f"x_{t}"] for t in range(1, 13)]
    assert ramp[0] <= 0.3 and ramp[-1] == 1 and state["step"] == 12
    touch(cells, 45 + 25 * 3, 272 - 30)
    state, _ = expect_cells(cells)
    assert state["x_4"] == 0.5 and state["value"] == 0.5
    expect(cells.locator("[aria-live=polite]")).to_contain_text("At step 4 the input is 0.50.")


def test_two_cells_by_the_keyboard_alone(cells):
    keyboard = cells.page.keyboard
    cells.locator("#step").focus()
    keyboard.press("End")
    keyboard.press("Tab")
    keyboard.press("End")
    keyboard.press("Tab")
    keyboard.press("Home")
    keyboard.press("Tab")
    keyboard.press("End")
    state, values = expect_cells(cells)
    assert {"step": 12, "x_12": 1, "bias": -2, "weight": 12}.items() <= state.items()
    assert values["memory"][10] < 0.05  # forgotten, and so is all before step 12 in the GRU


@pytest.fixture
def language(opened) -> Locator:
    return opened("language")


@pytest.fixture(scope="module")
def language_by_python() -> Callable[[Locator], tuple[np.ndarray, np.ndarray]]:
    """Scores of the next character and the states, by the package, with the page's own weights."""
    compiled = []

    def read(language: Locator) -> tuple[np.ndarray, np.ndarray]:
        if not compiled:
            embedding, layers, kernel, bias = carried_by(language)

            def run(codes):
                outputs, states = jnp.asarray(embedding)[codes], []
                for layer in layers:
                    outputs = layer(outputs)
                    states.append(outputs)
                return outputs @ kernel + bias, jnp.stack(states)

            compiled.append(jax.jit(run))
        text = encode(language.evaluate("e => e.text"))
        # One length, so that it compiles once: what follows the text changes nothing in it.
        scores, states = compiled[0](jnp.asarray(np.pad(text, (0, 700 - len(text)))))
        return np.asarray(scores[len(text) - 1]), np.asarray(states)[:, : len(text)]

    return read


def carried_by(language: Locator) -> tuple[np.ndarray, list[RNN], np.ndarray, np.ndarray]:
    """The page's weights: the embedding, the package's layers, kernel and bias of the readout."""
    given, measured = language.evaluate("e => [e.given, e.measured]")
    hidden, inputs, size = given["hidden"], given["inputs"], len(CHARACTERS)
    parts = {name: base64.b64decode(measured[name]) for name in ("int8", "float32")}
    whole, real = np.frombuffer(parts["int8"], "i1"), np.frombuffer(parts["float32"], "<f4")

    def floats(count):
        nonlocal real
        taken, real = np.split(real, [count])
        return taken

    def matrix(rows, columns):
        nonlocal whole
        taken, whole = np.split(whole, [rows * columns])
        return taken.reshape(rows, columns) * floats(columns)

    embedding, layers = matrix(size, inputs), []
    for features in [inputs] + [hidden] * (given["layers"] - 1):
        cell = nnx.eval_shape(lambda n=features: GRUCell(n, hidden, rngs=nnx.Rngs(0)))
        cell.dense_i.kernel.set_value(jnp.asarray(matrix(features, 3 * hidden)))
        cell.dense_h.kernel.set_value(jnp.asarray(matrix(hidden, 3 * hidden)))
        cell.dense_i.bias.set_value(jnp.asarray(floats(3 * hidden)))
        cell.b_hn.set_value(jnp.asarray(floats(hidden)))
        layers.append(RNN(cell, rngs=False))
    kernel, bias = matrix(hidden, size), floats(size)
    assert not len(whole) and not len(real)
    return embedding, layers, kernel, bias


def expect_language(language: Locator, by_python: Callable) -> tuple[dict[str, float], dict]:
    state, values = shown_by(language)
    scores, states = by_python(language)
    expected = jax.nn.softmax(scores / max(state["temperature"], 1e-6))
    np.testing.assert_allclose(values["probabilities"], expected, rtol=0, atol=1e-3)
    assert language.get_by_label("The text").input_value() == values["text"]
    assert language.locator("pre").text_content() == values["text"]
    if state["unit"]:
        layer, unit, sign = language.evaluate("e => e.measured.units")[int(state["unit"]) - 1]
        np.testing.assert_allclose(
            values["tracked"], sign * states[layer, :, unit], rtol=0, atol=1e-3
        )
    return state, values


def test_the_trained_network_writes_what_it_would_in_python(language, language_by_python):
    state, values = expect_language(language, language_by_python)
    assert values["text"] == "The object " and state == {"temperature": 0.5, "unit": 0}
    language.page.emulate_media(reduced_motion="reduce")
    language.locator("#temperature").fill("0")
    language.get_by_role("button", name="Write").click()  # all at once, without motion
    state, values = expect_language(language, language_by_python)
    assert len(values["text"]) == 311
    assert values["probabilities"][values["ranked"][0]] == 1  # certain at temperature 0
    language.locator("#temperature").fill("1")
    language.get_by_label("Colour of the unit for").select_option("quotes")
    expect_language(language, language_by_python)
    spoken = language.locator("[aria-live=polite]")
    expect(spoken).to_contain_text(values["text"][-20:])
    language.page.emulate_media(reduced_motion="no-preference")
    language.get_by_role("button", name="Write").click()
    language.get_by_role("button", name="Stop").click()
    language.get_by_role("button", name="Write").wait_for()
    _, values = expect_language(language, language_by_python)
    assert 311 <= len(values["text"]) < 611


def test_the_reader_chooses_characters_with_mouse_finger_and_keyboard(language, language_by_python):
    ranked = shown_by(language)[1]["ranked"]
    draw(language, (10 + 32 * 1.5, 150))  # the second bar
    _, values = expect_language(language, language_by_python)
    assert values["text"] == "The object " + CHARACTERS[ranked[1]]
    touch(language, 10 + 32 * 0.5, 150)
    _, touched = expect_language(language, language_by_python)
    assert touched["text"] == values["text"] + CHARACTERS[values["ranked"][0]]
    field = language.get_by_label("The text")
    field.focus()
    language.page.keyboard.press("ControlOrMeta+A")
    language.page.keyboard.type('π if "x')
    _, values = expect_language(language, language_by_python)
    assert values["text"] == ' if "x'  # what it does not know is left out
    language.page.keyboard.press("Tab")
    language.page.keyboard.press("Tab")
    language.page.keyboard.press("Enter")  # one character
    _, values = expect_language(language, language_by_python)
    assert len(values["text"]) == 7


def test_a_text_by_the_keyboard_alone(language, language_by_python):
    keyboard = language.page.keyboard
    language.page.emulate_media(reduced_motion="no-preference")
    language.get_by_label("Temperature").focus()
    keyboard.press("Home")
    keyboard.press("ArrowRight")
    keyboard.press("Tab")
    keyboard.press("ArrowDown")
    state, values = expect_language(language, language_by_python)
    assert state == {"temperature": 0.05, "unit": 1}
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")  # "Write", which becomes "Stop"
    language.get_by_role("button", name="Stop").wait_for()
    keyboard.press("Enter")
    language.get_by_role("button", name="Write").wait_for()
    _, written = expect_language(language, language_by_python)
    assert written["text"].startswith(values["text"]) and len(written["text"]) < 311
    keyboard.press("Tab")
    keyboard.press("Tab")
    keyboard.press("Enter")  # "Reset"
    assert expect_language(language, language_by_python)[0]["unit"] == 0
