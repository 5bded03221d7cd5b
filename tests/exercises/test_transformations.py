"""The checkers of chapter 4 tell an untouched starter, a right answer and each mistake apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import gru_sequence, gru_step
from unrolled.lab.exercises import EXERCISES, judge


def verdict(number, function):
    return judge(EXERCISES[number], function)


def starter(*arguments):
    return ...


def breaks(*arguments):
    return [][1]


@pytest.mark.parametrize("number", ["4.1", "4.2", "4.3", "4.4"])
def test_the_starter_and_code_that_raises_are_recognised(number):
    assert verdict(number, starter)[0] == "not started"
    word, message = verdict(number, breaks)
    assert word == "not yet"
    assert "IndexError" in message and "return [][1]" in message


# 4.1


def mapped(in_axes, out_axes=0):
    return jax.jit(jax.vmap(gru_sequence, in_axes, out_axes))


def by_hand(params, h, inputs):
    final_h, outputs_h = mapped((None, 0, 0))(params, h, inputs.swapaxes(0, 1))
    return final_h, outputs_h.swapaxes(0, 1)


def only_outputs_by_hand(params, h, inputs):
    final_h, outputs_h = jax.vmap(gru_sequence, (None, 0, 1))(params, h, inputs)
    return final_h, jnp.moveaxis(outputs_h, 0, 1)


def only_inputs_by_hand(params, h, inputs):
    turned = jnp.einsum("tbd->btd", inputs)
    return jax.vmap(gru_sequence, (None, 0, 0), (0, 1))(params, h, turned)


def one_by_one(params, h, inputs):
    """No `vmap`: each example alone, stacked where it belongs."""
    pairs = [gru_sequence(params, h[b], inputs[:, b]) for b in range(len(h))]
    return jnp.stack([pair[0] for pair in pairs]), jnp.stack([pair[1] for pair in pairs], axis=1)


def a_step_for_the_whole_batch(params, h, inputs):
    steps = jax.vmap(gru_step, (None, 0, 0))
    return jax.lax.scan(lambda h, x: steps(params, h, x), h, inputs)


def own_loop_mapped(params, h, inputs):
    """Here `vmap` transposes by itself, for the indexing and for the stack."""

    def run_one(h, inputs):
        outputs = []
        for t in range(len(inputs)):
            h, output = gru_step(params, h, jnp.take(inputs, jnp.asarray(t), axis=0))
            outputs.append(output)
        return h, jnp.stack(outputs)

    return jax.vmap(run_one, (0, 1), (0, 1))(h, inputs)


def in_numpy(params, h, inputs):
    final_h, outputs_h = one_by_one(params, np.asarray(h), np.asarray(inputs))
    return np.asarray(final_h), np.asarray(outputs_h)


@pytest.mark.parametrize(
    "answer",
    [
        mapped((None, 0, 1), (0, 1)),
        one_by_one,
        a_step_for_the_whole_batch,
        jax.jit(own_loop_mapped),
        in_numpy,
    ],
)
def test_4_1_accepts_all_that_does_not_transpose(answer):
    assert verdict("4.1", answer)[0] == "right"


@pytest.mark.parametrize(
    "answer", [by_hand, jax.jit(by_hand), only_outputs_by_hand, only_inputs_by_hand]
)
def test_4_1_sees_a_transposition_by_hand(answer):
    word, message = verdict("4.1", answer)
    assert word == "not yet" and "axes are exchanged by hand" in message, message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (mapped((None, 0, 1)), "out_axes"),
        (mapped((None, 0, 1), 1), "batch axis went to the end"),
        (mapped((None, 0, 0)), "along which axis"),
        (mapped((None, None, 1)), "exactly its batch axis"),
        (
            lambda p, h, x: mapped((None, 0, 1), (0, 1))(p, jnp.zeros_like(h), x),
            "start from zeros",
        ),
        (lambda p, h, x: mapped((None, None, 1), (0, 1))(p, h[0], x), "a row of its own"),
        (lambda p, h, x: mapped((None, 0, 1), (0, 1))(p, h, x)[1], "a pair"),
        (
            lambda p, h, x: (
                mapped((None, 0, 1), (0, 1))(p, h, x)[0],
                mapped((None, 0, 1), (0, 1))(p, h, x)[1][::-1],
            ),
            "backwards",
        ),
        (lambda p, h, x: mapped((None, 0, 1), (0, 1))(p, h, x)[::-1], "in the wrong order"),
        (lambda p, h, x: mapped((None, 0, 1), (0, 1)), "the result is a function"),
        (
            lambda p, h, x: mapped((None, 0, 0), (0, 1))(p, h, x.reshape(5, 7, -1)),
            "`reshape` cuts the numbers anew",
        ),
    ],
)
def test_4_1_names_the_mistake(answer, words):
    word, message = verdict("4.1", answer)
    assert word == "not yet" and words in message, message


# 4.2


def norm(params, h, inputs):
    return jnp.linalg.norm(gru_sequence(params, h, inputs)[0])


def by_h(of, **options):
    return jax.jit(jax.grad(of, argnums=1, **options))


final_jacobian = jax.jit(jax.jacrev(lambda *a: gru_sequence(*a)[0], argnums=1))


@pytest.mark.parametrize("answer", [by_h(norm), lambda *a: by_h(norm)(*a).tolist()])
def test_4_2_accepts_the_gradient(answer):
    assert verdict("4.2", answer)[0] == "right"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (jax.jit(jax.grad(norm)), "argnums"),
        (jax.jit(jax.grad(norm, argnums=(1,))), "tuple of one"),
        (jax.jit(jax.grad(norm, argnums=(0, 1))), "With several `argnums`"),
        (jax.jit(jax.grad(norm, argnums=(1, 2))), "With several `argnums`"),
        (jax.jit(jax.grad(norm, argnums=2)), "with respect to inputs"),
        (jax.jit(jax.value_and_grad(norm, argnums=1)), "grad does not"),
        (jax.jit(norm), "a single number"),
        (lambda *a: final_jacobian(*a), "Jacobian of the whole"),
        (by_h(lambda *a: norm(*a) ** 2), "squared norm"),
        (by_h(lambda *a: jnp.linalg.norm(gru_sequence(*a)[1])), "norm of all outputs"),
        (by_h(lambda *a: gru_sequence(*a)[0].sum()), "not of its norm"),
        (by_h(lambda *a: -norm(*a)), "minus the gradient"),
        (by_h(lambda p, h, x: norm(p, h, x[:1])), "the first state"),
        (lambda *a: jnp.linalg.norm(final_jacobian(*a), axis=0), "Jacobian's columns"),
        (lambda *a: jnp.linalg.norm(final_jacobian(*a), axis=1), "Jacobian's rows"),
        (jax.grad(lambda *a: gru_sequence(*a)[0], argnums=1), "scalar-output"),
    ],
)
def test_4_2_names_the_mistake(answer, words):
    word, message = verdict("4.2", answer)
    assert word == "not yet" and words in message, message


# 4.3


def reset_after_step(params, h_prev, x_t):
    update = jax.nn.sigmoid(params["Wz"] @ x_t + params["Uz"] @ h_prev + params["bz"])
    reset = jax.nn.sigmoid(params["Wr"] @ x_t + params["Ur"] @ h_prev + params["br"])
    candidate = jnp.tanh(params["Wh"] @ x_t + params["bh"] + reset * (params["Uh"] @ h_prev))
    return (1 - update) * h_prev + update * candidate


def exchanged_step(params, h_prev, x_t):
    turned = params | {name: -params[name] for name in ("Wz", "Uz", "bz")}
    return reset_after_step(turned, h_prev, x_t)


def pulled_back(step):
    def backward(params, h_prev, x_t, d_h):
        return jax.vjp(lambda h: step(params, h, x_t), h_prev)[1](d_h)[0]

    return jax.jit(backward)


def test_4_3_holds_jax_and_its_own_answer_equal():
    assert verdict("4.3", pulled_back(reset_after_step))[0] == "right"


def held(*names):
    """A backward pass that forgets the paths through `names`."""

    def step(params, h_prev, x_t):
        def h(name):
            return jax.lax.stop_gradient(h_prev) if name in names else h_prev

        update = jax.nn.sigmoid(params["Wz"] @ x_t + params["Uz"] @ h("update") + params["bz"])
        reset = jax.nn.sigmoid(params["Wr"] @ x_t + params["Ur"] @ h("reset") + params["br"])
        recurrent = params["Uh"] @ h("candidate")
        candidate = jnp.tanh(params["Wh"] @ x_t + params["bh"] + reset * recurrent)
        return (1 - update) * h("straight") + update * candidate

    return pulled_back(step)


def by_formula(mistake):
    from unrolled.lab.exercises.transformations import _reset_after_backward

    def backward(params, *rest):
        return _reset_after_backward(jax.tree.map(np.asarray, params), *rest, mistake)

    return backward


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (pulled_back(lambda *a: gru_step(*a)[0]), "the chapter's GRU"),
        (held("straight"), "straight path is missing"),
        (held("candidate"), "path through the candidate is missing"),
        (held("reset"), "path through the reset gate is missing"),
        (held("update"), "path through the update gate is missing"),
        (by_formula("reset before"), "before* Uh.T"),
        (pulled_back(exchanged_step), "update and 1 - update are exchanged"),
        (by_formula("Uh not transposed"), "Uh is not transposed"),
        (by_formula("Ur not transposed"), "Ur is not transposed"),
        (by_formula("Uz not transposed"), "Uz is not transposed"),
        (by_formula("sigmoid of update"), "update gate's sigmoid"),
        (by_formula("sigmoid of reset"), "reset gate's sigmoid"),
        (by_formula("not transposed"), "matrices are not transposed"),
        (by_formula("tanh"), "slope of tanh"),
        (by_formula("sigmoid"), "slope of the sigmoid"),
        (by_formula("sign"), "wrong sign"),
        (by_formula("h_prev lost"), "its factor is candidate - h_prev"),
        (by_formula("wrong factor"), "wrong factor"),
        (by_formula("update for 1 - update"), "1 - update"),
        (lambda params, h_prev, x_t, d_h: x_t, "shape of h_prev"),
        (lambda params, h_prev, x_t, d_h: 0 * h_prev, "Four paths"),
    ],
)
def test_4_3_names_the_mistake(answer, words):
    word, message = verdict("4.3", answer)
    assert word == "not yet" and words in message, message


# 4.4


def scan_steps(params, h, inputs):
    return jax.lax.scan(lambda h, x_t: (gru_step(params, h, x_t)[0], None), h, inputs)[0]


def chunks(width, keep_rest=True):
    def final_state(params, h, inputs):
        whole = len(inputs) - len(inputs) % width
        cut = inputs[:whole].reshape(-1, width, inputs.shape[-1])
        run_chunk = jax.checkpoint(scan_steps)
        h, _ = jax.lax.scan(lambda h, chunk: (run_chunk(params, h, chunk), None), h, cut)
        return scan_steps(params, h, inputs[whole:]) if keep_rest else h

    return final_state


def test_4_4_accepts_chunks_with_a_rest():
    assert verdict("4.4", chunks(11))[0] == "right"
    assert verdict("4.4", chunks(50))[0] == "right"  # a rest of 47 steps needs more than the budget


def padded(params, h, inputs):
    rest = -len(inputs) % 10
    return chunks(10)(params, h, jnp.concatenate([inputs, jnp.zeros((rest, inputs.shape[1]))]))


def each_step(params, h, inputs):
    step = jax.checkpoint(lambda h, x_t: gru_step(params, h, x_t)[0])
    return jax.lax.scan(lambda h, x_t: (step(h, x_t), None), h, inputs)[0]


def rest_only_if_short(params, h, inputs):
    return chunks(40, keep_rest=len(inputs) < 40)(params, h, inputs)


def whole_chunks_or_none(params, h, inputs):
    return (scan_steps if len(inputs) % 40 else chunks(40))(params, h, inputs)


def only_params_learn(params, h, inputs):
    return chunks(10)(params, *jax.lax.stop_gradient((h, inputs)))


def inputs_held(params, h, inputs):
    return chunks(10)(params, h, jax.lax.stop_gradient(inputs))


def cut_between_chunks(params, h, inputs):
    for start in range(0, len(inputs), 250):
        h = chunks(10)(params, jax.lax.stop_gradient(h), inputs[start : start + 250])
    return h


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (rest_only_if_short, "after 997 steps the result is the state after only 960"),
        (whole_chunks_or_none, "that for 997 needs"),
        (only_params_learn, "the gradient by initial_h is not"),
        (inputs_held, "the gradient by inputs is not"),
        (cut_between_chunks, "held constant"),
        (scan_steps, "without any checkpoint"),
        (each_step, "one vector for each step"),
        (chunks(200), "chunk length"),
        (chunks(10, keep_rest=False), "only 30"),
        (padded, "zero input"),
        (lambda *a: chunks(10)(*jax.lax.stop_gradient(a)), "held constant"),
        (lambda *a: gru_sequence(*a), "final state alone"),
        (lambda *a: np.asarray(scan_steps(*a)), "TracerArrayConversionError"),
        (lambda params, h, inputs: h, "no step was made"),
    ],
)
def test_4_4_names_the_mistake(answer, words):
    word, message = verdict("4.4", answer)
    assert word == "not yet" and words in message, message
