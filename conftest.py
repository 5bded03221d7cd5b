"""Shared by the unit tests and by nbval, which judges the notebooks."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import jaxlib.version as jaxlib
import numpy as np
import pytest
from PIL import Image

from tools.notebooks import MEASURED_TAG

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # stored outputs were computed on a CPU


def quick_compilation(level: int) -> str:
    """Return flags with which XLA compiles in half the time.

    At level 0 a program then runs much slower, at level 1 nearly as fast as a fully optimised one.
    """
    emitters = (
        "--xla_cpu_use_fusion_emitters=false " if jaxlib.__version_info__ < (0, 11, 1) else ""
    )
    return (
        f"--xla_backend_optimization_level={level} --xla_llvm_disable_expensive_passes=true "
        f"{emitters}--xla_cpu_parallel_codegen_split_count=1"
    )


# Tests and most chapters compile many small programs and run each once: level 0. What was stored by
# `make notebooks`, with every optimisation, must come out all the same.
os.environ.setdefault("XLA_FLAGS", quick_compilation(0))
LEVELS = {
    # These train.
    **dict.fromkeys(("05_training", "09_lengths", "10_bidirectional"), 1),
    **dict.fromkeys(("12_parallel", "14_language"), 1),
    "11_speed": None,  # reads compiled programs
}


def flags_of(notebook: Path) -> str:
    """Return XLA's flags for the kernel of a chapter, or of its solutions."""
    level = LEVELS.get(notebook.stem, 0)
    return "" if level is None else quick_compilation(level)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Choose how the kernel compiles that is about to be started for a notebook."""
    if item.path.suffix == ".ipynb":
        os.environ["XLA_FLAGS"] = flags_of(item.path)


def pytest_configure(config):
    """Let nbval compare PNG figures, which it leaves out: by eye-sized differences, not bytes.

    A hook, not a fixture: pytest sets up no fixture for the cells of a notebook.
    """
    if not config.pluginmanager.hasplugin("nbval"):
        return
    from nbval.plugin import IPyNbCell

    compare_text = IPyNbCell.compare_outputs

    def compare_outputs(self, test, ref, skip_compare=None):
        same = compare_text(self, test, ref, skip_compare)
        if MEASURED_TAG in self.cell.metadata.get("tags", []):
            return same
        fresh, stored = _figures(test), _figures(ref)
        if len(fresh) != len(stored) or not all(map(_look_alike, fresh, stored)):
            self.comparison_traceback.append(
                "a figure differs from the stored one: look at it and run `make notebooks`"
            )
            return False
        return same

    IPyNbCell.compare_outputs = compare_outputs
    config.add_cleanup(lambda: setattr(IPyNbCell, "compare_outputs", compare_text))


def _figures(outputs) -> list[np.ndarray]:
    encoded = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(figure))).convert("RGB"), dtype=int)
        for figure in encoded
    ]


def _look_alike(fresh: np.ndarray, stored: np.ndarray) -> bool:
    if fresh.shape != stored.shape:
        return False
    differing = np.abs(fresh - stored).max(axis=-1) > 48
    return differing.mean() < 5e-4
