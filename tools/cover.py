"""Draw the book's cover, the picture that a link to it shows: book/static/cover.png.

A GRU with one unit reads nine inputs, of which the second is 1 and the others are 0. Above each
step stands its state, computed by the package: what the unit saw once, it still knows at the end.

    .venv/bin/python tools/cover.py
"""

from __future__ import annotations

import io
from pathlib import Path

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from unrolled import gru_sequence
from unrolled.lab.figures import COLORS, arrow, blank_axes, box, use_style

OUTPUT = Path(__file__).resolve().parents[1] / "book/static/cover.png"
STEPS, PULSE = 9, 1
PARAMS = {"Wz": 5.0, "Uz": 0.0, "bz": -2.4, "Wr": 0.0, "Ur": 0.0, "br": 0.0, "Wh": 2.2, "Uh": 0.6}


def states() -> list[float]:
    """Return the state of the unit after each step."""
    params = {name: jnp.full((1, 1) if name[0] in "WU" else 1, x) for name, x in PARAMS.items()}
    params["bh"] = jnp.zeros(1)
    inputs = jnp.zeros((STEPS, 1)).at[PULSE].set(1.0)
    return [float(h) for h in gru_sequence(params, jnp.zeros(1), inputs)[1][:, 0]]


def draw() -> bytes:
    """Return the cover as a PNG of 1200 by 630 pixels."""
    use_style()
    figure = plt.figure(figsize=(12, 6.3), dpi=100, layout="none")
    ax = blank_axes(figure.add_axes((0, 0, 1, 1)), 12, 6.3)
    ax.text(0.75, 5.3, "Unrolled", fontsize=58, fontweight="bold", va="center", color="#17456b")
    ax.text(
        0.78,
        4.52,
        "Recurrent networks in JAX, from four equations to a complete library",
        fontsize=20.5,
        va="center",
        color="#333333",
    )
    for step, state in enumerate(states()):
        x = 1.25 + 1.18 * step
        box(ax, (x, 1.75), "GRU", size=(0.78, 0.56), fontsize=15)
        if step:
            arrow(ax, (x - 0.76, 1.75), (x - 0.42, 1.75), color=COLORS["hidden"])
        ax.add_patch(plt.Rectangle((x - 0.2, 2.25), 0.4, 1.6 * state, color=COLORS["hidden"], lw=0))
        ax.plot([x - 0.3, x + 0.3], [2.25, 2.25], color="#9aa5b1", lw=1.4)
        seen = step == PULSE
        ax.add_patch(
            plt.Circle(
                (x, 0.75),
                0.19,
                facecolor=COLORS["input"] if seen else "white",
                edgecolor=COLORS["input"],
                linewidth=2.2,
            )
        )
        arrow(ax, (x, 1.0), (x, 1.42), color=COLORS["input"])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def main() -> None:
    picture = Image.open(io.BytesIO(draw())).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(OUTPUT, optimize=True)
    print(f"{OUTPUT.name}: {picture.size}, {OUTPUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
