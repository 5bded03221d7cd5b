"""The checkers of chapter 6: starters, right answers, wrong answers named, exceptions told."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import unrolled
from unrolled.lab.exercises import EXERCISES, judge


def sizes(module, *filters, size=lambda array: array.size, join=".".join):
    flat = nnx.to_flat_state(nnx.state(module, *filters))
    return {join(map(str, path)): size(param[...]) for path, param in flat}


def right_sizes(module):
    return sizes(module, nnx.Param)


class Simple(nnx.Module):
    hidden_bias = False
    columns = 1

    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        width = self.columns * hidden_features
        self.dense_i = nnx.Linear(in_features, width, rngs=rngs)
        self.dense_h = nnx.Linear(hidden_features, width, use_bias=self.hidden_bias, rngs=rngs)

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))

    def __call__(self, carry, inputs):
        carry = jnp.tanh(self.dense_i(inputs) + self.dense_h(carry))
        return carry, carry


def simple(**changes):
    return type("Changed", (Simple,), changes)


class SimpleStarter(nnx.Module):
    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        self.dense_i = ...
        self.dense_h = ...

    def initialize_carry(self, input_shape, rngs=None):
        return ...

    def __call__(self, carry, inputs):
        return ...


def stranger(signs=(-1, 1, 1), order="rzn", bias=None, b_hn=None, **signs_of):
    def reorder(array, name):
        blocks = dict(zip("zrn", jnp.split(jnp.asarray(array), 3, axis=-1)))
        for gate, sign in zip("zrn", signs_of.get(name, signs)):
            blocks[gate] = sign * blocks[gate]
        return jnp.concatenate([blocks[gate] for gate in order], axis=-1)

    def merged(biases):
        first, second = biases
        return first + second * np.repeat([1, 1, 0], len(first) // 3)

    def from_stranger(kernel, recurrent, biases):
        return {
            "dense_i.kernel": reorder(kernel, "kernel"),
            "dense_h.kernel": reorder(recurrent, "recurrent"),
            "dense_i.bias": reorder((bias or merged)(biases), "bias"),
            "b_hn": (b_hn or (lambda biases: jnp.split(biases[1], 3)[2]))(biases),
        }

    return from_stranger


class Gated(nnx.Module):
    """The minimal gated unit."""

    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        self.dense_i = nnx.Linear(in_features, 2 * hidden_features, use_bias=False, rngs=rngs)
        self.gate_h = nnx.Linear(hidden_features, hidden_features, use_bias=False, rngs=rngs)
        self.candidate_h = nnx.Linear(hidden_features, hidden_features, use_bias=False, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.zeros(hidden_features))

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], self.hidden_features))

    def parts(self, carry, inputs):
        gate_i, candidate_i = jnp.split(self.dense_i(inputs), 2, axis=-1)
        keep = nnx.sigmoid(gate_i + self.gate_h(carry) + self.gate_bias[...])
        return keep, candidate_i, self.candidate_h((1 - keep) * carry)

    def __call__(self, carry, inputs):
        keep, candidate_i, candidate_h = self.parts(carry, inputs)
        carry = keep * carry + (1 - keep) * jnp.tanh(candidate_i + candidate_h)
        return carry, carry


def gated(step=None, **changes):
    if step is not None:

        def call(self, carry, inputs):
            new = step(carry, *self.parts(carry, inputs))
            return new, new

        changes["__call__"] = call
    return type("Changed", (Gated,), changes)


class GatedStarter(nnx.Module):
    def __init__(self, in_features, hidden_features, *, rngs):
        self.gate_bias = ...

    def initialize_carry(self, input_shape, rngs=None):
        return ...

    def __call__(self, carry, inputs):
        return ...


class TooMany(Gated):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.more = nnx.Linear(hidden_features, 12, rngs=rngs)


class Unused(Gated):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.more = nnx.Param(jnp.zeros(2))


class NoGateBias(Gated):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.zeros(()))


class OnlyTheBlend(Gated):
    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        self.dense_i = nnx.Linear(in_features, 2 * hidden_features, use_bias=False, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.zeros(hidden_features))

    def __call__(self, carry, inputs):
        gate, candidate = jnp.split(self.dense_i(inputs), 2, axis=-1)
        keep = nnx.sigmoid(gate + self.gate_bias[...])
        carry = keep * carry + (1 - keep) * jnp.tanh(candidate)
        return carry, carry


class OneWeightForEachUnit(Gated):
    """No unit sees another one's state, but gate and candidate see it."""

    seen = "gate", "candidate"

    def __init__(self, in_features, hidden_features, *, rngs):
        self.hidden_features = hidden_features
        self.dense_i = nnx.Linear(in_features, 2 * hidden_features, use_bias=False, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.zeros(hidden_features))
        self.recurrent = nnx.Param(jnp.ones((len(self.seen), hidden_features)))

    def __call__(self, carry, inputs):
        given = dict(zip(("gate", "candidate"), jnp.split(self.dense_i(inputs), 2, axis=-1)))
        for part, weights in zip(self.seen, self.recurrent[...]):
            given[part] = given[part] + weights * carry
        keep = nnx.sigmoid(given["gate"] + self.gate_bias[...])
        carry = keep * carry + (1 - keep) * jnp.clip(given["candidate"], -1, 1)
        return carry, carry


class OnlyTheGateSees(OneWeightForEachUnit):
    seen = ("gate",)


class OnlyTheCandidateSees(OneWeightForEachUnit):
    seen = ("candidate",)


class ShownInPart(OneWeightForEachUnit):
    """One weight for each unit acts on the output only, as an output gate does."""

    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.shown = nnx.Param(jnp.ones(hidden_features))

    def __call__(self, carry, inputs):
        carry, _ = super().__call__(carry, inputs)
        return carry, nnx.sigmoid(self.shown[...]) * carry


def one_array(self, carry, inputs):
    return jnp.tanh(self.dense_i(inputs) + self.dense_h(carry))


def without_activation(self, carry, inputs):
    carry = self.dense_i(inputs) + self.dense_h(carry)
    return carry, carry


def without_state(self, carry, inputs):
    carry = jnp.tanh(self.dense_i(inputs)) + 0 * carry
    return carry, carry


def without_input(self, carry, inputs):
    carry = jnp.tanh(self.dense_h(carry)) + 0 * inputs[..., :1]
    return carry, carry


def two_biases(self, carry, inputs):
    carry = jnp.tanh(self.dense_i(inputs) + self.dense_h(carry) + self.dense_i.bias[...])
    return carry, carry


def no_bias(self, carry, inputs):
    carry = jnp.tanh(inputs @ self.dense_i.kernel[...] + self.dense_h(carry))
    return carry, carry


def transposed(self, carry, inputs):
    carry = jnp.tanh(self.dense_i(inputs) + carry @ self.dense_h.kernel[...].T)
    return carry, carry


def added_state(self, carry, inputs):
    carry = jnp.tanh(self.dense_i(inputs) + self.dense_h(carry)) + carry
    return carry, carry


def old_output(self, carry, inputs):
    return jnp.tanh(self.dense_i(inputs) + self.dense_h(carry)), carry


class Inherited(unrolled.SimpleCell):
    pass


class BiasOfTheState(Simple):
    hidden_bias = True

    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.dense_i = nnx.Linear(in_features, hidden_features, use_bias=False, rngs=rngs)


class WrongWayRound(Simple):
    def __init__(self, in_features, hidden_features, *, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)
        self.dense_i.kernel = nnx.Param(self.dense_i.kernel[...].T)


class NoStep(nnx.Module):
    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)


def old_carry(self, carry, inputs):
    return carry, jnp.tanh(self.dense_i(inputs) + self.dense_h(carry))


def two_activations(self, carry, inputs):
    carry = jnp.tanh(self.dense_i(inputs)) + jnp.tanh(self.dense_h(carry))
    return carry, carry


def carry_without_batch(self, input_shape, rngs=None):
    return jnp.zeros(self.hidden_features)


def carry_like_inputs(self, input_shape, rngs=None):
    return jnp.zeros(input_shape)


def carry_of_ones(self, input_shape, rngs=None):
    return jnp.ones((*input_shape[:-1], self.hidden_features))


def fails(self, carry, inputs):
    return undefined_name  # noqa: F821


def by_block(change, path="dense_h.kernel"):
    """A right answer in which each gate's block of a kernel goes through `change` at last."""

    def from_stranger(kernel, recurrent, biases):
        weights = stranger()(kernel, recurrent, biases)
        blocks = jnp.split(weights[path], 3, axis=-1)
        return weights | {path: jnp.concatenate(list(map(change, blocks)), axis=-1)}

    return from_stranger


def reshaped(kernel):
    return jnp.concatenate(kernel.reshape(3, len(kernel), -1), axis=-1)


minus_z = np.repeat([-1, 1, 1], 4)  # one sign for each column of a kernel


def both_rows(biases):
    return biases[0] + biases[1]


def one_gate_merged(*gates):
    return lambda biases: biases[0] + biases[1] * np.repeat(gates, len(biases[0]) // 3)


RIGHT = {
    "6.1": [right_sizes],
    "6.2": [Simple],
    "6.3": [stranger()],
    "6.4": [Gated, OneWeightForEachUnit, OnlyTheGateSees, OnlyTheCandidateSees, ShownInPart],
}

STARTERS = {
    "6.1": lambda module: ...,
    "6.2": SimpleStarter,
    "6.3": lambda kernel, recurrent, biases: {"dense_i.kernel": ..., "b_hn": ...},
    "6.4": GatedStarter,
}

WRONG = [
    ("6.1", sizes, "which is not learned"),
    ("6.1", lambda m: sizes(m, nnx.Param, join=tuple), "one string with dots"),
    ("6.1", lambda m: sizes(m, nnx.Param, join="/".join), "the paths should be"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=np.shape), "values are shapes"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=len), "first axes"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=np.ndim), "count the axes"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=lambda a: a.nbytes), "bytes"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=lambda a: sum(a.shape)), "add up the axes"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=lambda a: a.shape[-1]), "the last axes"),
    ("6.1", lambda m: sizes(m, nnx.Param, join=lambda path: [*path][-1]), "last part of each path"),
    ("6.1", lambda m: sizes(m, nnx.Param, size=lambda a: str(a.size)), "not a list"),
    ("6.1", lambda m: sum(right_sizes(m).values()), "expected a dict"),
    ("6.2", Simple(3, 4, rngs=nnx.Rngs(0)), "the class itself"),
    ("6.2", simple(hidden_bias=True), "Both layers have a bias"),
    ("6.2", BiasOfTheState, "The only bias is dense_h.bias"),
    ("6.2", simple(columns=3), "has no gates"),
    ("6.2", simple(initialize_carry=carry_without_batch), "Keep the batch dimensions"),
    ("6.2", simple(initialize_carry=carry_like_inputs), "replace the last one"),
    ("6.2", simple(initialize_carry=carry_of_ones), "should be zeros"),
    ("6.2", simple(__call__=one_array), "should return a pair"),
    ("6.2", simple(__call__=without_activation), "activation is missing"),
    ("6.2", simple(__call__=without_state), "old state takes no part"),
    ("6.2", simple(__call__=old_carry), "carry comes back as it was"),
    ("6.2", simple(__call__=old_output), "The output is the old state"),
    ("6.2", simple(__call__=without_input), "The input takes no part"),
    ("6.2", simple(__call__=two_biases), "The bias counts twice"),
    ("6.2", simple(__call__=no_bias), "The bias takes no part"),
    ("6.2", simple(__call__=transposed), "kernel is transposed"),
    ("6.2", simple(__call__=added_state), "added after the tanh"),
    ("6.2", unrolled.SimpleCell, "written already"),
    ("6.2", Inherited, "written already"),
    ("6.2", WrongWayRound, "The number of inputs comes first"),
    ("6.2", NoStep, "NoStep needs the method `__call__`"),
    ("6.2", simple(__call__=two_activations), "one tanh around each layer"),
    ("6.3", stranger(signs=(1, 1, 1), order="zrn"), "as the stranger stores it"),
    ("6.3", stranger(order="zrn"), "still has z first"),
    ("6.3", stranger(signs=(1, 1, 1)), "z still writes"),
    ("6.3", stranger(signs=(1, -1, 1)), "r's sign changed instead"),
    ("6.3", stranger(signs=(-1, -1, 1)), "r's sign changed as well"),
    ("6.3", stranger(recurrent=(1, 1, 1)), "dense_h.kernel has the right order, but z still"),
    ("6.3", stranger(signs=(-1, -1, -1)), "all signs changed"),
    ("6.3", stranger(order="nrz"), "in the order n, r, z; the cell wants r, z, n"),
    ("6.3", stranger(order="rnz", signs=(1, 1, 1)), "Nor has z's sign changed"),
    ("6.3", by_block(jnp.transpose), "dense_h.kernel has each gate's block transposed. Both"),
    (
        "6.3",
        lambda k, r, b: by_block(jnp.transpose)(k, r * minus_z, b),
        "dense_h.kernel has each gate's block transposed, and z's sign",
    ),
    (
        "6.3",
        lambda k, r, b: stranger(signs=(1, 1, 1))(k * minus_z + (minus_z < 0), r, b),
        "dense_i.kernel holds 1 - z's block",
    ),
    ("6.3", lambda k, r, b: stranger()(reshaped(k), r, b), "dense_i.kernel was cut with `resh"),
    ("6.3", lambda k, r, b: stranger()(k, reshaped(r), b), "dense_h.kernel was cut with `resh"),
    ("6.3", stranger(bias=lambda b: b[0]), "holds the first row only"),
    ("6.3", stranger(bias=both_rows), "must stay apart"),
    ("6.3", stranger(bias=one_gate_merged(1, 0, 0)), "adds the second row to z only"),
    ("6.3", stranger(bias=one_gate_merged(0, 1, 0)), "adds the second row to r only"),
    ("6.3", stranger(bias=one_gate_merged(-1, 1, 0)), "with its old sign"),
    ("6.3", stranger(b_hn=lambda b: b[1, :4]), "b_hn is z's block"),
    ("6.3", stranger(b_hn=lambda b: 0 * b[1, :4]), "b_hn is zero"),
    ("6.3", stranger(b_hn=lambda b: b[0, 8:]), "from the first row"),
    ("6.3", stranger(b_hn=lambda b: b[1]), "b_hn has shape"),
    ("6.3", lambda k, r, b: {"b_hn": b[1, 8:]}, "The dict lacks"),
    ("6.4", TooMany, "find something to leave out"),
    ("6.4", NoGateBias, "called gate_bias of shape"),
    ("6.4", Simple, "no attribute gate_bias"),
    ("6.4", Unused, "more has no effect"),
    ("6.4", OnlyTheBlend, "only through the blend: neither a gate nor the candidate"),
    ("6.4", gated(initialize_carry=carry_without_batch), "Keep the batch dimensions"),
    (
        "6.4",
        gated(lambda h, keep, i, n: (1 - keep) * h + keep * jnp.tanh(i + n)),
        "turns the other way",
    ),
    (
        "6.4",
        gated(lambda h, keep, i, n: keep * h + (1 - keep) * nnx.relu(i + n)),
        "With large weights",
    ),
    ("6.4", gated(lambda h, keep, i, n: keep * h + jnp.tanh(i + n)), "should keep it as it is"),
    (
        "6.4",
        gated(lambda h, keep, i, n: (keep * h + (1 - keep) * jnp.tanh(i + n)) - h.mean()),
        "rows are mixed",
    ),
]


@pytest.mark.parametrize("number", STARTERS)
def test_the_starter_is_not_started(number):
    assert judge(EXERCISES[number], STARTERS[number])[0] == "not started"


@pytest.mark.parametrize("number", RIGHT)
def test_right_answers_are_right(number):
    for answer in RIGHT[number]:
        assert judge(EXERCISES[number], answer)[0] == "right", judge(EXERCISES[number], answer)


@pytest.mark.parametrize(("number", "answer", "words"), WRONG)
def test_a_wrong_answer_is_named(number, answer, words):
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet", message
    assert words in message, message


def broken(*arguments):
    return undefined_name  # noqa: F821


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("6.1", broken),
        ("6.2", simple(__call__=fails)),
        ("6.2", simple(__init__=lambda self, a, b, *, rngs: broken())),
        ("6.3", broken),
        ("6.4", gated(__call__=fails)),
    ],
)
def test_an_exception_is_told_with_its_line(number, answer):
    verdict, message = judge(EXERCISES[number], answer)
    assert verdict == "not yet"
    assert "NameError" in message and "return undefined_name" in message
