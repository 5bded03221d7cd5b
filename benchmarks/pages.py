"""The built pages: valid HTML, and what Lighthouse says of them. `make bench-pages`.

Pages are served as any host serves them, compressed with gzip, from this machine. Lighthouse
simulates the network and the processor of a desktop and of a phone, four times slower than this
one, so a busy machine looks like a slow phone: a page that misses a target is measured again, and
the median counts.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tools import chromium, toc

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "_build" / "html"
NODE = ROOT / "_build" / "node"
RESULTS = Path(__file__).with_name("pages.json")
TARGETS = {
    "desktop": {"performance": 95, "accessibility": 100, "best-practices": 100, "seo": 95},
    "mobile": {"performance": 90, "accessibility": 100, "best-practices": 100, "seo": 95},
}
MOST_BYTES = 900_000
COMPRESSED = re.compile(r"text/|javascript|json|svg")


class GzipHandler(SimpleHTTPRequestHandler):
    """Serves files as a host does: compressed where that helps, and kept for ten minutes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def send_head(self) -> io.BytesIO | None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return None
        kind = self.guess_type(str(path))
        small = COMPRESSED.search(kind)
        content = compressed(path) if small else path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if small else kind)
        if small:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "max-age=600")
        self.end_headers()
        return io.BytesIO(content)


@cache
def compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 6)


def install() -> None:
    """Install what tools/node pins, or say how to get what is missing."""
    for program, package in (("node", "nodejs"), ("npm", "npm"), ("java", "default-jre-headless")):
        if shutil.which(program) is None:
            sys.exit(f"{program} was not found: install it with `apt-get install {package}`.")
    lock = (ROOT / "tools/node/package-lock.json").read_bytes()
    installed = NODE / "package-lock.json"
    if not ((NODE / "node_modules").exists() and installed.read_bytes() == lock):
        NODE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(ROOT / "tools/node" / name, NODE)
        subprocess.run(["npm", "ci", "--loglevel=error"], cwd=NODE, check=True)
    shutil.copy(ROOT / "tools/node/lighthouse.mjs", NODE)


def invalid(names: list[str]) -> list[str]:
    """Return what the W3C's checker finds wrong with the HTML, one line for each mistake."""
    jar = NODE / "node_modules/vnu-jar/build/dist/vnu.jar"
    files = [str(BOOK / f"{name}.html") for name in [*names, "index", "search"]]
    command = ["java", "-jar", str(jar), "--errors-only", "--format", "json", *files]
    report = subprocess.run(command, capture_output=True, text=True).stderr
    return [
        f"{message['url'].rsplit('/html/')[-1]}:{message['lastLine']}: {message['message']}"
        for message in json.loads(report)["messages"]
    ]


def measure(home: str, jobs: list[tuple[str, str]]) -> list[dict]:
    """Return what Lighthouse says, for each (form, page)."""
    browser = chromium.find()
    if browser is None:
        sys.exit(chromium.HOW_TO_GET_ONE)
    addresses = [f"{form}:{home}/{page}.html" for form, page in jobs]
    command = ["node", "lighthouse.mjs", browser, *addresses]
    found = []
    with subprocess.Popen(command, cwd=NODE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            found.append(json.loads(line))
            show(found[-1], jobs[len(found) - 1][1])
    if len(found) < len(jobs):
        sys.exit("Lighthouse stopped early.")
    return found


def show(found: dict, page: str) -> None:
    scores = " ".join(f"{score:4d}" for score in found["scores"].values())
    times = " ".join(f"{time:5d}" for time in found["milliseconds"].values())
    size = sum(request["bytes"] for request in found["requests"]) // 1000
    print(f"{page:34s} {found['form']:8s}{scores}  {times}  {size:4d} kB", flush=True)


def total_bytes(page: str, home: str, found: list[dict]) -> int:
    """Return what a whole page transfers, pictures that load late included."""
    sizes = {r["url"]: r["bytes"] for visit in found for r in visit["requests"]}
    text = (BOOK / f"{page}.html").read_text(encoding="utf-8")
    for name in set(re.findall(r'<img [^>]*src="(?:\.\./)+(_images/[^"]+)"', text)):
        sizes.setdefault(f"{home}/{name}", (BOOK / name).stat().st_size)
    return sum(sizes.values())


def summary(visits: list[dict]) -> dict:
    """Return one page's result on one form: the median performance, the worst of the rest."""
    performance = [visit["scores"]["performance"] for visit in visits]
    scores = {name: min(v["scores"][name] for v in visits) for name in visits[0]["scores"]}
    return {
        "scores": {**scores, "performance": round(statistics.median(performance))},
        "performance of each run": performance,
        "milliseconds": visits[0]["milliseconds"],
        "layout shift": max(round(visit["shift"], 3) for visit in visits),
        "Lighthouse's benchmark index of the machine": [visit["machine"] for visit in visits],
    }


def misses(form: str, scores: dict[str, int]) -> list[str]:
    """Return the targets that a page misses."""
    return [
        f"{name} {scores[name]}, not {least}"
        for name, least in TARGETS[form].items()
        if scores[name] < least
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", nargs="+", metavar="NAME", help="such as 02_gates or api/gru")
    parser.add_argument("--runs", type=int, default=5, help="measure a page at most so often")
    parser.add_argument("--validity", action="store_true", help="check the HTML and nothing else")
    arguments = parser.parse_args()
    names = [f"book/{name}" for name in arguments.pages] if arguments.pages else toc.pages()
    install()

    problems = invalid(names)
    print(f"HTML of {len(names)} pages: {len(problems)} errors", *problems, sep="\n")
    if arguments.validity:
        return bool(problems)

    load, cores = os.getloadavg()[0], os.cpu_count()
    if load > cores / 2:
        print(
            f"\nThis machine is busy ({load:.1f} processes, {cores} cores): phones will look slow."
        )
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(GzipHandler, directory=BOOK)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        print(f"\n{'':43s}perf a11y  bp  seo    FCP   LCP   TBT    SI  (ms)")
        left = [(form, name) for name in names for form in TARGETS]
        visits: dict[tuple[str, str], list[dict]] = {job: [] for job in left}
        for _ in range(arguments.runs):
            for job, found in zip(left, measure(home, left)):
                visits[job].append(found)
            left = [job for job in left if misses(job[0], summary(visits[job])["scores"])]
            if not left:
                break
            print(f"Again, with the median of all runs: {len(left)}")
        server.shutdown()

    results = {}
    for name in names:
        forms = {form: summary(visits[form, name]) for form in TARGETS}
        size = total_bytes(name, home, [v for form in TARGETS for v in visits[form, name][:1]])
        results[name] = {"bytes": size, **forms}
        if size > MOST_BYTES:
            problems.append(f"{name}: {size} bytes, more than {MOST_BYTES}")
        for form in TARGETS:
            found = misses(form, forms[form]["scores"])
            details = visits[form, name][-1]["imperfect"] if found else []
            problems += (
                [f"{name} ({form}): {', '.join(found)}; {', '.join(details)}"] if found else []
            )
    every = {**json.loads(RESULTS.read_text(encoding="utf-8")), **results}
    every = {name: every[name] for name in toc.pages() if name in every}
    RESULTS.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
    report(results)
    print(*(problems or ["Every target is met."]), sep="\n")
    return bool(problems)


def report(results: dict) -> None:
    """Print the worst and the median page of each form."""
    for form in TARGETS:
        for name in TARGETS[form]:
            scores = [page[form]["scores"][name] for page in results.values()]
            print(f"{form} {name}: worst {min(scores)}, median {statistics.median(scores):g}")
    sizes = {name: page["bytes"] for name, page in results.items()}
    print(f"heaviest page: {max(sizes.values()) // 1000} kB, {max(sizes, key=sizes.get)}")


if __name__ == "__main__":
    sys.exit(main())
