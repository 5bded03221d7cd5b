"""The figures' style, and what a chapter says at its top away from a CPU."""

from types import SimpleNamespace

import jax
import matplotlib
import pytest

from unrolled.lab.figures import use_style


@pytest.fixture(autouse=True)
def unchanged_style():
    with matplotlib.rc_context():
        yield


def test_on_a_cpu_nothing_is_said(capsys):
    use_style()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "platform, kind, rounding", [("gpu", "Tesla T4", "TF32"), ("tpu", "TPU v5 lite", "bfloat16")]
)
def test_elsewhere_a_line_says_what_was_found_and_what_it_changes(
    platform, kind, rounding, monkeypatch, capsys
):
    devices = [SimpleNamespace(platform=platform, device_kind=kind)]
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    use_style()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"1 x {kind}" in said and rounding in said and "default_matmul_precision" in said
