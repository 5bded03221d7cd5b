"""Train chapter 14's language model for longer, with more units and more dropout.

    python examples/train_language.py                  some ten minutes on a CPU core
    python examples/train_language.py --updates 500    a short one

It prints bits per character of held-out text, what an n-gram model and two compressors need for the
same text, and what the network writes. On the same machine the same arguments give the same lines;
train_language.log keeps those of a run without arguments (two cores of an x86-64 server, Python
3.11, JAX 0.10). With --checkpoints FOLDER it saves its state after each round, and when it is
started again with the same arguments it goes on from there; only --round may be another. A round in
which the loss or a gradient is not finite ends the run with the number of the update and the name
of the parameter.

Where starting again would not help, it ends with 2, or with 3 when something is not finite.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import lzma
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from checkpointing import Refused, claim, open_checkpoints, restoring, run, saving, whole_number
from flax import nnx

import unrolled
from unrolled.lab.finite import check_finite, count_nonfinite
from unrolled.lab.language import CHARACTERS, decode, encode, ngram_bits, python_manual

HELD_OUT = 32_000  # characters, the last of the text
EMBEDDED = 32  # features of a character
SIZE = len(CHARACTERS)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, some = parser.add_argument, whole_number(1)
    add("--updates", type=some, default=4000, help="in all")
    add("--round", type=some, default=500, help="updates between two reports")
    add("--hidden", type=some, default=256, help="units in each layer")
    add("--layers", type=some, default=2)
    add("--batch", type=some, default=16, help="streams read side by side")
    add("--steps", type=some, default=64, help="characters in a segment")
    add("--rate", type=float, default=5e-3, help="the highest learning rate")
    add("--dropout", type=float, default=0.3)
    add("--seed", type=whole_number(0, 2**32 - 1), default=0)
    add("--checkpoints", type=Path, help="folder")
    given = parser.parse_args()
    if not given.rate > 0:
        parser.error(f"--rate is {given.rate}; expected a number above 0.")
    if not 0 <= given.dropout < 1:
        parser.error(f"--dropout is {given.dropout}; expected at least 0 and less than 1.")
    return given


class CharacterModel(nnx.Module):
    """Scores for the next character at every place, and the carry after the last one."""

    def __init__(self, hidden: int, layers: int, dropout: float, *, rngs: nnx.Rngs):
        sizes = [EMBEDDED] + [hidden] * layers
        self.embed = nnx.Embed(SIZE, EMBEDDED, rngs=rngs)
        cells = [unrolled.GRUCell(*pair, rngs=rngs) for pair in itertools.pairwise(sizes)]
        self.stack = unrolled.StackedRNN(
            [unrolled.RNN(cell, rngs=False) for cell in cells], dropout_rate=dropout, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(hidden, SIZE, rngs=rngs)

    def __call__(self, codes, carry=None):
        carry, outputs = self.stack(self.embed(codes), initial_carry=carry, return_carry=True)
        return self.readout(self.dropout(outputs)), carry


def cut(codes: np.ndarray, batch: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay a text out in streams and cut them: inputs and targets, (segments, batch, steps)."""
    length = (len(codes) - 1) // (batch * steps) * steps  # of a stream
    if not length:
        raise Refused(
            f"--batch is {batch} and --steps {steps}, but the text has {len(codes):,} characters; "
            "expected fewer streams or shorter segments."
        )
    both = (codes[shift : batch * length + shift].reshape(batch, -1, steps) for shift in (0, 1))
    return tuple(array.swapaxes(0, 1) for array in both)


def prepare(arguments: argparse.Namespace, train: np.ndarray) -> tuple:
    """Make the model, its state before the first update, and a compiled round of updates."""
    inputs, targets = map(jnp.asarray, cut(train, arguments.batch, arguments.steps))
    model = CharacterModel(
        arguments.hidden, arguments.layers, arguments.dropout, rngs=nnx.Rngs(arguments.seed)
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    warm = min(100, arguments.updates // 10)
    schedule = optax.warmup_cosine_decay_schedule(0, arguments.rate, warm, arguments.updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    zeros = jnp.zeros((arguments.batch, arguments.hidden))
    carry = (zeros,) * arguments.layers
    # `rest` holds how many masks dropout has drawn; it goes through the loop with the rest.
    state = {
        "params": params,
        "optimizer": optimizer.init(params),
        "rest": rest,
        "carry": carry,
        "done": jnp.array(0),
    }

    def loss_of(params, rest, carry, inputs, targets):
        model = nnx.merge(graphdef, params, rest, copy=True)  # dropout counts in it
        scores, carry = model(inputs, carry)
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, targets).mean()
        return loss, (carry, nnx.split(model, nnx.Param, ...)[2])

    def update(state, _):
        segment = state["done"] % len(inputs)
        carry = jax.tree.map(lambda h: jnp.where(segment > 0, h, 0), state["carry"])
        (loss, (carry, rest)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state["params"], state["rest"], carry, inputs[segment], targets[segment]
        )
        change, memory = optimizer.update(gradient, state["optimizer"])
        params = optax.apply_updates(state["params"], change)
        after = (params, memory, rest, carry, state["done"] + 1)
        counts = count_nonfinite(loss=loss, gradient=gradient)
        return dict(zip(("params", "optimizer", "rest", "carry", "done"), after)), (loss, counts)

    run_round = jax.jit(
        lambda state, length: jax.lax.scan(update, state, length=length), static_argnums=1
    )
    return graphdef, state, run_round


@partial(jax.jit, static_argnums=0)
def bits_of(graphdef, params, rest, codes):
    """What each character of a text costs, its first one excepted."""
    model = nnx.merge(graphdef, params, rest)
    model.eval()
    scores, _ = model(codes[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(scores, codes[1:]) / jnp.log(2)


@partial(jax.jit, static_argnums=(0, 4))
def write(graphdef, params, rest, start, length, temperature, key):
    """Let the model go on from `start` for `length` characters."""
    model = nnx.merge(graphdef, params, rest)
    model.eval()
    scores, carry = model(start)

    def step(before, key):
        scores, carry = before
        code = jax.random.categorical(key, scores / temperature)
        scores, carry = model(code[None], carry)
        return (scores[0], carry), code

    return jax.lax.scan(step, (scores[-1], carry), jax.random.split(key, length))[1]


def compressed(pack, train: bytes, test: bytes) -> float:
    """Bits per character that `test` adds to an archive of `train`."""
    return 8 * (len(pack(train + test)) - len(pack(train))) / len(test)


def main() -> None:
    arguments = parse_arguments()
    text = python_manual()
    if folder := arguments.checkpoints:
        decisive = ("updates", "hidden", "layers", "batch", "steps", "rate", "dropout", "seed")
        settings = {f"--{name}": getattr(arguments, name) for name in decisive}
        # Each Python has another manual.
        settings["text"] = hashlib.sha256(text.encode()).hexdigest()[:8]
        claim(folder, {"example": Path(__file__).name} | settings)
    codes = encode(text)
    train, test = codes[:-HELD_OUT], codes[-HELD_OUT:]
    print(f"{len(train):,} characters to learn from, {len(test):,} held out")
    print(f"6-grams: {ngram_bits(train, test, 6).mean():.3f} bits per character")
    print(f"8-grams: {ngram_bits(train, test, 8).mean():.3f}")
    pieces = text[:-HELD_OUT].encode(), text[-HELD_OUT:].encode()
    strongest = partial(lzma.compress, preset=9 | lzma.PRESET_EXTREME)
    print(f"lzma:    {compressed(strongest, *pieces):.3f}")
    print(f"zlib:    {compressed(partial(zlib.compress, level=9), *pieces):.3f}", flush=True)

    graphdef, state, run_round = prepare(arguments, train)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    print(f"The network has {numbers:,} parameters.", flush=True)
    manager = open_checkpoints(folder) if folder else None
    if manager and (latest := manager.latest_step()):
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        with restoring(folder, latest):
            state = manager.restore(latest, args=ocp.args.StandardRestore(shapes))
        print(f"Going on from update {state['done']}.", file=sys.stderr)
    start, begin = time.monotonic(), int(state["done"])
    done = begin
    while done < arguments.updates:
        length = min(arguments.round - done % arguments.round, arguments.updates - done)
        state, (losses, counts) = run_round(state, length)
        if manager:
            with saving(folder):
                manager.wait_until_finished()  # the one before stays, whatever comes now
        check_finite(counts, done)
        done += length
        bits = float(bits_of(graphdef, state["params"], state["rest"], jnp.asarray(test)).mean())
        learned = float(losses.mean()) / np.log(2)
        print(f"update {done:5d}: training {learned:.3f}, held out {bits:.3f}", flush=True)
        if manager:
            with saving(folder):
                manager.save(done, args=ocp.args.StandardSave(state))
        left = (time.monotonic() - start) / (done - begin) * (arguments.updates - done)
        print(f"about {left / 60:.1f} minutes left", file=sys.stderr, flush=True)
    if manager:
        with saving(folder):
            manager.close()  # waits for the last one

    beginning = 'The "with" statement'
    for temperature in (0.3, 0.6, 1.0):
        written = write(
            graphdef,
            state["params"],
            state["rest"],
            jnp.asarray(encode(beginning)),
            400,
            temperature,
            jax.random.key(arguments.seed),
        )
        print(f"--- temperature {temperature} ---\n{beginning}{decode(written)}")


if __name__ == "__main__":
    sys.exit(run(main, "Interrupted; with --checkpoints, start it again as before to go on."))
