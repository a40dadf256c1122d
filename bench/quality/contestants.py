"""Who takes part in bench/quality: name, environment, script, options."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contestant:
    """One recipe of one tool; `options` reach its script, `options_of` a checkpoint add to them.

    A script takes one JSON file (job.Job) and writes a directory (job.run).
    """

    name: str
    python: Path
    script: Path
    options: dict[str, Any] = field(default_factory=dict)
    options_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: tuple[str, ...] = ("int4", "int3")
    variables: dict[str, str] = field(default_factory=dict)


def all_contestants(work: Path) -> list[Contestant]:
    """Return edgec's recipes, in this environment, and the peers whose environments are installed in `work`."""
    return [*_edgec(), *(peer for peer in _peers(work) if peer.python.exists())]


def _edgec() -> list[Contestant]:
    script = HERE / "edgec_recipes.py"
    recipes = (
        "rtn",
        "mse",
        "hqq",
        "kquant",
        "gptq",
        "awq+gptq",
        "quarot+gptq",
        "quarot+awq+gptq",
        "awq+autoround",
        "quarot+autoround",
    )
    alike = {name: {"recipe": name} for name in recipes}
    # The matrix that a rotation adds to a tied model counts; wider groups make up for it.
    wider = {"quarot+gptq, wider groups": {"recipe": "quarot+gptq", "wider": 2}}
    return [
        Contestant(f"edgec {name}", Path(sys.executable), script, options, {"smollm2": {"steps": 20}})
        for name, options in (alike | wider).items()
    ]


def _peers(work: Path) -> list[Contestant]:
    def peer(name: str, environment: str, **rest: Any) -> Contestant:
        script = HERE / "peers" / f"{environment.replace('-', '_')}.py"
        return Contestant(name, work / environment / "bin/python", script, **rest)

    return [
        peer("hqq", "hqq", options={"axis": 0}),
        peer("hqq, axis 1", "hqq", options={"axis": 1}),  # what its fast kernels take
        peer("gptqmodel", "gptqmodel", variables={"GPTQMODEL_CPU_WORKERS": "2"}),
        *(
            peer(
                f"llmcompressor {'+'.join(a)}", "llmcompressor", options={"algorithms": a, "observer": "memoryless_mse"}
            )
            for a in (["gptq"], ["awq"], ["awq", "gptq"])
        ),
        peer("auto-round", "auto-round", options_of={"smollm2": {"iters": 20}}),
        peer("llama.cpp k-quant", "llama-cpp"),
        peer("nncf", "nncf", settings=("int4",)),
    ]
