"""The training of examples/ is killed at random moments and ends as if nothing had happened.

Starting Python with JAX takes longer than the training, so a second process imports everything
once, and every run is a fork of it, made before JAX has looked for devices.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "train_distributed.py"
SIZES = ["--steps", "30", "--hidden", "4", "--batch", "8", "--every", "4"]


def fork(module, arguments: list[str], output: Path) -> int:
    """Run the example in a fork that writes into the file `output`; return its process number."""
    child = os.fork()
    if not child:
        code = 1
        try:
            where = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(where, 1)
            os.dup2(where, 2)
            sys.argv = [str(EXAMPLE), *SIZES, *arguments]
            code = module.main()
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def run(module, folder: Path, kills: int = 0, processes: int = 1) -> dict:
    """Train in `folder`; kill it so many times first, at random moments.

    The last kill comes soon after a checkpoint, earlier ones at any time: most often before the
    first checkpoint, while the program is still being compiled.
    """
    moments, output = [], folder.with_suffix(".txt")
    for left in range(kills, -1, -1):
        before, arguments = latest(folder), ["--checkpoints", str(folder)]
        if processes > 1:
            arguments += ["--processes", str(processes), "--coordinator", module.free_address()]
        children = [
            fork(module, [*arguments, "--process", str(index)], output)
            for index in range(processes)
        ]
        if left:
            while left == 1 and latest(folder) == before and is_running(children[0]):
                time.sleep(0.002)
            moments.append(random.uniform(0, 0.2 if left == 1 else 2))
            time.sleep(moments[-1])
            for child in children:
                os.kill(child, signal.SIGKILL)
        statuses = [os.waitpid(child, 0)[1] for child in children]
    text = output.read_text()
    return {"statuses": statuses, "moments": moments, "text": text, **report(text)}


def report(text: str) -> dict[str, str]:
    """What the training says when it has come to its end."""
    return dict(line.split(": ") for line in text.splitlines() if line.count(": ") == 1)


def latest(folder: Path) -> int:
    """The step of the last checkpoint that is complete."""
    names = [path.name for path in folder.glob("*")]
    return max([int(name) for name in names if name.isdigit()], default=0)


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def in_one_process(folder: Path) -> None:
    """Import the example once; run it undisturbed, killed twice, and killed as two processes."""
    spec = importlib.util.spec_from_file_location("train_distributed", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = {
        "calm": run(module, folder / "calm"),
        "killed": run(module, folder / "killed", kills=2),
        "two processes": run(module, folder / "two", kills=1, processes=2),
    }
    prepare = module.prepare
    module.prepare = lambda *arguments: with_a_nan(*prepare(*arguments))
    results["one NaN"] = run(module, folder / "nan") | {"latest": latest(folder / "nan")}
    print(json.dumps(results))


def with_a_nan(update, state, batch_of):
    """What the example's `prepare` returns, with one NaN in the batch of step 6."""

    def hurt(step):
        inputs, *rest = batch_of(step)
        return [inputs.at[1, 2, 3].set(float("nan")) if step == 6 else inputs, *rest]

    return update, state, hurt


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")} | os.environ
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["calm", "killed", "two processes"])
def test_every_step_is_done_once(results, name):
    assert not any(results[name]["statuses"]), results[name]["text"]
    assert results[name]["steps"] == "30"


def test_a_killed_training_ends_with_the_same_bits(results):
    calm, killed = results["calm"], results["killed"]
    assert len(killed["moments"]) == 2 and killed["text"].count("Going on from step") in (1, 2)
    assert killed["final loss"] == calm["final loss"], killed["moments"]
    assert killed["fingerprint"] == calm["fingerprint"], killed["moments"]


def test_the_progress_bar_moves(results):
    shown = [line for line in results["calm"]["text"].splitlines() if line.startswith("[")]
    assert len(shown) == 10 and shown[-1].startswith(f"[{'#' * 30}] 30/30")


def test_two_processes_compute_what_one_does(results):
    one, two = (float(results[name]["final loss"]) for name in ("calm", "two processes"))
    assert two == pytest.approx(one, rel=1e-4)


def test_a_nan_in_one_batch_stops_the_training_with_the_step_and_the_parameter(results):
    found = results["one NaN"]
    assert [os.waitstatus_to_exitcode(status) for status in found["statuses"]] == [3]
    message = next(line for line in found["text"].splitlines() if "Training stops" in line)
    assert message.startswith("Training stops: step 6 is not finite: gradient.backwards.cell.")
    assert "; inputs: 1 NaN; loss: 1 NaN." in message
    assert found["latest"] == 4, "the last checkpoint is from before the NaN"


def test_when_one_of_two_processes_dies_none_is_left(tmp_path):
    command = [sys.executable, str(EXAMPLE), *SIZES, "--processes", "2"]
    command += ["--checkpoints", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        children = []
        while len(children) < 2 and launcher.poll() is None:
            time.sleep(0.02)
            listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
            children = listed.read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and "Process 1 is gone. Start again" in errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)


if __name__ == "__main__":
    in_one_process(Path(sys.argv[1]))
