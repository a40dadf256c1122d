"""Print the peak memory of running bundles, with a prompt that fills the context, beside what their plans expect.

    python bench/memory/resident.py BUNDLE...

Each bundle runs in a process of its own; for another machine's runtime this says nothing.
bench/results/resident.md is its output for SmolLM2-135M and for random Llamas of other shapes: 0.56 B with a wide MLP
and a vocabulary of 152 thousand, 0.19 B with as many heads in the cache as in the queries, 0.15 B with untied tables.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from edgec.backends.backend import get_backend
from edgec.bundle.open import ARTIFACT, read_plan
from edgec.measure.memory import peak_rss_bytes
from edgec.report.page import describe_storage

_MIB = 2**20


def peak_bytes(backend: str, artifact: Path) -> int:
    """Return the peak memory of this process after it filled the artifact's context and took one token more."""
    session = get_backend(backend).open_session(artifact, "generate")
    ids = np.arange(session.max_length, dtype=np.int64)[np.newaxis] % session.vocab_size
    session.step(ids[:, :-1])
    session.step(ids[:, -1:])
    return peak_rss_bytes()


def main() -> None:
    print("| bundle | backend | weights | context | estimate, MiB | measured, MiB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for bundle in map(Path, sys.argv[1:]):
        plan = read_plan(bundle)
        # Linux counts what a parent holds at the fork into its child's peak: spawn.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as runner:
            peak = runner.submit(peak_bytes, plan.backend, bundle / ARTIFACT).result()
        need = plan.estimate.total_bytes
        weights = describe_storage(plan.weights)
        cells = bundle.name, plan.backend, weights, plan.context_length, need // _MIB, peak // _MIB
        print(f"| {' | '.join(map(str, cells))} | {need / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
