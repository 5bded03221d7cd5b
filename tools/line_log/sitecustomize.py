"""Write down which lines of the package a process executes, its children's included.

Python imports this file at its start where its folder is in PYTHONPATH. LINE_LOG names a folder:
each process writes a file there, at once, since nbval ends a kernel without asking it.
"""

import os
import sys
import threading

FOLDER, PACKAGE = os.environ.get("LINE_LOG"), os.environ.get("LINE_LOG_PACKAGE", "")


def watch():
    seen, log = set(), None

    def note(frame, event, _):
        nonlocal log
        place = frame.f_code.co_filename, frame.f_lineno
        if place not in seen:
            seen.add(place)
            if log is None:
                log = open(os.path.join(FOLDER, f"{os.getpid()}.txt"), "a", buffering=1)  # noqa: SIM115
            log.write(f"{os.path.basename(place[0])}:{place[1]}\n")
        return note

    def begin(frame, event, argument):
        if os.path.dirname(frame.f_code.co_filename) == PACKAGE:  # not unrolled.lab
            return note(frame, event, argument)

    threading.settrace(begin)
    sys.settrace(begin)


if FOLDER:
    watch()
