"""Explorers in the built page: by keyboard, mouse and touch they equal what Python computes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from playwright.sync_api import Locator, Page, expect

from unrolled import RNN, Bidirectional, GRUCell, gru_sequence, gru_step
from unrolled.gru import PARAMETER_SHAPES

pytestmark = pytest.mark.browser

CHAPTER = "/book/02_gates.html"


def python_values(state: dict[str, float]) -> dict[str, np.ndarray]:
    """What `gru_step` and `gru_sequence` make of the sliders' values."""
    params = {
        name: jnp.full((1,) * len(dims), state[name], jnp.float32)
        for name, dims in PARAMETER_SHAPES.items()
    }
    h_prev, x_t = (jnp.array([state[name]], jnp.float32) for name in ("h_prev", "x_t"))
    inputs = jnp.zeros((20, 1)).at[0].set(x_t)
    return {
        "h_t": np.asarray(gru_step(params, h_prev, x_t)[0])[0],
        "outputs_h": np.asarray(gru_sequence(params, h_prev, inputs)[1])[:, 0],
    }


def expect_python_numbers(explorer: Locator) -> dict[str, float]:
    """Compare the page's numbers with Python's; return the values of all sliders."""
    shown = explorer.evaluate("element => ({ state: element.state, values: element.values })")
    state, values = shown["state"], shown["values"]
    for name, expected in python_values(state).items():
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=1e-6, err_msg=name)
    blended = (1 - values["update"]) * state["h_prev"] + values["update"] * values["candidate"]
    assert abs(blended - values["h_t"]) < 1e-12
    return state


@pytest.fixture
def explorer(page: Page) -> Locator:
    page.goto(CHAPTER)
    explorer = page.locator("unrolled-gates").first
    explorer.scroll_into_view_if_needed()
    return explorer


def test_it_starts_with_the_numbers_that_the_chapter_prints(explorer, page):
    state = expect_python_numbers(explorer)
    assert (state["x_t"], state["h_prev"]) == (0.5, -0.8)
    numbers = explorer.locator("dd").all_inner_texts()
    assert numbers == ["0.5000", "0.3799", "0.6225", "−0.0655"]
    for number in numbers:
        assert number.replace("−", "-") in page.locator("main").inner_text()


def test_the_keyboard_reaches_and_moves_every_slider(explorer, page):
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


def test_the_mouse_drags_a_slider(explorer, page):
    box = explorer.locator("#bz").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.85 * box["width"], y, steps=4)
    page.mouse.up()
    assert 6 <= expect_python_numbers(explorer)["bz"] <= 8
    assert explorer.evaluate("element => element.values.update") > 0.99


def test_all_eleven_sliders_at_odd_values(explorer):
    explorer.get_by_text("All weights").click()
    for shift in (0.0, 2.5):
        for position, name in enumerate(["x_t", "h_prev", *PARAMETER_SHAPES]):
            slider = explorer.locator(f"#{name}")
            low, high = (float(slider.get_attribute(end)) for end in ("min", "max"))
            value = low + (high - low) * ((0.13 + 0.37 * position + shift) % 1)
            step = float(slider.get_attribute("step"))
            slider.fill(f"{low + step * round((value - low) / step):.2f}")
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


def test_controls_have_names_and_are_large_enough_to_hit(explorer):
    explorer.get_by_text("All weights").click()
    sliders = explorer.get_by_role("slider").all()
    assert len(sliders) == 11
    for slider in sliders:
        assert slider.evaluate("slider => slider.labels[0].innerText.trim()")
        assert slider.bounding_box()["height"] >= 24
    assert explorer.get_by_role("button", name="Reset").bounding_box()["height"] >= 24


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
  const colors = ["input", "hidden", "reset", "update", "candidate"];
  const contrast = (color) => {
    const [low, high] = [luminance(color), luminance(style.backgroundColor)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  return { text: contrast(style.color),
           drawn: colors.map((name) => contrast(style.getPropertyValue("--" + name))) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable_without_motion(explorer, page, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.reload()
    expect(explorer.locator("svg")).to_be_visible()
    assert explorer.evaluate("element => element.hasAttribute('dark')") == (scheme == "dark")
    contrast = explorer.evaluate(LUMINANCE)
    assert contrast["text"] >= 4.5
    assert min(contrast["drawn"]) >= 3  # bars, dots and lines; words have the text's colour
    explorer.locator("#x_t").fill("1.5")
    expect_python_numbers(explorer)
    assert page.evaluate("document.getAnimations().length") == 0


def test_on_a_phone_it_fits_and_a_tap_moves_it(browser, book_server):
    context = browser.new_context(
        base_url=book_server, viewport={"width": 390, "height": 844}, has_touch=True
    )
    page = context.new_page()
    page.goto(CHAPTER)
    explorer = page.locator("unrolled-gates").first
    explorer.scroll_into_view_if_needed()
    box = explorer.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert explorer.evaluate("element => element.scrollWidth <= element.clientWidth")
    slider = explorer.locator("#x_t")
    width = slider.bounding_box()["width"]
    slider.tap(position={"x": 0.9 * width, "y": 14})
    assert expect_python_numbers(explorer)["x_t"] > 1.2
    context.close()


@pytest.fixture
def pulse(page: Page) -> Locator:
    page.goto("/book/index.html")
    return page.locator("unrolled-pulse")


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
    shown = pulse.evaluate("element => ({ state: element.state, values: element.values })")
    expected = pulse_by_python(shown["state"])
    np.testing.assert_allclose(shown["values"]["outputs_h"], expected, rtol=0, atol=1e-6)
    return shown["state"]


def test_the_home_page_is_alive_on_its_first_screen(pulse, page):
    assert pulse.bounding_box()["y"] < 600
    assert expect_pulse(pulse)["x_2"] == 1
    pulse.get_by_label("5").check()
    pulse.get_by_label("2").uncheck()
    state = expect_pulse(pulse)
    assert (state["x_2"], state["x_5"]) == (0, 1)
    expect(pulse.locator("[aria-live=polite]")).to_contain_text("Input at step 5.")


def test_the_home_pages_figure_obeys_the_keyboard_and_resets(pulse, page):
    pulse.get_by_label("1", exact=True).focus()
    page.keyboard.press("Space")
    assert expect_pulse(pulse)["x_1"] == 1
    pulse.get_by_label("Update gate").focus()
    page.keyboard.press("End")
    assert expect_pulse(pulse)["bz"] == 2
    pulse.get_by_role("button", name="Reset").click()
    state = expect_pulse(pulse)
    assert (state["x_1"], state["bz"]) == (0, -3)
    assert not pulse.get_by_label("1", exact=True).is_checked()


@pytest.fixture
def directions(page: Page) -> Locator:
    page.goto("/book/10_bidirectional.html")
    directions = page.locator("unrolled-directions")
    directions.scroll_into_view_if_needed()
    return directions


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


def expect_directions(directions: Locator) -> dict[str, float]:
    shown = directions.evaluate("element => ({ state: element.state, values: element.values })")
    state, values = shown["state"], shown["values"]
    inputs = jnp.array([[[state[f"x_{t}"]] for t in range(1, 9)]], jnp.float32)
    (forward, backward), outputs = both_directions()(
        inputs, seq_lengths=[int(state["length"])], return_carry=True
    )
    expected = {
        "forward": outputs[0, :, 0],
        "backward": outputs[0, :, 1],
        "forward_carry": forward[0, 0],
        "backward_carry": backward[0, 0],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-5, err_msg=name)
    return state


def test_directions_start_with_the_numbers_that_the_chapter_prints(directions, page):
    state = expect_directions(directions)
    assert (state["step"], state["length"], state["value"]) == (3, 6, 0.2)
    printed = page.locator("main").inner_text()
    for number in directions.locator("dd").all_inner_texts():
        assert number.replace("−", "-") in printed
    expect(directions.locator("[aria-live=polite]")).to_contain_text(
        "has seen inputs 1 to 3, the backward state 0.36 has seen inputs 6 back to 3."
    )


def test_the_keyboard_changes_a_step_its_input_and_the_length(directions, page):
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
        directions.locator(f"[data-step='{step}']").click()
        state = expect_directions(directions)
        assert state["step"] == step and state["value"] == state[f"x_{step}"]
        assert directions.locator("#step").input_value() == str(step)


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


def test_directions_fit_a_phone_and_obey_a_tap(browser, book_server):
    context = browser.new_context(
        base_url=book_server, viewport={"width": 390, "height": 844}, has_touch=True
    )
    page = context.new_page()
    page.goto("/book/10_bidirectional.html")
    directions = page.locator("unrolled-directions")
    directions.scroll_into_view_if_needed()
    assert directions.evaluate("element => element.scrollWidth <= element.clientWidth")
    directions.locator("[data-step='6']").tap()
    assert expect_directions(directions)["step"] == 6
    for slider in directions.get_by_role("slider").all():
        assert slider.bounding_box()["height"] >= 24
    context.close()
