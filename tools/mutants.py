"""Break the package on purpose, one small bug at a time: the notebooks alone must notice each.

Every mutant is a copy of `src` with one piece of text replaced. nbval runs the chapters against
the copy, the likeliest first, until one turns red. The working tree is never touched. Exit status 1
means that a mutant survived, or that the notebooks are red without any bug.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.judge import ROOT, changed_source, first_red_cell, notebooks, without_a_bug


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file`, `old` (which stands there exactly once) becomes `new`."""

    file: str
    name: str
    old: str
    new: str


def gru(name: str, old: str, new: str) -> Mutant:
    return Mutant("gru.py", name, old, new)


UPDATE = 'jnp.dot(params["Wz"], x_t) + jnp.dot(params["Uz"], h_prev) + params["bz"]'
RESET = 'jnp.dot(params["Wr"], x_t) + jnp.dot(params["Ur"], h_prev) + params["br"]'
CANDIDATE = 'jnp.dot(params["Wh"], x_t) + jnp.dot(params["Uh"], reset * h_prev) + params["bh"]'
BLEND = "h_t = (1 - update) * h_prev + update * candidate"

MUTANTS = [
    gru("update gate turned round", BLEND, "h_t = update * h_prev + (1 - update) * candidate"),
    gru("candidate replaces the state", BLEND, "h_t = candidate"),
    gru("old state not scaled", BLEND, "h_t = h_prev + update * candidate"),
    gru("candidate not scaled", BLEND, "h_t = (1 - update) * h_prev + candidate"),
    gru("reset gate used as update gate", BLEND, BLEND.replace("update", "reset")),
    gru("update gate reads the reset weights", UPDATE, UPDATE.replace("Uz", "Ur")),
    gru("update gate loses its bias", UPDATE, UPDATE.removesuffix(' + params["bz"]')),
    gru("update gate subtracts its bias", UPDATE, UPDATE.replace(' + params["bz"]', ' - params["bz"]')),
    gru("update gate does not see the state", UPDATE, UPDATE.replace(' + jnp.dot(params["Uz"], h_prev)', "")),
    gru("update gate's recurrent matrix transposed", UPDATE, UPDATE.replace('params["Uz"]', 'params["Uz"].T')),
    gru("reset gate reads the update weights", RESET, RESET.replace("Wr", "Wz")),
    gru("reset gate loses its bias", RESET, RESET.removesuffix(' + params["br"]')),
    gru("reset gate takes the wrong bias", RESET, RESET.replace('"br"', '"bz"')),
    gru("reset gate's recurrent matrix transposed", RESET, RESET.replace('params["Ur"]', 'params["Ur"].T')),
    gru("candidate loses its bias", CANDIDATE, CANDIDATE.removesuffix(' + params["bh"]')),
    gru("candidate ignores the reset gate", CANDIDATE, CANDIDATE.replace("reset * h_prev", "h_prev")),
    gru("reset after the product", CANDIDATE, CANDIDATE.replace('jnp.dot(params["Uh"], reset * h_prev)', 'reset * jnp.dot(params["Uh"], h_prev)')),
    gru("update gate used as reset gate", CANDIDATE, CANDIDATE.replace("reset * h_prev", "update * h_prev")),
    gru("reset gate turned round", CANDIDATE, CANDIDATE.replace("reset * h_prev", "(1 - reset) * h_prev")),
    gru("candidate's recurrent matrix transposed", CANDIDATE, CANDIDATE.replace('params["Uh"]', 'params["Uh"].T')),
    gru("candidate squashed by the sigmoid", "candidate = jnp.tanh(", "candidate = jax.nn.sigmoid("),
    gru("update gate squashed by tanh", "update = jax.nn.sigmoid(", "update = jnp.tanh("),
    gru("reset gate squashed by a hard sigmoid", "reset = jax.nn.sigmoid(", "reset = jax.nn.hard_sigmoid("),
    gru("output is the old state", "return h_t, h_t", "return h_t, h_prev"),
    gru("carry is never updated", "return h_t, h_t", "return h_prev, h_t"),
    gru("output is the candidate", "return h_t, h_t", "return h_t, candidate"),
    gru("gradient stopped between steps", "return gru_step(params, h_prev, x_t)", "return gru_step(params, jax.lax.stop_gradient(h_prev), x_t)"),
    gru("time runs backwards", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs, reverse=True)"),
    gru("initial state ignored", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, jnp.zeros_like(initial_h), inputs)"),
    gru("first step left out", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs[1:])"),
    gru("last step left out", "jax.lax.scan(step, initial_h, inputs)", "jax.lax.scan(step, initial_h, inputs[:-1])"),
    gru("weights ten times too large", "scale: float = 0.01", "scale: float = 0.1"),
    gru("weights uniform instead of normal", "scale * jax.random.normal(next(keys), shape)", "scale * jax.random.uniform(next(keys), shape)"),
    gru("all weights from one key", "jax.random.normal(next(keys), shape)", "jax.random.normal(key, shape)"),
    gru("biases start at one", "jnp.zeros(shape, dtype)", "jnp.ones(shape, dtype)"),
    gru("input and hidden size exchanged", '"W": ("hidden_dim", "input_dim")', '"W": ("input_dim", "hidden_dim")'),
    gru("a missing parameter goes unnoticed", "    if missing:\n", "    if False:\n"),
    gru("integer arrays are let through", "if not jnp.issubdtype(value.dtype, jnp.floating):", "if False:"),
    gru("the carry's dtype is not checked", "if step_dtype != jnp.result_type(initial_h):", "if False:"),
    gru("batched input gets no advice", "elif batched is not None and len(shape) > len(expected):", "elif False:"),
    gru("a transposed array gets no advice", "if len(shape) == len(expected) == 2 and all(", "if False and all("),
]  # fmt: skip


CELLS, LAYERS, SCAN = "cells.py", "layers.py", "scan.py"
SEQUENCES, CONVERT = "sequences.py", "convert.py"
B_HN = "candidate_h = candidate_h + jnp.broadcast_to(b_hn, candidate_h.shape)"
AFTER = "candidate_h = self.gate_fn(reset_i + reset_h) * candidate_h"
KEEP = "return ((1 - update) * candidate + update * hidden,)"
LSTM_STATES = "self.hi(hidden), self.hf(hidden), self.hg(hidden), self.ho(hidden)"
MEMORY = "memory = forget_gate * memory + input_gate * candidate"

MUTANTS += [
    Mutant(CELLS, "GRUCell: update gate turned round", KEEP, "return (update * candidate + (1 - update) * hidden,)"),
    Mutant(CELLS, "GRUCell: b_hn left out of a step", B_HN, "pass"),
    Mutant(CELLS, "GRUCell: b_hn left out of the scan", "biases = (None, None, self.b_hn[...])", "biases = (None, None, None)"),
    Mutant(CELLS, "GRUCell: b_hn on the reset gate", "biases = (None, None, self.b_hn[...])", "biases = (self.b_hn[...], None, None)"),
    Mutant(CELLS, "GRUCell: reset gate not applied after", AFTER, "pass"),
    Mutant(CELLS, "GRUCell: reset gate not applied before", "self._recur(reset * hidden, gates=slice(2, 3))", "self._recur(hidden, gates=slice(2, 3))"),
    Mutant(CELLS, "GRUCell: reset and update columns exchanged", "reset_i, update_i, candidate_i = ", "update_i, reset_i, candidate_i = "),
    Mutant(CELLS, "GRUCell: reset_after off by default", "reset_after: bool = True", "reset_after: bool = False"),
    Mutant(CELLS, "LSTM: forget and input gate exchanged", MEMORY, "memory = input_gate * memory + forget_gate * candidate"),
    Mutant(CELLS, "LSTM: nothing is forgotten", MEMORY, "memory = memory + input_gate * candidate"),
    Mutant(CELLS, "LSTM: memory not squashed", "return output_gate * self.activation_fn(memory)", "return output_gate * memory"),
    Mutant(CELLS, "LSTM: output gate left out", "return output_gate * self.activation_fn(memory)", "return self.activation_fn(memory)"),
    Mutant(CELLS, "LSTM: carry in torch's order", "        return memory, self.read((memory,), projected, recurrent)\n", "        return self.read((memory,), projected, recurrent), memory\n"),
    Mutant(CELLS, "LSTM: output is the memory", "        return memory, self.read((memory,), projected, recurrent)\n", "        return memory, memory\n"),
    Mutant(CELLS, "a changed gate is differentiated as the old one", "            read = None  # a gate of one's own", "            pass  # a gate of one's own"),
    Mutant(CELLS, "LSTMCell: output gate reads the candidate's input", "self.ig(inputs), self.io(inputs)", "self.ig(inputs), self.ig(inputs)"),
    Mutant(CELLS, "LSTMCell: forget gate ignores the state", LSTM_STATES, LSTM_STATES.replace("self.hf(hidden)", "0 * self.hf(hidden)")),
    Mutant(CELLS, "LSTMCell: candidate and output exchanged in the scan", "[self.hi, self.hf, self.hg, self.ho]", "[self.hi, self.hf, self.ho, self.hg]"),
    Mutant(CELLS, "OptimizedLSTMCell: state ignored", "recurrent = jnp.split(self.dense_h(carry[1]), 4, -1)", "recurrent = jnp.split(0 * self.dense_h(carry[1]), 4, -1)"),
    Mutant(CELLS, "a subclass's own step is ignored", "        if not plain or _defining_class", "        if not plain or False and _defining_class"),
    Mutant(CELLS, "an exchanged layer is run as a plain one", "        if not plain or", "        if"),
    Mutant(CELLS, "OptimizedLSTMCell: forget bias on the input gate", "forget_gate = slice(hidden_features, 2 * hidden_features)", "forget_gate = slice(0, hidden_features)"),
    Mutant(CELLS, "a learned carry is not used", "return jax.tree.map(repeat, self.initial.get_value())", "return jax.tree.map(jnp.zeros_like, jax.tree.map(repeat, self.initial.get_value()))"),
    Mutant(CELLS, "wrong input size goes unnoticed", "if not shape or shape[-1] != self.in_features:", "if False:"),
    Mutant(LAYERS, "reverse ignored", "                reverse=bool(reverse),\n                keep_order=bool(keep_order),\n                unroll", "                reverse=False,\n                keep_order=bool(keep_order),\n                unroll"),
    Mutant(LAYERS, "keep_order ignored", "    if reverse and keep_order:\n        outputs = ", "    if False:\n        outputs = "),
    Mutant(LAYERS, "initial carry ignored", "        if initial_carry is None:\n            rngs = self.rngs if rngs is None else rngs\n            rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs\n            initial_carry = self.cell", "        if True:\n            rngs = self.rngs if rngs is None else rngs\n            rngs = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs\n            initial_carry = self.cell"),
    Mutant(LAYERS, "the layer's return_carry option ignored", "return (carry, outputs) if return_carry else outputs\n\n    @property\n    def num_feature_axes(self) -> int:\n        \"\"\"How many axes of an input are features; one unless the cell says otherwise.", "return outputs\n\n    @property\n    def num_feature_axes(self) -> int:\n        \"\"\"How many axes of an input are features; one unless the cell says otherwise."),
    Mutant(LAYERS, "carry taken after the padding", "mask_padding(new, valid, old) if batched(new) else new", "new"),
    Mutant(LAYERS, "one valid step too many", "valid = t < seq_lengths", "valid = t <= seq_lengths"),
    Mutant(LAYERS, "padded outputs are left over", "output = jax.tree.map(lambda y: y if _is_key(y) else mask_padding(y, valid), output)", "pass"),
    Mutant(LAYERS, "padding reaches the cell", "inputs = jax.tree.map(lambda x: x if _is_key(x) else mask_padding(x, mask), inputs)", "pass"),
    Mutant(LAYERS, "what a step writes is lost", "            if written:\n", "            if False:\n"),
    Mutant(LAYERS, "no random stream is shared between steps", "if self.broadcast_rngs is None:", "if True:"),
    Mutant(LAYERS, "time-major outputs come batch-major", "outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), outputs)", "outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, num_batch_dims), outputs)"),
    Mutant(LAYERS, "fast scan: reverse ignored", "            reverse=reverse,\n            unroll=unroll,\n        )\n        outputs = jnp.moveaxis", "            unroll=unroll,\n        )\n        outputs = jnp.moveaxis"),
    Mutant(LAYERS, "fast scan: lengths ignored", "None if mask is None else jnp.moveaxis(mask, time_axis, 0)", "None"),
    Mutant(LAYERS, "fast scan: padded outputs are left over", "outputs = outputs if mask is None else mask_padding(outputs, mask)", "pass"),
    Mutant(LAYERS, "fast scan: always in the order of the inputs", "flip(outputs) if reverse and not keep_order else outputs", "outputs"),
    Mutant(SCAN, "bias of the inputs left out", "projected = tuple(map(_add, projected, weights.biases))", "projected = tuple(projected)"),
    Mutant(SCAN, "bias of the state left out", "recurrent = tuple(map(_add, recurrent, weights.recurrent_biases))", "recurrent = tuple(recurrent)"),
    Mutant(SCAN, "steps beyond a length are not held", "return tuple(jnp.where(valid, part, old) for part, old in zip(new, carry))", "return new"),
    Mutant(SCAN, "chunks forget the carry", "        carry, _, states = _forward(\n", "        after, _, states = _forward(\n"),
    Mutant(SCAN, "chunks run in the wrong order", "return jax.lax.scan(function, carry, chunks, reverse=plan.reverse)", "return jax.lax.scan(function, carry, chunks)"),
    Mutant(SCAN, "steps run in the wrong order", "carry, scanned, length=plan.steps, reverse=plan.reverse, unroll=plan.unroll\n", "carry, scanned, length=plan.steps, unroll=plan.unroll\n"),
    Mutant(SCAN, "gradient: chunks begin with their last state", "pairs = [(part[None], states[:-1]) for part, states in zip(carry, after)]", "pairs = [(states[:1], states[1:]) for part, states in zip(carry, after)]"),
    Mutant(SCAN, "gradient: reversed states not shifted", "pairs = [(states[1:], part[None]) for part, states in zip(carry, after)]", "pairs = [(states[:-1], part[None]) for part, states in zip(carry, after)]"),
    Mutant(SCAN, "gradient: nothing for the input kernels", "None if kernel_tangent is None else _multiply(plan, inputs, kernel_tangent)", "None"),
    Mutant(SCAN, "gradient: nothing for the inputs", "None if input_tangents is None else _multiply(plan, input_tangents, kernel)", "None"),
    Mutant(SCAN, "gradient: nothing for the recurrent kernel", "if weight_tangents.recurrent_kernel is not None:", "if False:"),
    Mutant(SCAN, "gradient: nothing for the state's biases", "map(_add, recurrent_tangents, weight_tangents.recurrent_biases)", "iter(recurrent_tangents)"),
    Mutant(SCAN, "gradient: nothing for the inputs' biases", "            bias_tangent,\n        )\n        for", "            None,\n        )\n        for"),
    Mutant(SCAN, "gradient: nothing for the initial carry", "        jnp.zeros_like(part) if tangent is None else tangent\n", "        jnp.zeros_like(part)\n"),
    Mutant(SCAN, "gradient: invalid steps pass nothing on", "used = plan.uses[index] | (set() if inside is None else {index})", "used = plan.uses[index]"),
    Mutant(SCAN, "gradient: h read off the old memory", "return plan.read, (*after[:index], before[index])", "return plan.read, before"),
    Mutant(SCAN, "gradient: kept products lost", "return carry, (states, (projected, recurrent) if plan.keep_products else None)", "return carry, (states, (projected, 0 * recurrent) if plan.keep_products else None)"),
    Mutant(SCAN, "batch last: units in reversed order", 'jnp.einsum(f"...fb,...f{gate}h->...{gate}hb", array, kernel)', 'jnp.einsum(f"...fb,...f{gate}h->...{gate}hb", array, jnp.flip(kernel, -1))'),
    Mutant(SCAN, "over devices: gates in another order", "return tuple(jnp.moveaxis(product, plan.axis - 1, 0))", "return tuple(jnp.moveaxis(product, plan.axis - 1, 0))[::-1]"),
    Mutant(SCAN, "over devices: gradients summed in every chunk", "room, most = SPREAD_SIZE, num_steps", "pass"),
    Mutant(SCAN, "over devices: the batch is fetched whole", "if plan.axis == -1 and plan.spread:", "if plan.axis == -1 and kernel.ndim == 3:"),
    Mutant(SCAN, "a gate that mixes units is taken", "    if uses is None:\n        return None\n    traced", "    if uses is None:\n        return (frozenset(range(len(places))),) * len(carry)\n    traced"),
    Mutant(LAYERS, "Bidirectional: both layers read forwards", "reverse=not reverse, **run", "reverse=bool(reverse), **run"),
    Mutant(LAYERS, "Bidirectional: backward outputs in reversed time", '            "keep_order": True,\n', '            "keep_order": False,\n'),
    Mutant(LAYERS, "Bidirectional: directions merged the wrong way round", "self._merge, forward_outputs, backward_outputs", "self._merge, backward_outputs, forward_outputs"),
    Mutant(LAYERS, "Bidirectional: carries exchanged", "return ((forward_carry, backward_carry), outputs)", "return ((backward_carry, forward_carry), outputs)"),
    Mutant(LAYERS, "StackedRNN: no dropout between layers", "if index and self.dropout is not None:", "if False:"),
    Mutant(LAYERS, "StackedRNN: every layer gets the first carry", "initial_carry=initial_carry[index],", "initial_carry=initial_carry[0],"),
    Mutant(SEQUENCES, "flip off by one", "jnp.where(steps < lengths, lengths - 1 - steps, steps)", "jnp.where(steps < lengths, lengths - steps, steps)"),
    Mutant(SEQUENCES, "flip reverses the padding too", "jnp.where(steps < lengths, lengths - 1 - steps, steps)", "num_steps - 1 - steps + 0 * lengths"),
    Mutant(SEQUENCES, "mask one step too long", "return steps < lengths  #", "return steps <= lengths  #"),
    Mutant(SEQUENCES, "mask turned round", "return jnp.where(mask, inputs, cast)", "return jnp.where(mask, cast, inputs)"),
    Mutant(SEQUENCES, "last step instead of last valid step", "last = jnp.maximum(lengths - 1, 0)", "last = jnp.full_like(lengths, num_steps - 1)"),
    Mutant(SEQUENCES, "padding put in front", "row[: len(array)] = array", "row[len(row) - len(array) :] = array"),
    Mutant(SEQUENCES, "lengths beyond the time axis go unnoticed", "if lengths.size and num_steps is not None and lengths.max() > num_steps:", "if False:"),
    Mutant(CONVERT, "functional GRU: update gate not negated", '[w["Wr"].T, -w["Wz"].T, w["Wh"].T]', '[w["Wr"].T, w["Wz"].T, w["Wh"].T]'),
    Mutant(CONVERT, "torch: b_hn lost", '"b_hn": b_hh[2 * hidden :]}', '"b_hn": 0 * b_hh[2 * hidden :]}'),
    Mutant(CONVERT, "torch: LSTM bias counted once", 'biases = {"dense_h.bias": b_ih + b_hh}', 'biases = {"dense_h.bias": b_ih}'),
    Mutant(CONVERT, "Keras: gates not exchanged", "return np.concatenate([second, first, third], axis=-1)", "return np.concatenate([first, second, third], axis=-1)"),
    Mutant(CONVERT, "LSTM: gates fused in another order", 'for n in ("ii", "if_", "ig", "io")], 1)', 'for n in ("ii", "ig", "if_", "io")], 1)'),
]  # fmt: skip

# Where a bug of a file shows first; the other chapters follow, quickest first.
FIRST_CHAPTERS = {
    "gru.py": ("02_", "03_"),
    "cells.py": ("06_", "07_", "08_", "options"),
    "layers.py": ("08_", "09_", "10_", "11_", "options"),
    "scan.py": ("11_", "options"),
    "sequences.py": ("09_",),
    "convert.py": ("06_", "07_", "conversions"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="mutants whose name or file contains this")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only in m.name or options.only in m.file]

    chapters = notebooks()
    with ThreadPoolExecutor(options.workers) as pool:
        healthy = dict(zip(chapters, pool.map(without_a_bug, chapters)))
    if any(red for red, _ in healthy.values()):
        return 1
    quickest_first = sorted(chapters, key=lambda chapter: healthy[chapter][1])

    def in_order(mutant: Mutant) -> list[Path]:
        first = FIRST_CHAPTERS[mutant.file]
        return sorted(quickest_first, key=lambda chapter: not chapter.name.startswith(first))

    survivors = []
    with ThreadPoolExecutor(options.workers) as pool:
        verdicts = pool.map(lambda mutant: caught_by(mutant, in_order(mutant)), chosen)
        for mutant, red in zip(chosen, verdicts):
            print(f"{mutant.file}: {mutant.name}: {red or 'SURVIVED'}", flush=True)
            if not red:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants turned a notebook red.")
    return 1 if survivors else 0


def caught_by(mutant: Mutant, chapters: list[Path]) -> str:
    """Return the first cell that turned red against `mutant`, or an empty string."""
    text = (ROOT / "src" / "unrolled" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in "
            f"{mutant.file}; a mutant needs exactly one place."
        )
    with changed_source(mutant.file, text.replace(mutant.old, mutant.new)) as source:
        return next(filter(None, (first_red_cell(source, chapter) for chapter in chapters)), "")


if __name__ == "__main__":
    sys.exit(main())
