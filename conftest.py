"""Shared by the unit tests and by nbval, which judges the notebooks."""

from __future__ import annotations

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from tools.notebooks import MEASURED_TAG

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # stored outputs were computed on a CPU


@pytest.fixture(autouse=True, scope="session")
def compare_figures_too():
    """Let nbval compare PNG figures, which it leaves out: by eye-sized differences, not bytes."""
    plugin = pytest.importorskip("nbval.plugin")
    compare_text = plugin.IPyNbCell.compare_outputs

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

    plugin.IPyNbCell.compare_outputs = compare_outputs
    yield
    plugin.IPyNbCell.compare_outputs = compare_text


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
