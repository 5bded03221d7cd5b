"""The training of examples/ is killed at random moments and ends as if nothing had happened.

And what would go on with a mixture, or could not be saved, is refused in a line.

Starting Python with JAX takes longer than the training, so a second process imports everything
once, and every run is a fork of it, made before JAX has looked for devices.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXAMPLE = EXAMPLES / "train_distributed.py"
SIZES = ["--steps", "30", "--hidden", "4", "--batch", "8", "--every", "4"]


def fork(module, arguments: list[str], output: Path) -> int:
    """Run the example in a fork that writes into the file `output`; return its process number."""
    child = os.fork()
    if not child:
        code = 1
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests
        try:
            where = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(where, 1)
            os.dup2(where, 2)
            sys.argv = [str(EXAMPLE), *SIZES, *arguments]
            code = module.run(module.main, "Interrupted.")
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def run(module, folder: Path, *arguments: str, kills: int = 0, processes: int = 1) -> dict:
    """Train in `folder`; kill it so many times first, at random moments.

    The last kill comes soon after a checkpoint, earlier ones at any time: most often before the
    first checkpoint, while the program is still being compiled.
    """
    moments, output = [], folder.with_suffix(".txt")
    for left in range(kills, -1, -1):
        before, given = latest(folder), ["--checkpoints", str(folder), *arguments]
        if processes > 1:
            given += ["--processes", str(processes), "--coordinator", module.free_address()]
        children = [
            fork(module, given + ["--process", str(index)] * (processes > 1), output)
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


def run_different(module, folder: Path) -> dict:
    """Start two processes that are to train together with different arguments."""
    output, given = folder.with_suffix(".txt"), ["--checkpoints", str(folder), "--processes", "2"]
    given += ["--coordinator", module.free_address()]
    children = [
        fork(module, [*given, "--process", str(index), "--hidden", hidden], output)
        for index, hidden in enumerate(("12", "24"))
    ]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return {"statuses": statuses, "text": output.read_text()}


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
    """Import the example once; run it undisturbed, killed, and with whatever may go wrong."""
    sys.path.insert(0, str(EXAMPLES))
    module = importlib.import_module("train_distributed")
    results = {
        "calm": run(module, folder / "calm"),
        "killed": run(module, folder / "killed", kills=2),
        "two processes": run(module, folder / "two", kills=1, processes=2),
    }
    run(module, folder / "longer", "--steps", "10", "--every", "10")
    results["longer"] = run(module, folder / "longer")
    damaged = folder / "damaged"
    shutil.copytree(folder / "calm", damaged)
    truncate(damaged / "30")
    results["damaged"] = run(module, damaged) | {"folder": str(damaged)}
    shutil.rmtree(damaged / "30")
    results["elsewhere"] = run(module, damaged, "--devices", "2", "--every", "1")
    results["different"] = run_different(module, folder / "different")
    results["interrupted"] = interrupt(module, folder / "interrupted")

    prepare = module.prepare
    module.prepare = lambda *arguments: lose(arguments[0].checkpoints) or prepare(*arguments)
    results["lost"] = run(module, folder / "lost")
    module.prepare = lambda *arguments: with_a_nan(*prepare(*arguments))
    results["one NaN"] = run(module, folder / "nan") | {"latest": latest(folder / "nan")}
    print(json.dumps(results))


def truncate(step: Path) -> None:
    for file in step.rglob("d/*"):
        os.truncate(file, file.stat().st_size // 2)


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def forget(step: Path) -> None:
    (step / "default" / "_METADATA").unlink(missing_ok=True)


def lose(folder: Path) -> None:
    """Make it impossible to save anything in a folder, for any user."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.touch()


def interrupt(module, folder: Path) -> dict:
    """Train without an end and press Ctrl-C after a checkpoint."""
    output = folder.with_suffix(".txt")
    child = fork(module, ["--checkpoints", str(folder), "--steps", "1000000"], output)
    while not latest(folder) and is_running(child):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    return {"statuses": [os.waitpid(child, 0)[1]], "text": output.read_text()}


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


def code_and_words(result: dict) -> tuple[int, list[str]]:
    """How a process ended, and what it said besides its progress."""
    lines = [line for line in result["text"].splitlines() if not line.startswith("[")]
    return os.waitstatus_to_exitcode(result["statuses"][0]), lines


@pytest.mark.parametrize("name", ["calm", "killed", "two processes", "longer", "elsewhere"])
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


def test_a_run_can_be_made_longer_and_is_then_what_it_would_have_been(results):
    longer = results["longer"]
    assert "Going on from step 10." in longer["text"]
    assert longer["fingerprint"] == results["calm"]["fingerprint"]


def test_a_run_goes_on_with_another_number_of_devices_and_of_steps_between_checkpoints(results):
    moved = results["elsewhere"]
    assert "Going on from step 28." in moved["text"]
    assert float(moved["final loss"]) == pytest.approx(float(results["calm"]["final loss"]), 1e-4)


def test_a_damaged_checkpoint_is_named_and_what_to_do_about_it(results):
    code, lines = code_and_words(results["damaged"])
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith(f"The checkpoint {results['damaged']['folder']}/30 is damaged (")
    assert lines[0].endswith(
        "start again with the same arguments: the run then goes on from step 28."
    )


def test_processes_with_different_arguments_say_so(results):
    assert [os.waitstatus_to_exitcode(status) for status in results["different"]["statuses"]][
        1
    ] == 2
    wanted = "Process 0 was given --hidden 12, process 1 --hidden 24; expected the same arguments."
    assert wanted in results["different"]["text"].splitlines()


def test_ctrl_c_ends_in_one_line(results):
    assert code_and_words(results["interrupted"]) == (130, ["Interrupted."])


def test_a_checkpoint_that_cannot_be_saved_ends_the_training_in_one_line(results):
    code, lines = code_and_words(results["lost"])
    assert code == 1 and len(lines) == 1, lines
    assert lines[0].startswith("A checkpoint could not be saved in ")
    assert "/lost (NotADirectoryError: " in lines[0]


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


@pytest.fixture(scope="module")
def distributed():
    return importlib.import_module("train_distributed")


@pytest.fixture(scope="module")
def language():
    return importlib.import_module("train_language")


@pytest.fixture(scope="module")
def checkpointing():
    return importlib.import_module("checkpointing")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--every 0", "argument --every: 0 was given; expected a whole number, at least 1."),
        ("--steps 0", "argument --steps: 0 was given"),
        ("--steps few", "argument --steps: few was given"),
        ("--batch 0", "argument --batch: 0 was given"),
        ("--batch 500", "expected a whole number, at least 1 and at most 270."),
        ("--hidden -3", "argument --hidden: -3 was given"),
        ("--seed -1", "expected a whole number, at least 0 and at most 4294967295."),
        ("--cut-units 0", "argument --cut-units: 0 was given"),
        ("--hidden 10 --cut-units 4", "--hidden is 10 and --cut-units 4; expected units that"),
        ("--devices 0", "argument --devices: 0 was given"),
        ("--processes 0", "argument --processes: 0 was given"),
        ("--process -1", "argument --process: -1 was given"),
        ("--processes 2 --process 0", "--process was given alone; expected --coordinator too"),
        ("--coordinator here:1", "--coordinator was given alone; expected --process too"),
        (
            "--processes 2 --process 2 --coordinator here:1",
            "--process is 2 and --processes 2; expected a number below that",
        ),
        (
            "--processes 2 --process 0 --coordinator here",
            "--coordinator is 'here'; expected host:port",
        ),
        ("--cluster --processes 2", "--cluster asks the cluster for --processes"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(
    distributed, monkeypatch, capsys, given, told
):
    check_refusal(distributed, monkeypatch, capsys, given, told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--round 0", "argument --round: 0 was given; expected a whole number, at least 1."),
        ("--updates 0", "argument --updates: 0 was given"),
        ("--layers 0", "argument --layers: 0 was given"),
        ("--rate 0", "--rate is 0.0; expected a number above 0."),
        ("--rate nan", "--rate is nan; expected a number above 0."),
        ("--dropout 1", "--dropout is 1.0; expected at least 0 and less than 1."),
    ],
)
def test_wrong_arguments_of_the_language_model_are_refused(
    language, monkeypatch, capsys, given, told
):
    check_refusal(language, monkeypatch, capsys, given, told)


def check_refusal(module, monkeypatch, capsys, given: str, told: str) -> None:
    monkeypatch.setattr("sys.argv", ["example", *given.split()])
    with pytest.raises(SystemExit) as ended:
        module.parse_arguments()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_arguments_that_belong_together_are_taken(distributed, monkeypatch):
    line = "--hidden 12 --cut-units 4 --processes 2 --process 1 --coordinator 10.0.0.1:1234"
    monkeypatch.setattr("sys.argv", ["example", *line.split()])
    assert distributed.parse_arguments().process == 1


@pytest.mark.parametrize("name", ["distributed", "language"])
@pytest.mark.parametrize("place", ["file", "file/in it"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_training(
    request, monkeypatch, tmp_path, name, place
):
    module = request.getfixturevalue(name)
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["example", "--checkpoints", str(tmp_path / place)])
    monkeypatch.setattr(module, "prepare", None)
    with pytest.raises(module.Refused, match=r"--checkpoints is .*file.*, where nothing can be"):
        module.main()


def test_a_folder_that_cannot_be_written_is_refused(checkpointing, monkeypatch, tmp_path):
    def write(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(checkpointing.Refused, match=r"nothing can be saved \(Permission denied\)"):
        checkpointing.claim(tmp_path, {"--seed": 0})


def test_a_folder_belongs_to_one_run_from_its_first_checkpoint_on(checkpointing, tmp_path):
    folder, claim = tmp_path / "new" / "run", checkpointing.claim
    claim(folder, {"--seed": 3, "--batch": 8})
    claim(folder, {"--seed": 0, "--batch": 8})  # nothing was saved yet
    (folder / "20").mkdir()
    claim(folder, {"--seed": 0, "--batch": 8})
    assert sorted(path.name for path in folder.iterdir()) == ["20", "run.json"]
    with pytest.raises(checkpointing.Refused) as told:
        claim(folder, {"--seed": 3, "--batch": 8})
    assert str(told.value) == (
        f"{folder} holds a run with --seed 0; this one has --seed 3. Use the same, or another "
        "--checkpoints."
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "is missing"), ("{", "cannot be read (JSONDecodeError"), ("[1]", "cannot be read (Ty")],
)
def test_a_folder_that_does_not_say_what_it_holds_is_refused(checkpointing, tmp_path, text, told):
    (tmp_path / "20").mkdir()
    if text:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(checkpointing.Refused) as refused:
        checkpointing.claim(tmp_path, {"--seed": 0})
    assert f"run.json, which says of which run, {told}" in str(refused.value)
    mend = str(refused.value).split(f"write into {tmp_path / 'run.json'}: ")[1]
    (tmp_path / "run.json").write_text(mend)
    checkpointing.claim(tmp_path, {"--seed": 0})


# Threads of Orbax complain about each array after the first; the examples keep that silent.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, forget, empty])
def test_whatever_is_damaged_is_told(checkpointing, tmp_path, damage):
    manager = checkpointing.open_checkpoints(tmp_path)
    state = {"weights": (np.arange(3.0), {"more": np.ones(2)})}
    for step in (5, 10):
        with checkpointing.saving(tmp_path):
            manager.save(step, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    damage(tmp_path / "10")
    for step, then in ((10, "goes on from step 5"), (5, "begins anew")):
        with (
            pytest.raises(checkpointing.Refused, match=f"/{step} is damaged .* then {then}.$"),
            checkpointing.restoring(tmp_path, step),
        ):
            manager.restore(step, args=ocp.args.StandardRestore(state))
        damage(tmp_path / "5")


def test_a_run_cannot_be_made_shorter(distributed, tmp_path):
    arguments = argparse.Namespace(checkpoints=tmp_path, steps=20)
    with pytest.raises(distributed.Refused, match="holds step 30 of a run, and --steps is 20; exp"):
        distributed.restore(None, 30, {}, arguments)


@pytest.mark.parametrize("name", ["batch", "hidden", "seed"])
def test_a_run_does_not_go_on_with_other_arguments(distributed, monkeypatch, tmp_path, name):
    monkeypatch.setattr(distributed, "train", lambda _: (tmp_path / "20").mkdir(exist_ok=True))
    line = ["example", "--checkpoints", str(tmp_path), "--hidden", "4"]
    monkeypatch.setattr("sys.argv", line)
    assert distributed.main() == 0
    monkeypatch.setattr("sys.argv", [*line, "--steps", "400", "--every", "7", "--cut-units", "2"])
    assert distributed.main() == 0
    monkeypatch.setattr("sys.argv", [*line, f"--{name}", "16"])
    with pytest.raises(distributed.Refused, match=rf"; this one has --{name} 16\. Use the same"):
        distributed.main()


@pytest.mark.parametrize(
    "other",
    [
        "updates 60",
        "hidden 16",
        "layers 3",
        "batch 8",
        "steps 32",
        "rate 0.1",
        "dropout 0.1",
        "seed 16",
        "text",
    ],
)
def test_a_language_model_does_not_go_on_with_other_arguments(
    language, monkeypatch, tmp_path, other
):
    class Claimed(Exception):
        pass

    def encode(_):
        raise Claimed

    monkeypatch.setattr(language, "encode", encode)
    line = ["example", "--checkpoints", str(tmp_path)]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(Claimed):
        language.main()
    (tmp_path / "20").mkdir()
    monkeypatch.setattr("sys.argv", [*line, "--round", "30"])
    with pytest.raises(Claimed):
        language.main()
    name, *value = other.split()
    if value:
        monkeypatch.setattr("sys.argv", [*line, f"--{name}", *value])
    else:
        monkeypatch.setattr(language, "python_manual", lambda: "another Python's")
    with pytest.raises(language.Refused, match=rf"; this one has (--)?{other}.*\. Use the same"):
        language.main()


def test_a_language_model_goes_on_with_other_rounds_to_the_last_update(
    language, monkeypatch, capsys, tmp_path
):
    text = language.python_manual()[:2_000]
    monkeypatch.setattr(language, "python_manual", lambda: text)
    monkeypatch.setattr(language, "HELD_OUT", 200)
    monkeypatch.setattr(language, "write", lambda *_: [0])
    line = ["example", "--updates", "4", "--hidden", "4", "--layers", "1", "--batch", "2"]
    line += ["--steps", "4", "--checkpoints", str(tmp_path)]

    def updates(*arguments: str) -> dict[str, str]:
        monkeypatch.setattr("sys.argv", [*line, *arguments])
        language.main()
        lines = capsys.readouterr().out.splitlines()
        return dict(part.split(": ") for part in lines if part.startswith("update"))

    whole = updates("--round", "3")
    assert list(whole) == ["update     3", "update     4"]
    shutil.rmtree(tmp_path / "4")
    assert updates("--round", "2") == {"update     4": whole["update     4"]}


@pytest.mark.parametrize(
    ("codes", "end", "told"),
    [
        ("0, 0", 0, ""),
        ("0, 2", 2, ""),
        ("None, 2", 2, ""),
        ("3, 3", 3, ""),
        ("0, 1", 1, "Process 1 is gone. Start again"),
    ],
)
def test_only_what_a_new_start_would_cure_is_to_be_started_again(
    distributed, monkeypatch, capsys, tmp_path, codes, end, told
):
    script = tmp_path / "process.py"
    script.write_text(
        f"import sys, time; code = ({codes})[int(sys.argv[-1])]; "
        "time.sleep(60) if code is None else sys.exit(code)"
    )
    monkeypatch.setattr("sys.argv", [str(script)])
    assert distributed.start_all(argparse.Namespace(processes=2)) == end
    said = capsys.readouterr().err
    assert said.startswith(told) and bool(said) == bool(told)


def test_ctrl_c_reaches_only_the_process_that_started_the_others(
    distributed, monkeypatch, tmp_path
):
    script = tmp_path / "process.py"
    script.write_text("import os, sys; sys.exit(os.getpgrp() != os.getpid())")
    monkeypatch.setattr("sys.argv", [str(script)])
    assert distributed.start_all(argparse.Namespace(processes=2)) == 0


if __name__ == "__main__":
    in_one_process(Path(sys.argv[1]))
