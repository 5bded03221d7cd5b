"""One look for every figure in the book: the same colour always means the same quantity."""

from __future__ import annotations

import jax
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from unrolled.lab.backend import what_was_found

COLORS = {
    "input": "#007958",  # green
    "hidden": "#0072B2",  # blue: hidden states and outputs
    "reset": "#C44E00",  # vermilion
    "update": "#B37A00",  # ochre
    "candidate": "#B0578D",  # purple
    "memory": "#6B3E26",  # brown: the memory c of an LSTM
    "gradient": "#5B3A99",  # violet: everything that flows backwards
    "loss": "#333333",
    "simple": "#6E6E6E",  # the simple (Elman) cell, wherever cells are compared
    "gru": "#0072B2",
    "baseline": "#A0A0A0",
}
"""Colours that people with colour-vision deficiencies can tell apart, by what they stand for."""

SEQUENCE = ("#0072B2", "#C44E00", "#007958", "#B0578D", "#B37A00", "#5B3A99")
"""The colours of lines that have no quantity of their own, in order."""


def use_style() -> None:
    """Set the book's figure style: readable at phone width, light background, no clutter.

    Each chapter calls it at its top. Where the chapter does not run on a CPU, as the book did, this
    is also where it says so, and what that changes.

    Example:
      >>> import matplotlib
      >>> use_style()
      >>> matplotlib.rcParams["axes.spines.top"]
      False
    """
    mpl.rcParams.update(
        {
            "axes.grid": True,
            "axes.labelsize": 14,
            "axes.prop_cycle": mpl.cycler(color=SEQUENCE),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 14,
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "figure.figsize": (7.0, 3.6),
            "font.size": 14,
            "grid.alpha": 0.25,
            "image.cmap": "viridis",
            "legend.fontsize": 13,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "savefig.dpi": 110,
            "svg.hashsalt": "unrolled",
            "xtick.labelsize": 13,
            "ytick.labelsize": 13,
        }
    )
    if jax.default_backend() != "cpu":
        print(what_was_found(jax.devices()))


def blank_axes(ax: Axes, width: float, height: float) -> Axes:
    """Turn `ax` into a drawing board of `width` by `height` units without frame or ticks."""
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return ax


def box(
    ax: Axes,
    center: tuple[float, float],
    text: str,
    *,
    color: str = "#333333",
    size: tuple[float, float] = (1.0, 0.7),
    fontsize: float = 13,
) -> FancyBboxPatch:
    """Draw a rounded box with `text` in it: an array (state, input) or an operation.

    Args:
      ax: axes prepared by `blank_axes`.
      center: where the middle of the box goes.
      text: what stands in it; `$...$` is typeset.
      color: of the frame and the text; take it from `COLORS`.
      size: width and height.
      fontsize: of the text.
    """
    x, y = center
    width, height = size
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0.02,rounding_size=0.15",
        facecolor=color + "14",
        edgecolor=color,
        linewidth=1.8,
    )
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", color=color, fontsize=fontsize)
    return patch


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str = "#333333",
    text: str = "",
    bend: float = 0.0,
) -> None:
    """Draw an arrow from `start` to `end`, bent by `bend`, with an optional label at its middle."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            color=color,
            linewidth=1.6,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
        )
    )
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        ax.text(x, y + 0.12, text, ha="center", va="bottom", color=color, fontsize=13)


def draw_gru_step(ax: Axes) -> None:
    """Draw the data flow in one step of a GRU: from the old state and the input to the new state.

    Args:
      ax: empty axes about 1.6 times as wide as high.
    """
    blank_axes(ax, 11.2, 6.8)
    hidden, given, candidate = COLORS["hidden"], COLORS["input"], COLORS["candidate"]
    reset, update = COLORS["reset"], COLORS["update"]
    top, middle, bottom = 6.2, 3.0, 0.6
    upper, lower = middle + 0.68, middle - 0.68  # edges of the boxes in the middle

    box(ax, (0.7, top), "$h_{t-1}$", color=hidden, size=(1.2, 0.8))
    box(ax, (0.7, bottom), "$x_t$", color=given, size=(1.2, 0.8))
    box(ax, (2.3, middle), "reset\n$r_t$  $\\sigma$", color=reset, size=(1.4, 1.3))
    box(ax, (3.7, 4.6), r"$\odot$", size=(0.6, 0.6), fontsize=15)
    box(ax, (4.6, middle), "candidate\n$\\tilde h_t$  tanh", color=candidate, size=(1.9, 1.3))
    box(ax, (6.9, middle), "update\n$z_t$  $\\sigma$", color=update, size=(1.4, 1.3))
    box(ax, (9.2, middle), "blend\n$(1-z)h+z\\tilde h$", color=hidden, size=(2.2, 1.3))
    box(ax, (9.2, bottom), "$h_t$", color=hidden, size=(1.2, 0.8))

    ax.plot([1.35, 9.2], [top, top], color=hidden, linewidth=1.6)
    for x, end in {2.3: upper, 3.7: 4.92, 6.9: upper, 9.2: upper}.items():
        arrow(ax, (x, top), (x, end), color=hidden)
    ax.plot([1.35, 6.9], [bottom, bottom], color=given, linewidth=1.6)
    for x in (2.3, 4.6, 6.9):
        arrow(ax, (x, bottom), (x, lower), color=given)
    arrow(ax, (2.7, upper), (3.38, 4.5), color=reset)
    arrow(ax, (3.9, 4.28), (4.3, upper), color=hidden)
    ax.plot([6.6, 7.2], [4.6, 4.6], color="white", linewidth=7)  # a bridge over the arrow to z
    ax.plot([5.2, 5.2, 8.5], [upper, 4.6, 4.6], color=candidate, linewidth=1.6)
    arrow(ax, (8.5, 4.6), (8.5, upper), color=candidate)
    arrow(ax, (7.62, middle), (8.06, middle), color=update)
    arrow(ax, (9.2, lower), (9.2, bottom + 0.42), color=hidden)


def draw_lstm_step(ax: Axes) -> None:
    """Draw the data flow in one step of an LSTM, with the memory as a conveyor belt.

    Args:
      ax: empty axes about 1.7 times as wide as high.
    """
    blank_axes(ax, 11.2, 6.6)
    hidden, given, memory = COLORS["hidden"], COLORS["input"], COLORS["memory"]
    forget, write, candidate = COLORS["reset"], COLORS["update"], COLORS["candidate"]
    belt, middle, upper, lower = 5.9, 2.95, 3.6, 2.3  # heights: belt, gates, their edges

    ax.plot([1.4, 9.8], [belt, belt], color=memory, linewidth=16, alpha=0.15, zorder=0)
    arrow(ax, (1.35, belt), (9.85, belt), color=memory)
    box(ax, (0.7, belt), "$c_{t-1}$", color=memory, size=(1.2, 0.8))
    box(ax, (10.5, belt), "$c_t$", color=memory, size=(1.2, 0.8))
    for x, sign, color in ((2.5, r"$\odot$", forget), (5.2, "$+$", write)):
        box(ax, (x, belt), "", color="#FFFFFF", size=(0.6, 0.6))
        ax.patches[-1].set(facecolor="white")
        box(ax, (x, belt), sign, color=color, size=(0.6, 0.6), fontsize=15)
    box(ax, (5.2, 4.5), r"$\odot$", color=write, size=(0.6, 0.6), fontsize=15)

    box(ax, (2.5, middle), "forget\n$f_t$  $\\sigma$", color=forget, size=(1.4, 1.3))
    box(ax, (4.2, middle), "input\n$i_t$  $\\sigma$", color=write, size=(1.4, 1.3))
    box(ax, (6.2, middle), "candidate\n$g_t$  tanh", color=candidate, size=(1.9, 1.3))
    box(ax, (8.1, middle), "output\n$o_t$  $\\sigma$", color=hidden, size=(1.4, 1.3))
    arrow(ax, (2.5, upper), (2.5, belt - 0.34), color=forget)
    arrow(ax, (4.4, upper + 0.05), (4.88, 4.38), color=write)
    arrow(ax, (6.0, upper + 0.05), (5.54, 4.38), color=candidate)
    arrow(ax, (5.2, 4.84), (5.2, belt - 0.34), color=write)

    box(ax, (9.9, 4.5), "tanh", color=memory, size=(1.0, 0.6))
    box(ax, (9.9, middle), r"$\odot$", color=hidden, size=(0.6, 0.6), fontsize=15)
    box(ax, (9.9, 0.95), "$h_t$", color=hidden, size=(1.2, 0.8))
    arrow(ax, (10.5, belt - 0.44), (10.15, 4.84), color=memory)
    arrow(ax, (9.9, 4.16), (9.9, middle + 0.34), color=memory)
    arrow(ax, (8.84, middle), (9.56, middle), color=hidden)
    arrow(ax, (9.9, middle - 0.34), (9.9, 1.4), color=hidden)

    box(ax, (0.7, 1.45), "$h_{t-1}$", color=hidden, size=(1.2, 0.8))
    box(ax, (0.7, 0.45), "$x_t$", color=given, size=(1.2, 0.8))
    ax.plot([1.35, 7.85], [1.45, 1.45], color=hidden, linewidth=1.6)
    ax.plot([1.35, 8.35], [0.45, 0.45], color=given, linewidth=1.6)
    for x in (2.5, 4.2, 6.2, 8.1):
        arrow(ax, (x - 0.25, 1.45), (x - 0.25, lower - 0.03), color=hidden)
        arrow(ax, (x + 0.25, 0.45), (x + 0.25, lower - 0.03), color=given)
