"""Run the gate again and again on models whose difference is known, and append what it said to the raw data.

    python bench/gate/campaign.py --condition quiet --minutes 60

Each gate is one line in bench/results/gate/CONDITION.jsonl.gz. A campaign may be interrupted at any time and goes on
where it stopped: the next gate is one of the case that is furthest from the number that is wanted. Gates of other code
that races and judges count for another campaign. `report.py` makes the page.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from workload import bundle, twin

import edgec
from edgec.gate.limits import gated
from edgec.gate.metrics import Measured, values
from edgec.gate.performance import Raced, run_race
from edgec.gate.result import overall
from edgec.gate.settings import Performance
from edgec.measure import race
from edgec.measure.fingerprint import fingerprint

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "gate"
WORK = HERE.parent / ".work" / "gate"

WANTED = {0: 500, 2: 100, 5: 100, 10: 100}
"""Per cent of more work -> gates."""

SETTINGS = Performance(threads=1)
"""The usual metrics, margins and time (60 s); one thread, as in what `edgec init-ci` writes."""

MACHINE = ("cpu_model", "usable_cpus", "kernel", "onnxruntime", "edgec")
"""Facts of the machine that are kept with each gate."""

LATENCY = Measured("latency_ms", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", choices=("quiet", "hog"), required=True, help="hog: another program computes")
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{args.condition}.jsonl.gz"
    facts = fingerprint()
    machine = {key: facts[key] for key in MACHINE} | {"code": _code()}
    done = Counter(record["slower"] for record in read(path) if record["machine"]["code"] == machine["code"])
    end = time.monotonic() + 60 * args.minutes
    with _hog() if args.condition == "hog" else nullcontext():
        while time.monotonic() < end and any(done[case] < wanted for case, wanted in WANTED.items()):
            case = min(WANTED, key=lambda case: done[case] / WANTED[case])
            number = done[case]
            start = time.monotonic()
            raced = _gate(case, 1000 * case + number)
            line = json.dumps(_record(case, number, time.monotonic() - start, raced, machine))
            with path.open("ab") as file:  # a member of its own, in one piece: an interrupted run loses a gate at most
                file.write(gzip.compress(f"{line}\n".encode()))
            done[case] += 1
            verdict = overall(raced.findings, raced.void)
            print(
                f"{args.condition} +{case} % {done[case]}/{WANTED[case]}: {verdict}, {len(raced.rounds)} rounds",
                flush=True,
            )


def read(path: Path) -> Iterator[dict]:
    """Yield the records of a campaign."""
    if path.is_file():
        with gzip.open(path, "rt") as file:
            yield from map(json.loads, file)


def _gate(case: int, seed: int) -> Raced:
    candidate = bundle(WORK, case) if case else twin(WORK)
    return run_race(candidate, bundle(WORK, 0), SETTINGS, gated(None, {}), confidence=0.95, seed=seed)


def _record(case: int, number: int, elapsed_s: float, raced: Raced, machine: dict[str, str]) -> dict:
    """Return one gate: its verdict, its findings, and the mean latency of each turn of each process."""
    found = {}
    for suffix, findings in (("", raced.findings), (" sentinel", raced.sentinel)):
        for each in findings:
            numbers = (each.estimate, each.low, each.high, each.decided_low, each.decided_high)
            rounded = (None if value is None else round(value, 5) for value in numbers)
            found[each.metric + suffix] = [each.verdict, *rounded]
    return {
        "slower": case,
        "number": number,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": overall(raced.findings, raced.void),
        "void": raced.void,
        "elapsed_s": round(elapsed_s, 2),
        "findings": found,
        "turns_ms": [
            [[float(f"{value:.4g}") for value in values(process, LATENCY)] for process in each] for each in raced.rounds
        ],
        "machine": machine,
    }


def _code() -> str:
    """Return a digest of the code that races and judges, so that data of different gates cannot mix unseen."""
    loaded = (module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "edgec")
    lazily = Path(edgec.__file__).parent.glob("*/onnx_cpu/*.py"), Path(race.__file__).parent.glob("*.py")
    files = {Path(file) for file in loaded if file}.union(*lazily)
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:8]


@contextmanager
def _hog() -> Iterator[None]:
    # It ends with its parent, however that ends.
    program = f"import os\nwhile os.getppid() == {os.getpid()}:\n  for _ in range(10**6): pass"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
