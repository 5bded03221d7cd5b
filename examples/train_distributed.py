"""Train chapter 9's network on any number of devices and processes; kill it and start it again.

    python examples/train_distributed.py                            one process, all its devices
    python examples/train_distributed.py --devices 8                a CPU that counts as 8 devices
    python examples/train_distributed.py --processes 2 --devices 4  two processes on this machine

On a cluster, start one process on each host:

    python examples/train_distributed.py --cluster                  Slurm, Kubernetes, Cloud TPU
    python examples/train_distributed.py --processes 2 --process 0 --coordinator 10.0.0.1:1234

Whenever it stops, for whatever reason, start it again with the same arguments: it goes on from the
last checkpoint. A step's batch depends on the step's number alone, and a checkpoint holds all that
the next step needs, so no step is lost or repeated, and on the same machine the final loss is the
same to the last bit. It may go on with more --steps, another --every and on other devices; with
another --batch, --hidden or --seed it refuses to. When a loss, a gradient or a batch holds NaN, it
stops before the next checkpoint and names the step and the parameter.

Where starting again would not help, it ends with 2, or with 3 after a NaN.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from checkpointing import (
    AGAIN,
    GONE,
    NOT_FINITE,
    REFUSED,
    NotSaved,
    Refused,
    claim,
    end,
    open_checkpoints,
    restoring,
    run,
    saving,
    whole_number,
)
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import unrolled
from unrolled.lab.datasets import japanese_vowels
from unrolled.lab.finite import check_finite, count_nonfinite

SPEAKERS = 9
HEARTBEAT = 10  # seconds without a sign of life after which a process counts as gone


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, some = parser.add_argument, whole_number(1)
    utterances = len(japanese_vowels("train")[1])
    add("--steps", type=some, default=300, help="updates in all")
    add("--batch", type=whole_number(1, utterances), default=48, help="utterances in an update")
    add("--hidden", type=some, default=24, help="units in each direction")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0)
    add("--checkpoints", type=Path, default=Path("checkpoints"), help="folder")
    add("--every", type=some, default=20, help="steps between two checkpoints")
    add("--devices", type=some, help="how many devices a CPU counts as")
    add("--cut-units", type=some, default=1, help="devices that share the units")
    add("--processes", type=some, default=1)
    add("--process", type=whole_number(0), help="which of them this is; without it, all start")
    add("--coordinator", help="host:port of process 0")
    add("--cluster", action="store_true", help="ask the cluster for all three")
    add("--with-parent", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hidden % given.cut_units:
        parser.error(
            f"--hidden is {given.hidden} and --cut-units {given.cut_units}; expected units that "
            "so many devices can share, such as --hidden "
            f"{-(-given.hidden // given.cut_units) * given.cut_units}."
        )
    if given.cluster and (given.processes > 1 or given.process is not None or given.coordinator):
        parser.error(
            "--cluster asks the cluster for --processes, --process and --coordinator; expected it "
            "without them."
        )
    if (given.process is None) != (given.coordinator is None):
        alone, other = ("--coordinator", "--process")[:: 1 if given.process is None else -1]
        parser.error(f"{alone} was given alone; expected {other} too, or neither.")
    if given.process is not None:
        if given.process >= given.processes:
            parser.error(
                f"--process is {given.process} and --processes {given.processes}; expected a "
                "number below that, since the first process is 0."
            )
        if not re.fullmatch(r"\S+:\d+", given.coordinator):
            parser.error(
                f"--coordinator is {given.coordinator!r}; expected host:port, such as "
                "10.0.0.1:1234."
            )
    return given


class SpeakerNet(nnx.Module):
    """Scores for nine speakers; the units of both layers are cut over the mesh's axis `model`."""

    def __init__(self, hidden: int, *, rngs: nnx.Rngs):
        columns = {
            "kernel_metadata": {"out_sharding": (None, "model")},
            "recurrent_kernel_metadata": {"out_sharding": (None, "model")},
            "bias_metadata": {"out_sharding": ("model",)},
        }
        forwards, backwards = (
            unrolled.LSTMCell(12, hidden, rngs=rngs, **columns) for _ in range(2)
        )
        self.forwards = unrolled.RNN(forwards, rngs=False)
        self.backwards = unrolled.RNN(backwards, reverse=True, rngs=False)
        self.readout = nnx.Linear(2 * hidden, SPEAKERS, rngs=rngs)

    def __call__(self, inputs: jax.Array, lengths: jax.Array) -> jax.Array:
        layers = (self.forwards, self.backwards)
        sums = [layer(inputs, seq_lengths=lengths).sum(axis=1) for layer in layers]
        return self.readout(jnp.concatenate(sums, axis=-1) / lengths[:, None])


def train(arguments: argparse.Namespace) -> None:
    """Train from the last checkpoint, or from the beginning, to the last step."""
    agree(arguments)
    num_devices = jax.device_count()
    if num_devices % arguments.cut_units or arguments.batch % num_devices:
        raise Refused(
            f"There are {num_devices} devices, --cut-units is {arguments.cut_units} and --batch "
            f"{arguments.batch}; expected --cut-units to divide the number of devices, and that "
            "to divide --batch."
        )
    mesh = jax.make_mesh(
        (num_devices // arguments.cut_units, arguments.cut_units),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )
    with jax.set_mesh(mesh):
        update, state, batch_of = prepare(arguments, mesh)
        folder = arguments.checkpoints
        manager = open_checkpoints(folder)
        begin = manager.latest_step() or 0
        if begin:
            state = restore(manager, begin, state, arguments)
            tell(f"Going on from step {begin}.")
        progress = Progress(begin, arguments.steps)
        unchecked = []  # what was not finite, in each step since the last checkpoint
        for step in range(begin, arguments.steps):
            state, counts = update(state, step, *batch_of(step))
            unchecked.append(counts)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(state)  # many devices on few cores must not run ahead
            done = step + 1
            if done % arguments.every == 0 or done == arguments.steps:
                with saving(folder):
                    manager.wait_until_finished()  # the one before stays, whatever comes now
                for index, counts in enumerate(unchecked):
                    check_finite(counts, done - len(unchecked) + index)
                unchecked.clear()
                with saving(folder):
                    manager.save(done, args=ocp.args.StandardSave(state))
            progress.show(done, state["losses"])
        with saving(folder):
            manager.close()  # waits for the last one
    report(state)


def restore(manager, step: int, state: dict, arguments: argparse.Namespace) -> dict:
    """Return the state after a step that was saved, with room for the losses of all steps."""
    if step > arguments.steps:
        raise Refused(
            f"{arguments.checkpoints} holds step {step} of a run, and --steps is "
            f"{arguments.steps}; expected at least {step}, or another --checkpoints."
        )
    with restoring(arguments.checkpoints, step):
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        saved = manager.item_metadata(step)["losses"].shape  # the run may have been a shorter one
        shapes["losses"] = shapes["losses"].update(shape=tuple(saved))
        state = manager.restore(step, args=ocp.args.StandardRestore(shapes))
    losses = np.full(arguments.steps, np.inf, np.float32)
    losses[:step] = np.asarray(state["losses"].addressable_data(0))[:step]
    return state | {"losses": jax.device_put(losses, state["losses"].sharding)}


def prepare(arguments: argparse.Namespace, mesh: jax.sharding.Mesh) -> tuple:
    """Make the compiled update, the state before the first step, and the batches."""
    utterances, speakers = japanese_vowels("train")
    frames = np.concatenate(utterances)
    normalised = [(u - frames.mean(axis=0)) / frames.std(axis=0) for u in utterances]
    inputs, lengths = unrolled.pad_sequences(normalised)
    over_batch = NamedSharding(mesh, PartitionSpec("data"))

    def batch_of(step: int) -> list[jax.Array]:
        """The batch of a step, cut between the devices; it depends on the step's number alone."""
        rng = np.random.default_rng([arguments.seed, step])
        rows = rng.choice(len(speakers), arguments.batch, replace=False)
        return [
            jax.make_array_from_callback(
                (len(rows), *array.shape[1:]),
                over_batch,
                lambda share, array=array: array[rows[share[0]]],
            )
            for array in (inputs, lengths, speakers)
        ]

    graphdef, params, rest = nnx.split(
        SpeakerNet(arguments.hidden, rngs=nnx.Rngs(arguments.seed)), nnx.Param, ...
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = nnx.to_pure_dict(params)
    state = {
        "params": params,
        "optimizer": jax.tree.map(jnp.asarray, optimizer.init(params)),
        "losses": jax.device_put(np.full(arguments.steps, np.inf, np.float32), everywhere),
    }

    def on_mesh(array: jax.Array) -> NamedSharding:
        return array.sharding if isinstance(array.sharding, NamedSharding) else everywhere

    shardings = jax.tree.map(on_mesh, state)

    def loss_of(params, inputs, lengths, speakers):
        scores = nnx.merge(graphdef, params, rest)(inputs, lengths)
        return optax.softmax_cross_entropy_with_integer_labels(scores, speakers).mean()

    def update(state, step, inputs, *rest_of_batch):
        loss, gradient = jax.value_and_grad(loss_of)(state["params"], inputs, *rest_of_batch)
        change, memory = optimizer.update(gradient, state["optimizer"])
        after = {
            "params": optax.apply_updates(state["params"], change),
            "optimizer": memory,
            "losses": state["losses"].at[step].set(loss),
        }
        return after, count_nonfinite(loss=loss, gradient=gradient, inputs=inputs)

    compiled = jax.jit(update, out_shardings=(shardings, everywhere), donate_argnums=0)
    return compiled, jax.device_put(state, shardings), batch_of


def agree(arguments: argparse.Namespace) -> None:
    """Refuse to train unless every process was given the same: they could only wait for ever."""
    names = ("batch", "hidden", "seed", "steps", "every", "cut_units")
    given = multihost_utils.process_allgather(np.array([getattr(arguments, n) for n in names]))
    given = given.reshape(-1, len(names))  # (processes, names)
    for name, values in zip(names, given.T):
        for process in np.flatnonzero(values != values[0]):
            option = f"--{name.replace('_', '-')}"
            raise Refused(
                f"Process 0 was given {option} {values[0]}, process {process} {option} "
                f"{values[process]}; expected the same arguments."
            )


def tell(text: str, end: str = "\n") -> None:
    """Say something once, however many processes there are."""
    if jax.process_index() == 0:
        print(text, end=end, file=sys.stderr, flush=True)


class Progress:
    """A bar that is drawn anew on a terminal, and one line for each tenth elsewhere."""

    def __init__(self, begin: int, steps: int):
        self.begin, self.steps = begin, steps
        self.start = self.last = time.monotonic()

    def show(self, done: int, losses: jax.Array) -> None:
        now, on_terminal = time.monotonic(), sys.stderr.isatty()
        tenth = done * 10 // self.steps > (done - 1) * 10 // self.steps
        if not (tenth or (on_terminal and now - self.last > 0.2)):
            return
        self.last = now
        filled = 30 * done // self.steps
        left = (now - self.start) / (done - self.begin) * (self.steps - done)
        bar = f"[{'#' * filled}{'.' * (30 - filled)}] {done}/{self.steps}"
        loss = np.asarray(losses.addressable_data(0))[done - 1]
        text = f"{bar}  loss {loss:.4f}  {left:.0f} s left "
        tell(f"\r{text}", end="\n" if done == self.steps else "") if on_terminal else tell(text)


def report(state: dict) -> None:
    """Print the final loss, exactly, and a fingerprint of all parameters and all losses."""
    whole = multihost_utils.process_allgather((state["params"], state["losses"]), tiled=True)
    if jax.process_index() == 0:
        digest = hashlib.sha256()
        for array in jax.tree.leaves(whole):
            digest.update(np.ascontiguousarray(array).tobytes())
        losses = np.asarray(whole[1])
        print(f"steps: {np.isfinite(losses).sum()}")
        print(f"final loss: {float(losses[-1])!r}")
        print(f"fingerprint: {digest.hexdigest()}", flush=True)


def free_address() -> str:
    """An address on this machine where a coordinator can listen."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start_all(arguments: argparse.Namespace) -> int:
    """Start every process on this machine; when one fails, none is left behind."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # so that `finally` is reached
    command = [sys.executable, *sys.argv, "--coordinator", free_address(), "--with-parent"]
    # A process whose input ends knows that this one is gone, even if it was killed. Each is a group
    # of its own, so that Ctrl-C reaches this one only.
    processes = [
        subprocess.Popen(
            [*command, "--process", str(index)], stdin=subprocess.PIPE, process_group=0
        )
        for index in range(arguments.processes)
    ]
    try:
        while None in (codes := [process.poll() for process in processes]):
            if any(codes):
                break  # the others could only wait for it
            time.sleep(0.05)
    finally:
        for process in reversed(processes):  # process 0 last, since the others would complain
            process.kill()
            process.wait()
    for code in (REFUSED, NOT_FINITE):
        if code in codes:
            return code  # the process has said why
    failed = [index for index, code in enumerate(codes) if code]
    if failed:
        print(f"Process {failed[0]} is gone. {AGAIN}", file=sys.stderr, flush=True)
    return GONE if failed else 0


def stop_with_parent() -> None:
    """End this process when the one that started it ends."""

    def watch():
        os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    arguments = parse_arguments()
    decisive = {f"--{name}": getattr(arguments, name) for name in ("batch", "hidden", "seed")}
    claim(arguments.checkpoints, {"example": Path(__file__).name} | decisive)
    if arguments.processes > 1 and arguments.process is None:
        return start_all(arguments)
    if arguments.with_parent:
        stop_with_parent()
    if arguments.devices:
        jax.config.update("jax_num_cpu_devices", arguments.devices)
        # A device that waits for the others holds a thread: there must be some for these, too.
        os.environ.setdefault("PJRT_NPROC", "256")
    if arguments.cluster:
        jax.distributed.initialize()
    elif arguments.processes > 1:
        jax.distributed.initialize(
            arguments.coordinator,
            arguments.processes,
            arguments.process,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    try:
        train(arguments)
    except (Refused, NotSaved) as error:
        # One shall speak: on one machine the rest are killed as soon as it ends. If all have the
        # same reason it is the last, since process 0's end is an error for the others, and so may
        # be that of one which could not save.
        is_last = jax.process_index() == jax.process_count() - 1
        if jax.process_count() > 1:
            time.sleep(isinstance(error, NotSaved) + (not is_last))
        raise
    except jax.errors.JaxRuntimeError as error:
        why = str(error).splitlines()[0]
        message = f"Process {jax.process_index()} stops, perhaps since another one is gone: {why}"
        end(f"{message}. {AGAIN}", GONE)
    if jax.process_count() > 1:
        jax.distributed.shutdown()  # wait for the others, which may still ask the coordinator
    return 0


if __name__ == "__main__":
    sys.exit(run(main, "Interrupted; start it again with the same arguments to go on."))
