"""What both trainings share: whose checkpoints a folder holds, and how a process ends.

Beside its checkpoints a folder keeps `run.json`, with everything that decides what the training
computes. Other arguments are refused before JAX looks for devices: they would go on with a mixture.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import textwrap
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import jax
import orbax.checkpoint as ocp

SETTINGS = "run.json"
AGAIN = "Start again with the same arguments: training goes on from the last checkpoint."
GONE = 1  # what a process ends with when starting it again will help
REFUSED = 2  # and when it will not, as after wrong arguments
NOT_FINITE = 3
INTERRUPTED = 130


class Refused(Exception):
    """Something that starting again would not cure; the message says what would."""


class NotSaved(Exception):
    """A checkpoint could not be written."""


def whole_number(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """Return what reads such a number from the command line, a `type` of argparse."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = smallest - 1
        if smallest <= number and (largest is None or number <= largest):
            return number
        most = "" if largest is None else f" and at most {largest}"
        raise argparse.ArgumentTypeError(
            f"{text} was given; expected a whole number, at least {smallest}{most}."
        )

    return read


def claim(folder: Path, settings: dict) -> None:
    """Make the folder of checkpoints, or make sure that it holds those of this very run.

    Args:
      folder: where the checkpoints are, or will be.
      settings: all that decides what the run computes, by name, as JSON can hold it. It may be
        different as long as nothing is saved.

    Raises:
      Refused: the folder cannot be written, or holds another run, or one that nobody knows.
    """
    file, new = folder / SETTINGS, folder / f"{SETTINGS}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            new.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            if not saved_steps(folder):
                new.replace(file)  # whole or not at all, whenever the process is killed
                return
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(
            f"--checkpoints is {folder}, where nothing can be saved ({error.strerror}); expected a "
            "folder that can be written, or the name of a new one."
        ) from None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in settings | found if settings.get(name) != found.get(name)]
    except (OSError, ValueError, TypeError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise Refused(
            f"{folder} holds checkpoints, but its {SETTINGS}, which says of which run, "
            f"{'is missing' if missing else f'cannot be read ({reason(error)})'}. Use another "
            "--checkpoints; or, if you know that the run had the same arguments as this one, write "
            f"into {file}: {json.dumps(settings)}"
        ) from None
    if different:
        theirs, ours = (
            ", ".join(f"{name} {values.get(name)}" for name in different)
            for values in (found, settings)
        )
        raise Refused(
            f"{folder} holds a run with {theirs}; this one has {ours}. Use the same, or another "
            "--checkpoints."
        )


def saved_steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in a folder, in order."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """Return what saves and restores; it keeps two checkpoints, in case that one is damaged."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is told below, in one line
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        # In the background, one of several that could not save would wait for the others, as they
        # for it.
        enable_async_checkpointing=jax.process_count() == 1,
    )
    return ocp.CheckpointManager(
        folder.absolute(),
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(),
    )


@contextmanager
def restoring(folder: Path, step: int) -> Iterator[None]:
    """Refuse to go on from a checkpoint that cannot be restored, and say what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # another process is gone
    except Exception as error:
        older = [saved for saved in saved_steps(folder) if saved < step]
        then = f"goes on from step {older[-1]}" if older else "begins anew"
        raise Refused(
            f"The checkpoint {folder / str(step)} is damaged ({reason(error)}). Remove this "
            f"folder and start again with the same arguments: the run then {then}."
        ) from error


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Tell an error of Orbax, which may be of the checkpoint before, from all others."""
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # another process is gone
    except Exception as error:
        raise NotSaved(
            f"A checkpoint could not be saved in {folder} ({reason(error)}). See that there is "
            f"room and that it can be written. {AGAIN}"
        ) from error


def reason(error: Exception) -> str:
    """What an error says, in a line."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 160, placeholder=' …')}"


def run(main: Callable[[], int | None], interrupted: str) -> int:
    """Call `main`; whatever stops it ends the process for certain, and mostly in one line."""
    # When one array cannot be saved or restored, threads of Orbax would show a traceback for each.
    sys.unraisablehook = lambda _: None
    # A KeyboardInterrupt that is raised in somebody's callback can be lost there; this cannot. Who
    # starts it in the background of a script has Ctrl-C ignored, and it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: end(interrupted, INTERRUPTED))
    try:
        return main() or 0
    except KeyboardInterrupt:
        end(interrupted, INTERRUPTED)
    except Refused as error:
        end(str(error), REFUSED)
    except FloatingPointError as error:
        end(f"Training stops: {error}. No later step was saved.", NOT_FINITE)
    except NotSaved as error:
        end(str(error), GONE)
    except Exception:
        end(traceback.format_exc(), GONE)


def end(message: str, code: int) -> NoReturn:
    """Say why and end this process at once: an orderly exit would wait for Orbax's threads."""
    try:
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
    finally:
        os._exit(code)
