"""Every notebook under hostile conditions, and what it compiles for other platforms.

`make robustness` runs this file; `make test` does not collect it. Each chapter, page and solution
runs

- twice in one kernel, from its first cell to its last and then again, and prints the same;
- with a home folder in which nothing can be written;
- without a network: `unshare` takes it away where that is allowed, and Python's sockets refuse any
  other machine in any case (site/sitecustomize.py);
- while each program that `jax.jit` compiles is lowered for CUDA, ROCm and TPU too.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from conftest import flags_of
from tools import notebooks

SITE = Path(__file__).with_name("site")
BOOK = notebooks.ROOT / "book"
NOTEBOOKS = [path.relative_to(BOOK).with_suffix("") for path in notebooks.all_notebooks()]
BEGIN = """\
import socket, pathlib, other_platforms
for host in ("192.0.2.1", "example.org"):
    try:
        socket.create_connection((host, 443), timeout=1)
    except OSError:
        pass
    else:
        raise AssertionError("there is a network")
try:
    (pathlib.Path.home() / "unrolled").mkdir()
except OSError:
    pass
else:
    raise AssertionError("the home folder can be written")
other_platforms.watch()"""


@pytest.fixture(scope="module", autouse=True)
def loopback():
    """In a network of its own, which `unshare` gives, even this machine's address is down."""
    if sys.platform != "linux":
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack("16xh14x", fcntl.ioctl(any_socket, 0x8913, request))
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which nothing can be written, by root neither."""
    folder = tmp_path_factory.mktemp("home")
    folder.chmod(0o555)
    if os.geteuid():
        yield str(folder)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", folder], check=True)
    yield str(folder)
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", NOTEBOOKS, ids=str)
def robust_notebook(name, home, tmp_path):
    path = BOOK / name.with_suffix(".ipynb")
    stored = notebooks.read(path)
    once = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    for cell in once:
        cell.outputs, cell.execution_count = [], None
    again = copy.deepcopy(once)
    for cell in again:
        cell.id = f"{cell.id}-again"
    begin, end = (nbformat.v4.new_code_cell(text) for text in (BEGIN, "other_platforms.report()"))
    book = nbformat.v4.new_notebook(cells=[begin, *once, *again, end], metadata=stored.metadata)

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYTEST_"))}
    environment |= {"HOME": home, "PYTHONPATH": str(SITE), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = flags_of(path)
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)

    expected = [cell for cell in stored.cells if cell.cell_type == "code"]
    for run, name in ((once, "first"), (again, "second")):
        for index, (cell, reference) in enumerate(zip(run, expected)):
            assert printed(cell) == printed(reference), f"{name} run, code cell {index + 1}"
    found = json.loads(printed(end).splitlines()[-1])
    print(f"{name}: {len(found['lowered'])} programs lower for CUDA, ROCm and TPU")
    if found["call Python"]:
        print(f"not tried, since they call Python: {', '.join(found['call Python'])}")
    assert not found["failures"]
    assert found["lowered"] or "solutions" in name.parts, "nothing was compiled"


def printed(cell) -> str:
    texts = [output.get("text", "") for output in cell.outputs if output.get("name") == "stdout"]
    return notebooks.masked("".join(texts))
