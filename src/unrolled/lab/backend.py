"""What a chapter says of the machine that it runs on, where that is not a CPU as for the book."""

from __future__ import annotations

from collections.abc import Sequence

import jax

ROUNDING = {
    "gpu": "newer GPUs multiply matrices in TF32, which keeps 10 bits of each number",
    "tpu": "TPUs multiply matrices in bfloat16, which keeps 7 bits of each number",
}


def what_was_found(devices: Sequence[jax.Device]) -> str:
    """Return a sentence on what the chapter runs on, and what differs from the printed book.

    Args:
      devices: what `jax.devices()` returns: at least one, all of one kind.

    Returns:
      One line: how many devices of which kind, and why times and last digits differ.

    Example:
      >>> what_was_found(jax.devices("cpu")).startswith("This runs on")
      True
    """
    rounding = ROUNDING.get(devices[0].platform, "matrices may be multiplied with fewer bits")
    return (
        f"This runs on {len(devices)} x {devices[0].device_kind}; the book was made on a CPU. "
        f"Here times differ, and so do last digits: {rounding}, unless asked for all of them. The "
        "chapters ask, in their second cell; in code of your own, write `with "
        'jax.default_matmul_precision("highest"):`.'
    )
