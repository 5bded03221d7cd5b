"""Over eight devices the fast scan sends what it must, and computes what it computes on one.

JAX asks for the number of devices once in the life of a process, so this file runs itself in a
second one, where a CPU counts as eight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest
from programs import needs_the_fast_scan  # this file also runs as a program

from unrolled.lab.communication import Collective, collectives

BATCH, STEPS, FEATURES, HIDDEN = 16, 6, 4, 24  # 8 does not divide a GRU's gates, nor a gate's 24
COLUMNS = {
    "kernel_metadata": {"out_sharding": (None, "model")},
    "recurrent_kernel_metadata": {"out_sharding": (None, "model")},
    "bias_metadata": {"out_sharding": ("model",)},
}
CASES = {
    "data": ("SimpleCell", {}, None),  # without a mesh in sight
    "columns of a fused kernel": ("GRUCell", COLUMNS, (1, 8)),
    "columns": ("LSTMCell", COLUMNS, (1, 8)),
    "pieces": ("LSTMCell", {}, (8, 1)),  # kept in columns, and gathered before they are used
    "pieces of a fused kernel": ("GRUCell", {}, (8, 1)),
}


def measure() -> None:
    """Print, for each case, its communication and how far it is from the plain scan's results."""
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import unrolled

    jax.config.update("jax_num_cpu_devices", 8)
    os.environ.setdefault("PJRT_NPROC", "256")  # threads, also for those that are waited for

    def value_and_gradient(layer, gather=False):
        graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

        def loss(params, x, lengths):
            if gather:
                params = jax.lax.with_sharding_constraint(params, PartitionSpec())
            outputs = nnx.merge(graphdef, params, rest)(x, seq_lengths=lengths)
            return (outputs**2).mean()

        return jax.jit(jax.value_and_grad(loss)), params

    def draw(key, shape, dtype):
        return np.random.default_rng(0).normal(size=shape, scale=0.3).astype(dtype)

    draws = {"kernel_init": draw, "recurrent_kernel_init": draw, "bias_init": draw}
    inputs = np.sin(np.arange(BATCH * STEPS * FEATURES, dtype=np.float32))
    inputs = inputs.reshape(BATCH, STEPS, FEATURES)
    lengths = np.arange(BATCH) % (STEPS + 1)
    for name, (cell_type, metadata, shape) in CASES.items():
        mesh = jax.make_mesh(shape or (8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        over_batch = NamedSharding(mesh, PartitionSpec("data"))
        cell_type = getattr(unrolled, cell_type)
        plain = type("Plain", (cell_type,), {"__call__": lambda *args: cell_type.__call__(*args)})  # noqa: B023
        sizes = (FEATURES, HIDDEN)
        program, params = value_and_gradient(unrolled.RNN(plain(*sizes, **draws, rngs=nnx.Rngs(0))))
        expected = program(params, inputs, lengths)
        if shape:
            jax.set_mesh(mesh)
        layer = unrolled.RNN(cell_type(*sizes, **draws, **metadata, rngs=nnx.Rngs(0)))
        assert layer.cell.recurrence() is not None
        in_pieces = name.startswith("pieces")
        program, params = value_and_gradient(layer, gather=in_pieces)
        if in_pieces:
            specs = jax.tree.map(lambda a: PartitionSpec(*[None] * (a.ndim - 1), "data"), params)
            params = jax.device_put(params, jax.tree.map(partial(NamedSharding, mesh), specs))
        given = params, *jax.device_put((inputs, lengths), over_batch)
        compiled = program.lower(*given).compile()
        pairs = zip(jax.tree.leaves(compiled(*given)), jax.tree.leaves(expected))
        print(
            json.dumps(
                {
                    "case": name,
                    "difference": max(
                        float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs
                    ),
                    "collectives": collectives(compiled),
                    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                    "arrays": len(jax.tree.leaves(params)),
                }
            )
        )


@pytest.fixture(scope="module")
def measured():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}
    for row in rows.values():
        row["collectives"] = [Collective(*fields) for fields in row["collectives"]]
    return rows


@pytest.mark.parametrize("case", CASES)
def test_the_results_are_those_of_one_device(measured, case):
    assert measured[case]["difference"] < 1e-6


@needs_the_fast_scan
def test_cut_batches_cost_one_sum_of_the_gradients(measured):
    (total,) = measured["data"]["collectives"]
    assert (total.kind, total.in_loop) == ("all-reduce", False)
    assert total.size == 4 * measured["data"]["parameters"] + 4  # and the loss


@needs_the_fast_scan
@pytest.mark.parametrize("case", ["columns of a fused kernel", "columns"])
def test_cut_units_cost_one_state_in_each_step(measured, case):
    in_loop = [found for found in measured[case]["collectives"] if found.in_loop]
    assert sorted(found.kind for found in in_loop) == ["all-gather", "all-reduce"]
    assert {found.size for found in in_loop} == {4 * BATCH * HIDDEN}
    assert {found.times for found in in_loop} == {STEPS}


@needs_the_fast_scan
def test_a_kernel_for_each_gate_is_never_moved(measured):
    kinds = sorted(found.kind for found in measured["columns"]["collectives"] if not found.in_loop)
    states = [
        found for found in measured["columns"]["collectives"] if found.size == 4 * 96 * HIDDEN
    ]
    assert kinds == ["all-gather", "all-reduce"] and len(states) == 1  # the states, and the loss


@needs_the_fast_scan
@pytest.mark.parametrize("case", ["pieces", "pieces of a fused kernel"])
def test_parameters_kept_in_pieces_are_gathered_once(measured, case):
    row = measured[case]
    gathers = [found for found in row["collectives"] if found.kind == "all-gather"]
    (total,) = [found for found in row["collectives"] if found.kind != "all-gather"]
    assert not any(found.in_loop for found in row["collectives"])
    assert len(gathers) == row["arrays"]
    assert sum(found.size for found in gathers) == 4 * row["parameters"]
    assert (total.kind, total.size) == ("all-reduce", 4 * row["parameters"] + 4)  # and the loss


PROGRAM = """HloModule example

%body.1 (parameter: (s32[], f32[4])) -> (s32[], f32[4]) {
  %gathered = bf16[8,4]{1,0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %moved = f32[3]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %sum = (f32[10]{0}, f32[]) all-reduce(%a, %b), replica_groups={{0,1},{2,3}}, to_apply=%add
  %start = (f32[2], f32[8]) all-gather-start(%c), replica_groups=mesh['a'=2,'b'=4] {'b'}
}
"""


def test_in_shard_map_a_carry_of_its_type_will_do():
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import AxisType, PartitionSpec

    from unrolled import RNN, LSTMCell

    def varying(array):
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(array, "batch", to="varying")
        return jax.lax.pvary(array, "batch")  # its name before JAX 0.9

    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))
    rnn = RNN(LSTMCell(FEATURES, HIDDEN, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (4, STEPS, FEATURES))
    lengths = np.array([STEPS, 0, 2, 3])

    def run(x, lengths):
        carry = rnn.cell.initialize_carry((len(x), FEATURES))
        carry = jax.tree.map(varying, carry)
        return rnn(x, initial_carry=carry, seq_lengths=lengths)

    cut = PartitionSpec("batch")
    run = jax.shard_map(run, mesh=mesh, in_specs=(cut, cut), out_specs=cut)
    np.testing.assert_allclose(run(x, lengths), rnn(x, seq_lengths=lengths), rtol=1e-6, atol=1e-6)


def test_what_is_sent_is_read_from_a_program():
    total, started, gathered, moved = collectives(PROGRAM)
    assert gathered == Collective("all-gather", "bf16[8,4]", 64, 4, 5, True)
    assert (gathered.sent, moved.sent) == (5 * 48, 5 * 12)
    assert total == Collective("all-reduce", "f32[10], f32[]", 44, 2, 1, False)
    assert started == Collective("all-gather", "f32[8]", 32, 4, 1, False)


if __name__ == "__main__":
    measure()
