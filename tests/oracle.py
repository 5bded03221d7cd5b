"""A second opinion that shares no code with the package: recurrences as plain loops in float64."""

from __future__ import annotations

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def weights(module) -> dict[str, np.ndarray]:
    """All parameters of a cell by dotted path, in float64."""
    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): np.asarray(p[...], np.float64) for path, p in flat}


def simple_step(w, carry, x):
    h = np.tanh(x @ w["dense_i.kernel"] + w["dense_i.bias"] + carry @ w["dense_h.kernel"])
    return h, h


def gru_step(w, carry, x):
    size = len(carry)
    from_x = x @ w["dense_i.kernel"] + w["dense_i.bias"]
    kernel_r, kernel_z, kernel_n = np.split(w["dense_h.kernel"], 3, axis=1)
    r = sigmoid(from_x[:size] + carry @ kernel_r)
    z = sigmoid(from_x[size : 2 * size] + carry @ kernel_z)
    if "b_hn" in w:
        n = np.tanh(from_x[2 * size :] + r * (carry @ kernel_n + w["b_hn"]))
    else:
        n = np.tanh(from_x[2 * size :] + (r * carry) @ kernel_n)
    h = (1 - z) * n + z * carry
    return h, h


def lstm_step(w, carry, x):
    c, h = carry
    if "dense_i.kernel" in w:
        i, f, g, o = np.split(
            x @ w["dense_i.kernel"] + h @ w["dense_h.kernel"] + w["dense_h.bias"], 4
        )
    else:
        i, f, g, o = (
            x @ w[f"{name}.kernel"] + h @ w[f"h{gate}.kernel"] + w[f"h{gate}.bias"]
            for gate, name in {"i": "ii", "f": "if_", "g": "ig", "o": "io"}.items()
        )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


STEPS = {
    "SimpleCell": simple_step,
    "GRUCell": gru_step,
    "LSTMCell": lstm_step,
    "OptimizedLSTMCell": lstm_step,
}


def run(
    cell, inputs, *, carry=None, lengths=None, time_major=False, reverse=False, keep_order=False
):
    """Run a cell row by row and step by step: `(final carry as a tuple of arrays, outputs)`.

    `inputs` is (*batch, time, features), or time first; `carry` a tuple of (*batch, hidden).
    """
    names = (kind.__name__ for kind in type(cell).__mro__)
    step, w = STEPS[next(name for name in names if name in STEPS)], weights(cell)
    parts = 2 if step is lstm_step else 1
    x = np.asarray(inputs, np.float64)
    if time_major:
        x = np.moveaxis(x, 0, -2)
    batch, num_steps = x.shape[:-2], x.shape[-2]
    lengths = np.full(batch, num_steps) if lengths is None else np.asarray(lengths)
    outputs = np.zeros((*batch, num_steps, cell.hidden_features))
    final = [np.zeros((*batch, cell.hidden_features)) for _ in range(parts)]
    for row in np.ndindex(*batch):
        state = tuple(
            np.zeros(cell.hidden_features) if carry is None else np.asarray(part, np.float64)[row]
            for part in (carry or [None] * parts)
        )
        steps = list(range(lengths[row]))
        order = steps[::-1] if reverse else steps
        for place, t in enumerate(order):
            now, y = step(w, state if parts == 2 else state[0], x[row][t])
            state = now if parts == 2 else (now,)
            outputs[row][t if (keep_order or not reverse) else place] = y
        for part, value in zip(final, state):
            part[row] = value
    if time_major:
        outputs = np.moveaxis(outputs, -2, 0)
    return tuple(final), outputs
