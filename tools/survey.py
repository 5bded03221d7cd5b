"""Break the package everywhere, by rule: how many of the bugs do the notebooks notice?

`make mutants` tries the mutants of `tools/mutation.py`, or a sample of them, with nbval as the
judge. Each runs against the notebooks that execute its line, quickest first, until one turns red; a
mutant in a line that no notebook executes has survived at once. Every verdict is logged under
_build/mutation, so that the next run goes on where this one ends. `tools/survivors.toml` says of
survivors why: those that are equivalent, which no test can catch, do not count.
"""

from __future__ import annotations

import argparse
import collections
import difflib
import functools
import hashlib
import json
import random
import re
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools import judge, mutation

PACKAGE = judge.ROOT / "src" / "unrolled"
FOLDER = judge.ROOT / "_build" / "mutation"
SURVIVORS = judge.ROOT / "tools" / "survivors.toml"
WANTED = 0.95  # the share of all bugs that the notebooks have to notice

Bug = tuple[str, mutation.Mutant]  # the file, and what is wrong in it


def all_bugs() -> list[Bug]:
    """Return every mutant of the package, except of the laboratory; a few are rewritings."""
    return [
        (file.name, mutant)
        for file in sorted(PACKAGE.glob("*.py"))
        for mutant in mutation.mutants(file.read_text(encoding="utf-8"), rewritings=True)
    ]


def is_rewriting(bug: Bug) -> bool:
    """Whether a mutant compiles to the same code; asked of a sample only, since it takes time."""
    file, mutant = bug
    return mutation.is_rewriting(mutant, (PACKAGE / file).read_text(encoding="utf-8"))


def sample(bugs: list[Bug], size: int, seed: int) -> list[Bug]:
    """Draw a sample in which each file and each operator has its share."""
    ordered = sorted(bugs, key=lambda bug: (bug[0], bug[1].operator, bug[1].start, bug[1].new))
    if not 0 < size < len(ordered):
        return ordered
    step = len(ordered) / size
    first = random.Random(seed).random() * step
    chosen = [ordered[int(first + index * step)] for index in range(size)]
    random.Random(seed).shuffle(chosen)  # so that the first half is a sample too
    return chosen


# What is known of survivors


@dataclass(frozen=True)
class Explanation:
    """Why a survivor survived."""

    file: str
    function: str
    before: str
    after: str
    equivalent: bool
    why: str

    def explains(self, bug: Bug) -> bool:
        file, mutant = bug
        theirs = file, mutant.function, mutant.before, mutant.after
        return theirs == (self.file, self.function, self.before, self.after)


def explanations(path: Path = SURVIVORS) -> list[Explanation]:
    """Read the survivors' file: each entry explains one or several changes in a function."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["survivor"]
    return [
        Explanation(entry["file"], entry["function"], *change, entry["equivalent"], entry["why"])
        for entry in entries
        for change in entry["changes"]
    ]


def outdated(known: Iterable[Explanation], bugs: list[Bug]) -> list[Explanation]:
    """Return the explanations of mutants that do not exist."""
    existing = {(file, m.function, m.before, m.after) for file, m in bugs}
    return [e for e in known if (e.file, e.function, e.before, e.after) not in existing]


# Which notebook executes which line


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@functools.cache
def digest_of_notebook(path: Path, red: str = "") -> str:
    """Of what nbval runs and compares, up to the cell that turned red: prose changes no verdict."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    last = re.search(r"::Cell (\d+)$", red)
    cells = cells[: int(last[1]) + 1] if last else cells
    return digest(*(json.dumps([c.source, c.outputs, c.metadata.get("tags")]) for c in cells))


@dataclass
class Coverage:
    """What a notebook executes of the package, and how long it takes."""

    seconds: float
    lines: dict[str, set[int]]


def measure(notebooks: list[Path], workers: int) -> dict[Path, Coverage]:
    """Return each notebook's coverage, measured where it is not known yet.

    What was measured with another version of the package is carried over: a line that has changed
    since counts as executed, so that the notebook is asked.
    """
    sources = {file.name: file.read_text(encoding="utf-8") for file in PACKAGE.glob("*.py")}

    def cover(notebook: Path) -> Coverage | None:
        kept = FOLDER / "lines" / f"{notebook.stem}.json"
        key = digest_of_notebook(notebook)
        if not kept.exists() or json.loads(kept.read_text())["notebook"] != key:
            log = FOLDER / "lines" / notebook.stem
            shutil.rmtree(log, ignore_errors=True)
            log.mkdir(parents=True)
            red, seconds = judge.without_a_bug(notebook, log)
            if red:  # writing lines down costs time, and some cells compare times
                red, seconds = judge.without_a_bug(notebook, log)
            if red:
                return None
            places = {line for file in log.iterdir() for line in file.read_text().splitlines()}
            lines = collections.defaultdict(list)
            for file, number in sorted(place.split(":") for place in places):
                lines[file].append(int(number))
            table = {"notebook": key, "seconds": seconds, "lines": lines, "sources": sources}
            kept.write_text(json.dumps(table))
        table = json.loads(kept.read_text())
        lines = {
            file: carried(set(table["lines"].get(file, [])), table["sources"].get(file, ""), text)
            for file, text in sources.items()
        }
        return Coverage(table["seconds"], lines)

    with ThreadPoolExecutor(workers) as pool:
        coverage = dict(zip(notebooks, pool.map(cover, notebooks)))
    if None in coverage.values():
        raise SystemExit("A notebook is red without any bug.")
    return coverage


def carried(lines: set[int], old: str, new: str) -> set[int]:
    """Move line numbers from one version of a file to another; new lines are all among them."""
    if old == new:
        return lines
    now = set(range(1, new.count("\n") + 2))
    matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            if block.a + offset + 1 not in lines:
                now.discard(block.b + offset + 1)
    return now


# Verdicts


class Log:
    """Every verdict so far, one a line, found again by the mutated file and the notebooks.

    An entry names the notebooks that were green, each with its digest, and of the red one the
    digest of what nbval had run by then.
    """

    def __init__(self, path: Path, digest_of: Callable[[str, str], str]):
        self.path, self.digest_of, self.lock = path, digest_of, threading.Lock()
        self.verdicts = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.verdicts[entry["mutant"]] = entry

    def red(self, mutant: str) -> str:
        """The cell that noticed the mutant, if all is as it was up to that cell."""
        entry = self.verdicts.get(mutant)
        if not entry or not entry["red"]:
            return ""
        same = entry["digest"] == self.digest_of(_notebook(entry["red"]), entry["red"])
        return entry["red"] if same else ""

    def green(self, mutant: str) -> list[str]:
        """The notebooks that did not notice, and are as they were."""
        green = self.verdicts.get(mutant, {}).get("green", {})
        return [name for name, digest in green.items() if self.digest_of(name, "") == digest]

    def add(self, mutant: str, red: str, green: list[str], **what: object) -> None:
        digest = self.digest_of(_notebook(red), red) if red else ""
        digests = {name: self.digest_of(name, "") for name in green}
        entry = {"mutant": mutant, "red": red, "digest": digest, "green": digests, **what}
        with self.lock, self.path.open("a") as file:
            self.verdicts[mutant] = entry
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _notebook(red: str) -> str:
    return red.split(":")[0]


class Court:
    """Tries mutants, and remembers which notebook notices the bugs of which function."""

    def __init__(self, coverage: dict[Path, Coverage], log: Log):
        self.coverage, self.log = coverage, log
        self.caught = collections.Counter()
        for entry in log.verdicts.values():
            self.caught[entry["file"], entry["function"], _notebook(entry["red"])] += 1

    def judges(self, bug: Bug) -> list[Path]:
        """The notebooks that execute a line of the bug, the likeliest and quickest first."""
        file, mutant = bug
        able = [n for n, cover in self.coverage.items() if cover.lines[file] & set(mutant.lines)]

        def delay(notebook: Path) -> tuple[int, float]:
            caught = self.caught[file, mutant.function, notebook.name]
            return -caught, self.coverage[notebook].seconds

        return sorted(able, key=delay)

    def try_bug(self, bug: Bug) -> str:
        """Return the first cell that turned red, or an empty string."""
        file, mutant = bug
        text = mutant.apply((PACKAGE / file).read_text(encoding="utf-8"))
        key = digest(file, text)
        red, green = self.log.red(key), self.log.green(key)
        left = [notebook for notebook in self.judges(bug) if notebook.name not in green]
        if red or (not left and key in self.log.verdicts):
            return red
        with judge.changed_source(file, text) as source:
            for notebook in left:
                red = judge.first_red_cell(source, notebook)
                if red:
                    break
                green.append(notebook.name)
        what = {"file": file, "function": mutant.function, "operator": mutant.operator}
        change = {"line": mutant.line, "before": mutant.before, "after": mutant.after}
        self.log.add(key, red, green, **what, **change)
        self.caught[file, mutant.function, _notebook(red)] += 1
        return red


# The report


def explanation_of(bug: Bug, known: Iterable[Explanation]) -> Explanation | None:
    return next((explanation for explanation in known if explanation.explains(bug)), None)


def fate(bug: Bug, red: str, known: Iterable[Explanation]) -> str:
    """What became of a mutant: "caught", "equivalent" or "missed"."""
    if red:
        return "caught"
    explanation = explanation_of(bug, known)
    return "equivalent" if explanation and explanation.equivalent else "missed"


def score(verdicts: dict[Bug, str], known: list[Explanation], group: int) -> list[str]:
    """Lines of a table: of each file (group 0) or operator (group 1), how many were caught."""
    counts = collections.defaultdict(collections.Counter)
    for bug, red in verdicts.items():
        name = bug[0] if group == 0 else bug[1].operator
        for row in (name, "together"):
            counts[row][fate(bug, red, known)] += 1
    lines = []
    for name, count in sorted(counts.items(), key=lambda item: (item[0] == "together", item[0])):
        lines.append(
            f"{name:<24}{count.total():6} tried{count['equivalent']:6} equivalent"
            f"{count['caught']:6} caught{count['missed']:6} missed  {share(count):6.1%}"
        )
    return lines


def share(count: collections.Counter) -> float:
    real = count["caught"] + count["missed"]
    return count["caught"] / real if real else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sample", type=int, default=0, help="so many mutants; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--file", default="", help="only files whose name contains this")
    parser.add_argument("--function", default="", help="only functions whose name contains this")
    parser.add_argument("--judges", default="", help="only these notebooks: errors,options")
    parser.add_argument("--lines", action="store_true", help="list what no notebook executes")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    every = all_bugs()
    chosen = [
        bug for bug in every if options.file in bug[0] and options.function in bug[1].function
    ]
    chosen = [bug for bug in sample(chosen, options.sample, options.seed) if not is_rewriting(bug)]
    known = explanations()
    notebooks = judge.notebooks()
    judges = [path for path in notebooks if path.stem in (options.judges or path.stem).split(",")]
    coverage = measure(judges, options.workers)
    folder = notebooks[0].parent
    log = Log(FOLDER / "log.jsonl", lambda name, red: digest_of_notebook(folder / name, red))
    court = Court(coverage, log)

    if options.lines:
        for bug in chosen:
            if not court.judges(bug):
                print(f"{bug[0]}:{bug[1].line}: {bug[1].before}")
        return 0

    verdicts: dict[Bug, str] = {}

    def give_verdict(bug: Bug) -> None:
        verdicts[bug] = red = court.try_bug(bug)
        place = f"{bug[0]}:{bug[1].line} {bug[1].operator}"
        print(f"[{len(verdicts)}/{len(chosen)}] {place}: {red or 'SURVIVED'}", flush=True)

    try:
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(give_verdict, chosen))
    except KeyboardInterrupt:
        print("Interrupted; the next run goes on from here.")
    unexplained = report(verdicts, known, len(every))
    stale = outdated(known, every)
    for entry in stale:
        print(f"{SURVIVORS.name}: no such mutant of {entry.file}, {entry.function}: {entry.after}")
    return 1 if unexplained or stale else 0


def report(verdicts: dict[Bug, str], known: list[Explanation], total: int) -> bool:
    """Print the scores and the survivors; return whether one is unexplained or too many are."""
    unexplained = False
    print("\nSurvivors:")
    for bug, red in verdicts.items():
        if red:
            continue
        explanation = explanation_of(bug, known)
        unexplained = unexplained or explanation is None
        why = "UNEXPLAINED" if explanation is None else explanation.why
        file, mutant = bug
        print(f"{file}:{mutant.line} {mutant.function}: {mutant.operator}: {why}")
        print(f"  - {mutant.before}\n  + {mutant.after}")
    for group in (1, 0):
        print("", *score(verdicts, known, group), sep="\n")
    print(f"\n{len(verdicts)} of {total} mutants were tried.")
    counts = collections.Counter(fate(bug, red, known) for bug, red in verdicts.items())
    return unexplained or share(counts) < WANTED


if __name__ == "__main__":
    sys.exit(main())
