"""What a compiled program sends between devices, read from its text (chapter 13)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|[^,\s]+)")


class Collective(NamedTuple):
    """One operation of a compiled program in which devices exchange arrays.

    Args:
      kind: `all-reduce` (every device gets the sum), `all-gather` (every device gets all shares),
        `reduce-scatter` (each gets its share of the sum), `all-to-all` (each hands every other a
        part) or `collective-permute` (each hands its array to one other).
      shape: what comes out of it on one device, such as `f32[48,24]`.
      size: the bytes of that.
      group: how many devices exchange with each other.
      times: how often it runs when the program runs once.
      in_loop: whether it stands in a loop.
    """

    kind: str
    shape: str
    size: int
    group: int
    times: int
    in_loop: bool

    @property
    def sent(self) -> int:
        """The bytes that one device sends in one run of the program, passing them on in a ring.

        Example:
          >>> Collective("all-reduce", "f32[100]", 400, group=4, times=1, in_loop=False).sent
          600
        """
        rounds = {
            "all-reduce": 2 * (self.group - 1) / self.group,
            "all-gather": (self.group - 1) / self.group,
            "reduce-scatter": self.group - 1,
            "all-to-all": (self.group - 1) / self.group,
            "collective-permute": 1,
        }
        return round(self.times * self.size * rounds[self.kind])


def collectives(compiled: Any) -> list[Collective]:
    """List what a compiled program sends between devices.

    Args:
      compiled: `jax.jit(function).lower(...).compile()`, or its `as_text()`.

    Returns:
      One `Collective` for each operation, those outside of loops first. A loop whose number of
      rounds the compiler did not write down counts as one round.

    Example:
      >>> import jax
      >>> collectives(jax.jit(lambda x: x + 1).lower(1.0).compile())
      []
    """
    text = compiled if isinstance(compiled, str) else compiled.as_text()
    computations, entry = _computations(text)
    found = []
    for lines, times, in_loop in _visit(computations, entry, 1, False):
        for line in lines:
            if match := _COLLECTIVE.search(line):
                result, kind, is_start = match.groups()
                arrays = _ARRAY.findall(result)
                if is_start and kind != "all-reduce":  # what goes in, what comes out, and scratch
                    arrays = arrays[1:2]
                shape = ", ".join(f"{dtype}[{sizes}]" for dtype, _, sizes in arrays)
                size = sum(_bytes(*array) for array in arrays)
                found.append(Collective(kind, shape, size, _group(line), times, in_loop))
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the name of the one that is run."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match.group(2)
            computations[name] = []
            entry = name if match.group(1) else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _visit(
    computations: dict[str, list[str]], name: str, times: int, in_loop: bool
) -> Iterator[tuple[list[str], int, bool]]:
    """Walk through a computation and all that it calls, with how often each of them runs."""
    lines = computations.get(name, [])
    yield lines, times, in_loop
    for line in lines:
        is_loop = " while(" in line
        rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', line) if is_loop else None
        inner_times = times * int(rounds.group(1)) if rounds else times
        for _, called in _CALLED.findall(line):
            for inner in re.findall(r"[\w.\-]+", called):
                yield from _visit(computations, inner, inner_times, in_loop or is_loop)


def _bytes(dtype: str, bits: str, sizes: str) -> int:
    count = math.prod(int(size) for size in sizes.split(",") if size)
    return count if dtype == "pred" else count * int(bits) // 8


def _group(line: str) -> int:
    """How many devices exchange with each other; the compiler has several ways to write it."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", match.group(2)))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return match.group(1).count("{")
    return 1
