"""What is told: a table, a figure, and results.json with everything that both are made of.

`python -m benchmarks.report` prints the tables that chapter 11 and README.md show, to paste.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.contenders import CELLS, TASKS
from benchmarks.measure import geometric_mean
from unrolled.lab.figures import COLORS, use_style

FASTER_TORCH = "torch, the faster"
LOOKS = {
    "SimpleCell": (COLORS["simple"], "o"),
    "GRUCell": (COLORS["gru"], "s"),
    "LSTMCell": (COLORS["update"], "^"),
    "OptimizedLSTMCell": (COLORS["reset"], "D"),
}
PACKAGES = ("unrolled", "jax", "jaxlib", "flax", "numpy", "torch")
Row = dict[str, Any]


def describe_machine() -> Row:
    """Say what the numbers were measured on, and nothing that names the machine or its owner."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "device": jax.devices()[0].device_kind,
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": date.today().isoformat(),
        "versions": versions,
    }


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def faster_torch(rows: Iterable[Row]) -> list[Row]:
    """Of torch's thread settings keep, problem by problem, the one that is faster."""
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["cell"], row["shape"], row["task"])
        if row["against"].startswith("torch") and (
            key not in best or row["ratio"]["median"] < best[key]["ratio"]["median"]
        ):
            best[key] = row
    return [row | {"against": FASTER_TORCH} for row in best.values()]


def summarize(rows: list[Row]) -> list[Row]:
    """Return geometric mean and minimum over the shapes, for each cell, rival and task.

    The cell "all" stands for all cells together.
    """
    rows = rows + faster_torch(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for cell in (row["cell"], "all"):
            groups.setdefault((cell, row["against"], row["task"]), []).append(row)
    summary = []
    for (cell, against, task), members in groups.items():
        worst = min(members, key=lambda row: row["ratio"]["median"])
        summary.append(
            {
                "cell": cell,
                "against": against,
                "task": task,
                "geometric_mean": geometric_mean(row["ratio"]["median"] for row in members),
                "limit": geometric_mean(row["limit"]["median"] for row in members),
                "minimum": worst["ratio"]["median"],
                "minimum_at": f"{worst['cell']} {worst['shape']}",
            }
        )
    return summary


def table(results: Row) -> str:
    """Set the results as text, about 110 columns wide."""
    rows, machine = results["comparisons"], results["machine"]
    rivals = list(dict.fromkeys(row["against"] for row in rows))
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}, {machine['os']}, "
        f"{machine['date']}",
        ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        f"A large float32 matrix product reaches {results['gemm_gflops']:.0f} GFLOP/s here.",
        "",
        "Ratios are their time over ours: above 1, ours is faster. Median (quartiles) of rounds in "
        "turn.",
        f"Limit: {rivals[0]}'s time over that of the matrix products alone." if rivals else "",
    ]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        shown = [rival for rival in rivals if any(row["against"] == rival for row in own)]
        head = f"{cell:26}{'task':10}{'ours':>10}{'of peak':>9}{'limit':>7}  "
        lines += ["", head + "".join(f"{rival:22}" for rival in shown).rstrip()]
        for shape in dict.fromkeys(row["shape"] for row in own):
            for task in TASKS:
                line = [row for row in own if (row["shape"], row["task"]) == (shape, task)]
                first = line[0]
                lines.append(
                    f"{shape:26}{task:10}{first['ours_seconds']['median'] * 1e3:>7.2f} ms"
                    f"{first['percent_of_peak']:>7.1f} %{_short(first['limit']['median']):>7}  "
                    + "".join(f"{_ratio(row['ratio']):22}" for row in line).rstrip()
                )
        lines += _summary_lines(results["summary"], cell, shown)
    lines += ["", "All cells together", *_summary_lines(results["summary"], "all", rivals)]
    if any(row["against"] == FASTER_TORCH for row in results["summary"]):
        lines += ["", f"All cells, {FASTER_TORCH} of its thread settings"]
        lines += _summary_lines(results["summary"], "all", [FASTER_TORCH])
    for title, name, unit in (
        ("Compiling the training step, cold", "compile", "s"),
        ("Calling the layer outside jit", "eager", "s"),
        ("Memory of the gradient", "memory", "MB"),
    ):
        if results[name]:
            lines += ["", f"{title}, {results[name][0]['shape']}: ours, flax.nnx, ratio"]
        for row in results[name]:
            ours, theirs = (row[side] for side in ("ours", "theirs"))
            ratio = _ratio(row["ratio"]) if isinstance(row["ratio"], dict) else _short(row["ratio"])
            lines.append(f"{row['cell']:26}{ours:10.3g} {unit} {theirs:10.3g} {unit}   {ratio}")
    return "\n".join(lines)


def _ratio(ratio: dict[str, float]) -> str:
    return f"{_short(ratio['median']):>5} ({_short(ratio['q1'])} to {_short(ratio['q3'])})"


def _short(number: float) -> str:
    """Three digits: 0.98, 1.23, 12.3, 123."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _summary_lines(summary: list[Row], cell: str, rivals: list[str]) -> list[str]:
    """The lines at the foot of a table; `rivals` are its columns."""
    found = {(row["against"], row["task"]): row for row in summary if row["cell"] == cell}
    lines = []
    labels = {
        "geometric_mean": "geometric mean",
        "minimum": "minimum",
        "limit": "mean of the limits",
    }
    for key, label in labels.items():
        for task in TASKS:
            numbers = "".join(f"{_short(found[rival, task][key]):>5}{'':17}" for rival in rivals)
            lines.append(f"{label:26}{task:38}{numbers}".rstrip())
    return lines


def quoted_tables(results: Row) -> dict[str, str]:
    """Set in Markdown what chapter 11 (flax, torch, once) and README.md (the others) show."""
    rows = results["comparisons"] + faster_torch(results["comparisons"])
    ratios = {(r["cell"], r["shape"], r["task"], r["against"]): r["ratio"]["median"] for r in rows}
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for row in results["summary"]:
        key = row["cell"], "geometric mean", row["task"], row["against"]
        ratios[key] = row["geometric_mean"]
    tables = {}
    for name, rival in (("flax", "flax.nnx"), ("torch", FASTER_TORCH)):
        cells = [cell for cell in CELLS if (cell, shapes[0], TASKS[0], rival) in ratios]
        head = "B × T × D × H".replace(" ", "\u00a0")
        lines = [[head, *map("`{}`".format, cells)], ["---"] * (1 + len(cells))]
        for shape in [*shapes, "geometric mean"]:
            pairs = [[_short(ratios[cell, shape, task, rival]) for task in TASKS] for cell in cells]
            label = shape.replace("x", "\u00a0×\u00a0").replace("-ragged", ", ragged")
            lines.append([label, *map("\u00a0·\u00a0".join, pairs)])  # never broken in two
        tables[name] = _markdown(lines)
    head = ["cell", "gradient", "Flax's gradient", "Flax / ours"]
    head += ["compiling, ours / Flax", "outside `jit`, Flax / ours"]
    once = [head, ["---"] * len(head)]
    for memory, compiling, eager in zip(*(results[key] for key in ("memory", "compile", "eager"))):
        megabytes = [f"{memory[side]:.0f} MB" for side in ("ours", "theirs")]
        numbers = memory["ratio"], 1 / compiling["ratio"]["median"], eager["ratio"]["median"]
        once.append([f"`{memory['cell']}`", *megabytes, *map(_short, numbers)])
    tables["once"] = _markdown(once)
    lines = [["against", "task", "geometric mean", "its limit", "worst", "there"], ["---"] * 6]
    for row in results["summary"]:
        if row["cell"] == "all" and row["against"] in ("flax.nnx", FASTER_TORCH):
            numbers = [_short(row[key]) for key in ("geometric_mean", "limit", "minimum")]
            lines.append([row["against"], row["task"], *numbers, row["minimum_at"]])
    tables["summary"] = _markdown(lines)
    lines = [["slower than `flax.nnx`", "task", "ratio (quartiles)", "limit"], ["---"] * 4]
    for row in sorted(results["comparisons"], key=lambda row: row["ratio"]["median"]):
        if row["against"] == "flax.nnx" and row["ratio"]["median"] < 1:
            numbers = _ratio(row["ratio"]).strip(), _short(row["limit"]["median"])
            lines.append([f"{row['cell']} {row['shape']}", row["task"], *numbers])
    tables["below"] = _markdown(lines)
    return tables


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(" --- ", "---")


def draw(results: Row, path: Path) -> None:
    """Draw every ratio with its quartiles, on a logarithmic scale, as an SVG."""
    with matplotlib.rc_context():
        use_style()
        _figure(results).savefig(path, metadata={"Date": None})


def _figure(results: Row) -> Figure:
    rows = results["comparisons"] + faster_torch(results["comparisons"])
    rivals = [
        rival
        for rival in ("flax.nnx", FASTER_TORCH)
        if any(row["against"] == rival for row in rows)
    ]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    cells = [cell for cell in CELLS if any(row["cell"] == cell for row in rows)]
    size = (2.6 + 3.9 * len(rivals), 3.0 + 2 * 0.55 * len(shapes))
    figure = Figure(figsize=size)
    axes = figure.subplots(len(TASKS), len(rivals), sharex="col", sharey=True, squeeze=False)
    for line, task in zip(axes, TASKS):
        for ax, rival in zip(line, rivals):
            ax.axvline(1, color=COLORS["loss"], linewidth=1.2)
            for place, cell in enumerate(cells):
                color, marker = LOOKS[cell]
                shift = (place - (len(cells) - 1) / 2) * 0.17
                own = [
                    r for r in rows if (r["cell"], r["task"], r["against"]) == (cell, task, rival)
                ]
                heights = [shapes.index(row["shape"]) + shift for row in own]
                lower, upper = ([row["ratio"][q] for row in own] for q in ("q1", "q3"))
                ax.hlines(heights, lower, upper, color=color, alpha=0.6)
                medians = [row["ratio"]["median"] for row in own]
                ax.plot(medians, heights, marker, color=color, markersize=6, label=cell)
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
            name = "torch, the faster setting" if rival == FASTER_TORCH else rival
            ax.set_title(f"{task}, against {name}", fontsize=12)
    labels = [shape.replace("x", " × ").replace("-ragged", "\nragged") for shape in shapes]
    axes[0, 0].set_yticks(range(len(shapes)), labels)
    axes[0, 0].set_ylim(len(shapes) - 0.5, -0.5)
    figure.supylabel("batch × time × inputs × hidden", fontsize=12)
    for ax in axes[-1]:
        ax.set_xlabel("their time / our time")
    machine = results["machine"]
    figure.suptitle(
        "How many times as fast is unrolled? Right of the line it is the faster one.\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}, {machine['date']}",
        fontsize=12,
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(cells))
    return figure


def write(results: Row, folder: Path) -> list[Path]:
    """Write results.json and results.svg, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.json", folder / "results.svg"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(results, paths[1])
    return paths


if __name__ == "__main__":
    kept = Path(__file__).with_name("results.json").read_text(encoding="utf-8")
    print(*quoted_tables(json.loads(kept)).values(), sep="\n\n")
