"""Conversions: what goes in and what comes out compute the same, gradients included."""

from __future__ import annotations

import os
from importlib import import_module
from types import SimpleNamespace

os.environ.setdefault("KERAS_BACKEND", "jax")

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from unrolled import convert
from unrolled.cells import GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell
from unrolled.gru import gru_sequence, gru_step, initialize_gru_params
from unrolled.layers import RNN, Bidirectional, StackedRNN

IN, HIDDEN = 3, 4
RANDOM_BIAS = nnx.initializers.normal(0.5)
OUR_CELLS = [SimpleCell, GRUCell, LSTMCell, OptimizedLSTMCell]


def make(kind, **options):
    return kind(IN, HIDDEN, bias_init=RANDOM_BIAS, rngs=nnx.Rngs(1), **options)


def inputs(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def close(actual, expected, tolerance=1e-6):
    """Compare values, and gradients in the same way.

    1e-6 is relative to the largest number of each array, not to each number: a sum of terms that
    cancel keeps the rounding errors of the terms. Float32 rounds at 6e-8, and what is compared here
    differs by at most 5e-7.
    """

    def one_array(a, b):
        atol = tolerance * np.abs(b).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)

    jax.tree.map(one_array, actual, expected)


def same_state(a, b):
    close(dict(nnx.to_flat_state(nnx.state(a))), dict(nnx.to_flat_state(nnx.state(b))), tolerance=0)


# The functional GRU


def test_the_functional_gru_and_back():
    params = initialize_gru_params(jax.random.key(0), IN, HIDDEN, scale=0.5)
    params |= {b: inputs(HIDDEN, seed=i) for i, b in enumerate(("bz", "br", "bh"))}
    cell = convert.gru_from_functional(params)
    x, h = inputs(6, IN), inputs(HIDDEN, seed=9)
    close(cell(h, x[0])[0], gru_step(params, h, x[0])[0])
    carry, outputs = RNN(cell)(x, initial_carry=h, return_carry=True)
    close((carry, outputs), gru_sequence(params, h, x))
    back = convert.gru_to_functional(cell)
    assert list(back) == list(params)
    close(back, params, tolerance=0)

    def loss(run):
        return lambda model, h, x: (run(model, h, x) ** 2).sum()

    ours = jax.grad(loss(lambda p, h, x: gru_sequence(p, h, x)[1]), argnums=(0, 1, 2))
    theirs = nnx.grad(loss(lambda c, h, x: RNN(c)(x, initial_carry=h)), argnums=(0, 1, 2))
    grad_params, *grads = ours(params, h, x)
    grad_cell, *cell_grads = theirs(cell, h, x)
    close(cell_grads, grads)
    # The gates of a gradient are ordered and turned as those of the weights are.
    nnx.update(holder := nnx.clone(cell), grad_cell)
    close(convert.gru_to_functional(holder), grad_params)


def test_wrong_functional_params_are_named():
    params = initialize_gru_params(jax.random.key(0), IN, HIDDEN)
    with pytest.raises(ValueError, match=r"'Ur' is missing; found Uh, Uz, Wh"):
        convert.gru_from_functional({k: v for k, v in params.items() if k != "Ur"})
    with pytest.raises(ValueError, match=r"'Wh' .* has shape \(3, 4\); expected \(4, 3\).*transp"):
        convert.gru_from_functional(params | {"Wh": params["Wh"].T})
    with pytest.raises(ValueError, match=r"'Wz' .* has shape \(4,\); expected a matrix"):
        convert.gru_from_functional(params | {"Wz": params["bz"]})
    with pytest.raises(ValueError, match=r"reset_after=True.*expected a GRUCell"):
        convert.gru_to_functional(make(GRUCell))
    with pytest.raises(ValueError, match=r"activations of its own"):
        convert.gru_to_functional(make(GRUCell, reset_after=False, activation_fn=nnx.relu))
    with pytest.raises(TypeError, match=r"got a SimpleCell; expected one of GRUCell"):
        convert.gru_to_functional(make(SimpleCell))


# The two LSTM cells


def test_the_two_lstm_cells_are_interchangeable():
    for cell in (make(LSTMCell), make(OptimizedLSTMCell, activation_fn=nnx.relu)):
        there = {LSTMCell: convert.to_optimized_lstm, OptimizedLSTMCell: convert.to_lstm}
        other = there[type(cell)](cell)
        assert type(other) is not type(cell)
        x = inputs(2, 5, IN)

        def loss(cell, x):
            return (RNN(cell)(x) ** 2).sum()

        close(RNN(other)(x), RNN(cell)(x))
        grads, other_grads = (nnx.grad(loss, argnums=(0, 1))(c, x) for c in (cell, other))
        close(other_grads[1], grads[1])
        nnx.update(holder := nnx.clone(cell), grads[0])
        nnx.update(other_holder := nnx.clone(other), other_grads[0])
        close(nnx.state(there[type(cell)](holder)), nnx.state(other_holder))
        same_state(there[type(other)](other), cell)
    with pytest.raises(TypeError, match=r"to_lstm got a GRUCell"):
        convert.to_lstm(make(GRUCell))


# torch


def torch_modules():
    torch = import_module("torch")
    return {
        "RNN": lambda **o: torch.nn.RNN(IN, HIDDEN, **o),
        "RNN relu": lambda **o: torch.nn.RNN(IN, HIDDEN, nonlinearity="relu", **o),
        "GRU": lambda **o: torch.nn.GRU(IN, HIDDEN, **o),
        "LSTM": lambda **o: torch.nn.LSTM(IN, HIDDEN, **o),
    }


def our_carry(state, kind, layers, bidirectional):
    """torch's final states, as the layers here return them."""
    parts = state[::-1] if kind == "LSTM" else (state,)  # (h, c) -> (c, h)
    parts = [part.detach().numpy() for part in parts]
    rows = [
        tuple(part[i] for part in parts) if len(parts) > 1 else parts[0][i]
        for i in range(len(parts[0]))
    ]
    if bidirectional:
        rows = list(zip(rows[::2], rows[1::2]))
    return tuple(rows) if layers > 1 else rows[0]


@pytest.mark.parametrize(
    "layers, bidirectional", [(1, False), (2, True)], ids=["one layer", "two layers, both ways"]
)
@pytest.mark.parametrize("kind", ["RNN", "RNN relu", "GRU", "LSTM"])
def test_torch_layers_over_packed_sequences(kind, layers, bidirectional):
    torch = import_module("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.manual_seed(0)
    options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": True}
    module = torch_modules()[kind](**options)
    layer = convert.from_torch(module)
    x, lengths = np.array(inputs(4, 6, IN)), [6, 2, 5, 1]
    probe = np.array(inputs(4, 6, HIDDEN * (1 + bidirectional), seed=3))

    torch_x = torch.tensor(x, requires_grad=True)
    packed = pack_padded_sequence(torch_x, lengths, batch_first=True, enforce_sorted=False)
    packed_outputs, state = module(packed)
    expected, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=6)
    states = state if kind == "LSTM" else (state,)
    ((expected * torch.tensor(probe)).sum() + sum((s**2).sum() for s in states)).backward()

    carry, outputs = layer(x, seq_lengths=lengths, return_carry=True)
    close(outputs, expected.detach().numpy())
    close(carry, our_carry(state, kind, layers, bidirectional))

    def loss(layer, x):
        carry, outputs = layer(x, seq_lengths=lengths, return_carry=True)
        return (outputs * probe).sum() + sum((part**2).sum() for part in jax.tree.leaves(carry))

    grads, grad_x = nnx.grad(loss, argnums=(0, 1))(layer, jnp.asarray(x))
    close(grad_x, torch_x.grad.numpy())
    nnx.update(holder := nnx.clone(layer), grads)
    ours = convert.to_torch(holder)
    for name, parameter in module.named_parameters():
        if not name.startswith("bias_hh"):  # here one bias stands for the two
            close(ours[name], parameter.grad.numpy())
        elif kind == "GRU":
            close(ours[name][-HIDDEN:], parameter.grad.numpy()[-HIDDEN:])

    again = torch_modules()[kind](**options)
    again.load_state_dict({k: torch.tensor(v) for k, v in convert.to_torch(layer).items()})
    packed_outputs, _ = again(packed)
    returned, _ = pad_packed_sequence(packed_outputs, batch_first=True, total_length=6)
    close(returned.detach().numpy(), outputs)


def test_torch_cells_missing_biases_and_time_first():
    torch = import_module("torch")
    x, h = inputs(2, IN), inputs(2, HIDDEN, seed=1)
    c = inputs(2, HIDDEN, seed=2)
    tensors = [torch.tensor(np.array(a)) for a in (x, h, c)]
    for bias in (True, False):
        for module in (torch.nn.RNNCell, torch.nn.GRUCell):
            module = module(IN, HIDDEN, bias=bias)
            expected = module(*tensors[:2]).detach().numpy()
            cell = convert.from_torch(module)
            close(cell(h, x)[1], expected)
        module = torch.nn.LSTMCell(IN, HIDDEN, bias=bias)
        (new_c, new_h), _ = convert.from_torch(module)((c, h), x)
        close((new_h, new_c), tuple(a.detach().numpy() for a in module(tensors[0], tensors[1:])))
    again = torch.nn.GRUCell(IN, HIDDEN)
    again.load_state_dict({k: torch.tensor(v) for k, v in convert.to_torch(make(GRUCell)).items()})
    close(again(*tensors[:2]).detach().numpy(), make(GRUCell)(h, x)[1])
    module = torch.nn.GRU(IN, HIDDEN, bias=False)
    x = np.array(inputs(5, 2, IN))
    close(convert.from_torch(module)(x), module(torch.tensor(x))[0].detach().numpy())
    dropping = convert.from_torch(torch.nn.GRU(IN, HIDDEN, num_layers=2, dropout=0.5))
    assert isinstance(dropping, StackedRNN) and dropping.dropout.rate == 0.5


def test_dropout_between_layers_is_on_only_if_the_module_was_in_training():
    torch = import_module("torch")
    module = torch.nn.GRU(IN, HIDDEN, num_layers=2, dropout=0.5, batch_first=True)
    x = np.array(inputs(2, 5, IN))
    training = convert.from_torch(module)
    assert np.any(training(x) != training(x))
    module.eval()
    close(convert.from_torch(module)(x), module(torch.tensor(x))[0].detach().numpy())


def test_what_torch_lacks_is_named():
    torch = import_module("torch")
    with pytest.raises(TypeError, match=r"from_torch got a Linear; expected one of torch.nn's RNN"):
        convert.from_torch(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"proj_size=2"):
        convert.from_torch(torch.nn.LSTM(IN, HIDDEN, proj_size=2))
    with pytest.raises(ValueError, match=r"reset_after=False, and torch resets after"):
        convert.to_torch(RNN(make(GRUCell, reset_after=False)))
    with pytest.raises(ValueError, match=r"residual=True"):
        convert.to_torch(RNN(make(SimpleCell, residual=True)))
    with pytest.raises(ValueError, match=r"tanh or relu"):
        convert.to_torch(RNN(make(SimpleCell, activation_fn=jnp.sin)))
    with pytest.raises(TypeError, match=r"to_torch got a Linear; expected one of RNN"):
        convert.to_torch(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


# Keras


def keras_layer(kind, **options):
    keras = import_module("keras")
    keras.utils.set_random_seed(0)
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, return_state=True, **options)
    layer.build((None, 5, IN))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=w.shape, scale=0.5) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize(
    "kind, options",
    [
        ("SimpleRNN", {}),
        ("SimpleRNN", {"activation": "relu", "use_bias": False}),
        ("GRU", {}),
        ("GRU", {"reset_after": False}),
        ("GRU", {"use_bias": False, "recurrent_activation": "hard_sigmoid"}),
        ("GRU", {"use_bias": False, "reset_after": False, "activation": "softsign"}),
        ("LSTM", {}),
        ("LSTM", {"activation": "linear", "use_bias": False}),
        ("LSTM", {"go_backwards": True}),
    ],
    ids=str,
)
def test_keras_layers(kind, options):
    layer = keras_layer(kind, **options)
    rnn = convert.from_keras(layer)
    x = inputs(2, 5, IN)
    expected, *states = layer(x)
    carry, outputs = rnn(x, return_carry=True)
    close(outputs, np.asarray(expected))
    close(carry, tuple(states[::-1]) if kind == "LSTM" else states[0])

    def keras_loss(weights, x):
        values, _ = layer.stateless_call(weights, rest, x)
        return (values[0] ** 2).sum()

    variables = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]
    keras_grads, keras_grad_x = jax.grad(keras_loss, argnums=(0, 1))(variables, x)
    grads, grad_x = nnx.grad(lambda rnn, x: (rnn(x) ** 2).sum(), argnums=(0, 1))(rnn, x)
    close(grad_x, keras_grad_x)
    nnx.update(holder := nnx.clone(rnn), grads)
    ours = convert.to_keras(holder)
    close(ours[:2], [np.asarray(g) for g in keras_grads[:2]])
    if len(keras_grads) == 3:
        theirs = np.asarray(keras_grads[2])
        if theirs.ndim == 2:  # here one bias stands for the two of the gates
            close(ours[2][0], theirs[0])
            close(ours[2][1, 2 * HIDDEN :], theirs[1, 2 * HIDDEN :])
        else:
            close(ours[2], theirs)
    again = keras_layer(kind, **(options | {"use_bias": True}))
    again.set_weights(convert.to_keras(rnn))
    close(np.asarray(again(x)[0]), outputs)


def test_an_activation_of_keras_is_the_same_function_or_refused():
    keras = import_module("keras")
    x, refused, layer = inputs(2, 5, IN) * 3, set(), keras_layer("SimpleRNN")
    others = {"get", "serialize", "deserialize", "glu", "threshold"}  # no functions of one array
    for name in set(dir(keras.activations)) - others:
        if name.startswith("_"):
            continue
        layer.cell.activation = getattr(keras.activations, name)
        try:
            rnn = convert.from_keras(layer)
        except ValueError:
            refused.add(name)
        else:
            close(rnn(x), np.asarray(layer(x)[0]))
    assert len(refused) < 10 and not refused & {"tanh", "linear", "relu", "gelu", "leaky_relu"}


def test_an_activation_of_ones_own_is_not_taken_for_one_of_the_same_name():
    def tanh(x):
        return 2 * x

    with pytest.raises(ValueError, match="an activation of its own, 'tanh'"):
        convert.from_keras(keras_layer("SimpleRNN", activation=tanh))


@pytest.mark.parametrize("merge_mode", ["concat", "sum"])
def test_keras_bidirectional(merge_mode):
    keras = import_module("keras")
    layer = keras.layers.Bidirectional(
        keras.layers.GRU(HIDDEN, return_sequences=True), merge_mode=merge_mode
    )
    x = inputs(2, 5, IN)
    expected = np.asarray(layer(x))
    close(convert.from_keras(layer)(x), expected)


def test_what_keras_lacks_is_named():
    keras = import_module("keras")
    with pytest.raises(TypeError, match=r"from_keras got a Dense"):
        convert.from_keras(keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"holds 0 weights.*build"):
        convert.from_keras(keras.layers.GRU(HIDDEN))
    with pytest.raises(ValueError, match=r"activation 'exponential'"):
        convert.from_keras(keras_layer("LSTM", activation="exponential"))
    with pytest.raises(ValueError, match=r"merge_mode='ave'"):
        layer = keras.layers.Bidirectional(keras.layers.GRU(HIDDEN), merge_mode="ave")
        convert.from_keras(layer)
    with pytest.raises(ValueError, match=r"residual=True"):
        convert.to_keras(make(SimpleCell, residual=True))


# Flax


@pytest.mark.parametrize("kind", OUR_CELLS)
def test_linen_cells(kind):
    linen_cell = getattr(linen, kind.__name__)(HIDDEN, bias_init=RANDOM_BIAS)
    x = inputs(2, IN)
    carry = linen_cell.initialize_carry(jax.random.key(0), x.shape)
    carry = jax.tree.map(lambda part: part + 0.3, carry)
    variables = linen_cell.init(jax.random.key(1), carry, x)
    cell = convert.from_linen(variables["params"])

    def loss(params, x):
        new_carry, output = linen_cell.apply({"params": params}, carry, x)
        return (output**2).sum() + sum(part.sum() for part in jax.tree.leaves(new_carry))

    def our_loss(cell, x):
        new_carry, output = cell(carry, x)
        return (output**2).sum() + sum(part.sum() for part in jax.tree.leaves(new_carry))

    close(cell(carry, x), linen_cell.apply(variables, carry, x))
    grads, grad_x = jax.grad(loss, argnums=(0, 1))(variables["params"], x)
    our_grads, our_grad_x = nnx.grad(our_loss, argnums=(0, 1))(cell, x)
    close(our_grad_x, grad_x)
    nnx.update(holder := nnx.clone(cell), our_grads)
    close(convert.to_linen(holder), grads)
    back = convert.to_linen(cell)
    assert jax.tree.structure(back) == jax.tree.structure(dict(variables["params"]))
    close(back, dict(variables["params"]), tolerance=0)
    close(
        convert.to_linen(make(LSTMCell)),
        convert.to_linen(convert.to_optimized_lstm(make(LSTMCell))),
    )


def test_wrong_linen_params_are_named():
    cell = linen.GRUCell(HIDDEN)
    params = cell.init(jax.random.key(0), jnp.zeros(HIDDEN), jnp.zeros(IN))["params"]
    with pytest.raises(ValueError, match=r"'hn.bias' is missing"):
        convert.from_linen({**params, "hn": {"kernel": params["hn"]["kernel"]}})
    with pytest.raises(ValueError, match=r"'hz.kernel' .* has shape \(3, 4\); expected \(4, 4\)"):
        convert.from_linen({**params, "hz": {"kernel": jnp.zeros((3, 4))}})
    with pytest.raises(ValueError, match=r"entries \['params'\]; expected those of flax.linen's"):
        convert.from_linen({"params": params})
    with pytest.raises(ValueError, match=r"flax.linen resets after"):
        convert.to_linen(make(GRUCell, reset_after=False))


@pytest.mark.parametrize("kind", OUR_CELLS)
def test_nnx_modules(kind):
    flax_kind = getattr(nnx, kind.__name__)
    flax_rnn = nnx.RNN(make(flax_kind), time_major=True, reverse=True, keep_order=True)
    flax_pair = nnx.Bidirectional(nnx.RNN(make(flax_kind)), nnx.RNN(make(flax_kind)))
    x = inputs(5, 4, IN)
    close(convert.from_nnx(flax_rnn)(x), flax_rnn(x))
    close(convert.from_nnx(flax_pair)(x), flax_pair(x))
    cell = convert.from_nnx(flax_rnn.cell)
    assert type(cell) is kind
    back = convert.to_nnx(cell)
    assert type(back) is flax_kind
    same_state(back, flax_rnn.cell)


def test_what_flax_lacks_is_named():
    with pytest.raises(TypeError, match=r"from_nnx got a Linear of flax"):
        convert.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"reset_after=False, and flax.nnx"):
        convert.to_nnx(make(GRUCell, reset_after=False))
    if not hasattr(nnx.GRUCell(2, 2, rngs=nnx.Rngs(0)), "b_hn"):
        with pytest.raises(ValueError, match=r"b_hn is not zero.*to_linen"):
            convert.to_nnx(make(GRUCell))


def test_stacks_and_pairs_go_to_torch_and_back():
    import_module("torch")
    stack = StackedRNN([Bidirectional(RNN(make(GRUCell)), RNN(make(GRUCell)))])
    assert set(convert.to_torch(stack)) == {
        f"{name}_l0{direction}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for direction in ("", "_reverse")
    }


def test_importing_the_package_imports_neither_torch_nor_keras():
    code = "import sys, unrolled.convert; print({'torch', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_cell_in_half_precision_becomes_flax_s():
    """Flax's default initialiser cannot draw bfloat16; the weights are loaded anyway."""
    cell = SimpleCell(2, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    kernel = convert.to_nnx(cell).dense_h.kernel
    np.testing.assert_array_equal(kernel[...], cell.dense_h.kernel[...])


def test_params_that_are_no_dict_of_numbers_are_named():
    for function in (convert.from_linen, convert.gru_from_functional):
        with pytest.raises(TypeError, match="params are None; expected a dict of arrays"):
            function(None)
    with pytest.raises(TypeError, match=r"a weight is .*; expected an array of numbers"):
        convert.gru_from_functional(dict.fromkeys(["Wz"], "abc"))


def test_layers_come_back_from_flax_with_their_options():
    x = inputs(2, 5, IN)
    layer = RNN(make(LSTMCell), time_major=True, return_carry=True, reverse=True, keep_order=True)
    theirs = convert.to_nnx(layer)
    assert type(theirs) is nnx.RNN and type(theirs.cell) is nnx.LSTMCell
    close(theirs(x), layer(x))
    same_state(convert.from_nnx(theirs).cell, layer.cell)
    both = Bidirectional(RNN(make(SimpleCell)), RNN(make(SimpleCell)), merge_fn=jnp.add)
    assert type(convert.to_nnx(both)) is nnx.Bidirectional
    close(convert.to_nnx(both)(x), both(x))
    close(convert.from_nnx(convert.to_nnx(both))(x), both(x))
    with pytest.raises(TypeError, match=r"to_nnx got a Linear; expected one of SimpleCell"):
        convert.to_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("merge_mode", ["concat", "sum"])
def test_to_keras_takes_both_directions(merge_mode):
    keras = import_module("keras")
    merge = {"merge_fn": jnp.add} if merge_mode == "sum" else {}
    ours = Bidirectional(RNN(make(GRUCell)), RNN(make(GRUCell)), **merge)
    layer = keras.layers.Bidirectional(
        keras.layers.GRU(HIDDEN, return_sequences=True), merge_mode=merge_mode
    )
    x = inputs(2, 5, IN)
    layer(x)
    layer.set_weights(convert.to_keras(ours))
    close(ours(x), np.asarray(layer(x)))


EXPORTS = [convert.to_torch, convert.to_keras, convert.to_linen, convert.to_nnx]


@pytest.mark.parametrize("export", [*EXPORTS, convert.gru_to_functional])
def test_a_cell_with_other_weights_than_its_own_is_not_exported(export):
    def cell():
        return make(GRUCell, reset_after=export is not convert.gru_to_functional)

    too_wide = cell()
    too_wide.dense_h.kernel = nnx.Param(jnp.ones((HIDDEN + 1, 3 * HIDDEN)))
    with pytest.raises(
        ValueError, match=r"'dense_h.kernel' in the GRUCell has shape \(5, 12\); expected \(4, 12\)"
    ):
        export(too_wide)
    with_bias = cell()
    with_bias.dense_h = nnx.Linear(HIDDEN, 3 * HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"the GRUCell: 'dense_h.bias' would be lost in a conversion"
    ):
        export(with_bias)
    if export is not convert.gru_to_functional:
        lacking = cell()
        lacking.b_hn = None
        with pytest.raises(ValueError, match=r"the GRUCell: 'b_hn' is missing"):
            export(lacking)


@pytest.mark.parametrize("export", [*EXPORTS, convert.gru_to_functional])
def test_a_cell_that_computes_more_than_its_weights_say_is_not_exported(export):
    options = {"reset_after": export is not convert.gru_to_functional}

    class Louder(GRUCell):
        def gate(self, *arguments):
            return (2 * super().gate(*arguments)[0],)

    class Doubling(nnx.Linear):
        def __call__(self, inputs):
            return 2 * super().__call__(inputs)

    with pytest.raises(
        ValueError, match=r"the Louder has its own gate, which .* package's GRUCell"
    ):
        export(make(Louder, **options))
    cell = make(GRUCell, **options)
    cell.dense_i = Doubling(IN, 3 * HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"dense_i of the GRUCell is a Doubling: what it computes"):
        export(cell)
    cell = make(GRUCell, **options)
    cell.dense_h.dot_general = lambda *args, **kwargs: 2 * jax.lax.dot_general(*args, **kwargs)
    with pytest.raises(ValueError, match=r"dense_h .* is a Linear with a dot_general of its own"):
        export(cell)
    for name in ("dtype", "preferred_element_type"):
        cell = make(GRUCell, **options)
        setattr(cell.dense_h, name, jnp.bfloat16)
        with pytest.raises(ValueError, match=rf"dense_h .* is a Linear with a {name} of its own"):
            export(cell)
    abstract = nnx.eval_shape(lambda: make(GRUCell, **options))
    with pytest.raises(TypeError, match=r"a shape without numbers, as nnx.eval_shape makes it"):
        export(abstract)

    class Named(GRUCell):
        """Computes what its base computes."""

    kept, usual = (
        export(kind(IN, HIDDEN, rngs=nnx.Rngs(0), **options)) for kind in (Named, GRUCell)
    )
    for ours, expected in zip(jax.tree.leaves(kept), jax.tree.leaves(usual), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("export", [*EXPORTS, convert.to_optimized_lstm])
def test_an_lstm_that_reads_its_memory_otherwise_is_not_exported(export):
    class Linear(LSTMCell):
        def read(self, memory, projected, recurrent):
            return memory[0]

    with pytest.raises(
        ValueError, match=r"the Linear has its own read, which .* package's LSTMCell"
    ):
        export(make(Linear))


def test_a_first_state_that_others_do_not_have_is_named():
    ones = nnx.initializers.ones_init()
    rnn = RNN(make(GRUCell, carry_init=ones))
    for export, library in ((convert.to_torch, "torch"), (convert.to_keras, "Keras")):
        with pytest.raises(ValueError, match=f"has a carry_init, and {library} begins with zeros"):
            export(rnn)
        export(rnn.cell)  # a cell gets its state in every call

        class Beginning(GRUCell):
            def initialize_carry(self, input_shape, rngs=None, carry_init=None):
                return jnp.ones((*input_shape[:-1], self.hidden_features))

        with pytest.raises(ValueError, match=r"has its own initialize_carry"):
            export(RNN(make(Beginning)))
        export(RNN(make(GRUCell, carry_init=nnx.initializers.zeros_init())))


def test_a_stack_of_two_nonlinearities_does_not_go_to_torch():
    layers = [
        RNN(SimpleCell(HIDDEN, HIDDEN, activation_fn=activation, rngs=nnx.Rngs(0)))
        for activation in (nnx.tanh, nnx.relu)
    ]
    with pytest.raises(ValueError, match="has one nonlinearity for all its layers"):
        convert.to_torch(StackedRNN(layers))
    with pytest.raises(ValueError, match="has one nonlinearity for all its layers"):
        convert.to_torch(Bidirectional(*layers))
    assert convert.to_torch(StackedRNN([layers[1], layers[1]]))


def test_a_keras_bidirectional_that_begins_at_the_end_is_named():
    keras = import_module("keras")
    layers = [
        keras.layers.GRU(HIDDEN, return_sequences=True, go_backwards=backwards)
        for backwards in (True, False)
    ]
    pair = keras.layers.Bidirectional(layers[0], backward_layer=layers[1])
    pair(inputs(2, 5, IN))
    with pytest.raises(ValueError, match=r"the first layer .* has go_backwards=True; expected"):
        convert.from_keras(pair)


def test_tied_directions_stay_tied():
    theirs = nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0))
    ours = convert.from_nnx(nnx.Bidirectional(nnx.RNN(theirs), nnx.RNN(theirs)))
    assert ours.forward_rnn.cell is ours.backward_rnn.cell
    again = convert.to_nnx(ours)
    assert again.forward_rnn.cell is again.backward_rnn.cell
    apart = convert.from_nnx(
        nnx.Bidirectional(nnx.RNN(theirs), nnx.RNN(nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0))))
    )
    assert apart.forward_rnn.cell is not apart.backward_rnn.cell


def test_torch_weights_in_half_precision():
    torch = import_module("torch")
    module = torch.nn.GRU(IN, HIDDEN, batch_first=True)
    half = convert.from_torch(module.bfloat16())
    assert half.cell.dense_i.kernel.dtype == jnp.bfloat16
    x = inputs(2, 5, IN)
    close(half(x), convert.from_torch(module.float())(x), tolerance=1e-2)


def test_a_product_of_ones_own_is_not_taken_from_flax():
    theirs = nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0))
    theirs.dense_h.dot_general = lambda *args, **kwargs: 2 * jax.lax.dot_general(*args, **kwargs)
    with pytest.raises(ValueError, match=r"dense_h .* is a Linear with a dot_general of its own"):
        convert.from_nnx(theirs)


def test_lstms_with_other_weights_are_not_exchanged():
    cell = make(LSTMCell)
    cell.hg.kernel = nnx.Param(jnp.ones((HIDDEN, HIDDEN + 1)))
    with pytest.raises(ValueError, match=r"'hg.kernel' in the LSTMCell has shape \(4, 5\)"):
        convert.to_optimized_lstm(cell)


def test_layers_that_others_do_not_have_are_named():
    rnn = RNN(make(GRUCell), reverse=True)
    with pytest.raises(ValueError, match=r"reverse=True, and torch reads backwards only"):
        convert.to_torch(rnn)
    mean = Bidirectional(RNN(make(GRUCell)), RNN(make(GRUCell)), merge_fn=lambda a, b: (a + b) / 2)
    with pytest.raises(ValueError, match=r"merge_fn of its own; expected torch's: concatenated"):
        convert.to_torch(mean)
    with pytest.raises(ValueError, match=r"merge_fn of its own; expected Keras's: .*jnp.add"):
        convert.to_keras(mean)
    flax = nnx.Bidirectional(
        nnx.RNN(nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0))),
        nnx.RNN(nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(1))),
    )
    assert len(convert.to_torch(convert.from_nnx(flax))) == 8  # Flax's concatenation is torch's


def test_a_torch_weight_that_is_missing_or_misshapen_is_named():
    torch = import_module("torch")
    module = torch.nn.GRU(IN, HIDDEN)
    state = dict(module.state_dict())
    kept = {name: value for name, value in vars(module).items() if not name.startswith("_")}

    def broken(state):
        return SimpleNamespace(**kept, state_dict=lambda: state)

    close(
        convert.from_torch(broken(state))(inputs(5, 2, IN)),
        convert.from_torch(module)(inputs(5, 2, IN)),
    )
    with pytest.raises(ValueError, match=r"the torch state_dict: 'bias_hh_l0' is missing"):
        convert.from_torch(broken({k: v for k, v in state.items() if k != "bias_hh_l0"}))
    turned = state | {"weight_ih_l0": state["weight_ih_l0"].T}
    with pytest.raises(ValueError, match=r"'weight_ih_l0' .* \(3, 12\); .*It looks transposed"):
        convert.from_torch(broken(turned))


def test_a_conversion_inside_a_transformation_is_refused():
    params = initialize_gru_params(jax.random.key(0), 3, 4)
    expected = r"a weight is being traced by jit, grad or vmap; .* convert outside"
    with pytest.raises(TypeError, match=expected):
        jax.jit(lambda p: convert.gru_to_functional(convert.gru_from_functional(p)))(params)
    with pytest.raises(TypeError, match=expected):
        nnx.jit(convert.to_optimized_lstm)(LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=expected):
        jax.vmap(lambda b: convert.gru_from_functional(params | {"bz": b}))(jnp.ones((2, 4)))
