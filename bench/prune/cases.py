"""What bench/prune measures: masks of weights, and smaller shapes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from compare import Setting
from contestants import Contestant

HERE = Path(__file__).parent
PATTERNS = ("50%", "2:4", "4:8")
METHODS = ("magnitude", "wanda", "sparsegpt")
Step = tuple[str, str | None]


@dataclass(frozen=True)
class Case:
    """One way to prune, in one table."""

    table: str
    pattern: str
    tool: str
    name: str
    contestant: Contestant
    setting: Setting

    @property
    def folder(self) -> str:
        return f"{self.table} {self.pattern} {self.tool} {self.name}".replace(":", "-")


FLOAT = Setting(16, {"smollm2": 0})
ROUNDED = {"int4": Setting(4, {"smollm2": 128}), "int8": Setting(8, {"smollm2": 0})}  # 0: one group is a whole row


def all_cases(peer: Path) -> list[Case]:
    """Return all cases; those of llm-compressor where its Python `peer` is installed."""
    cases = [_edgec("float", FLOAT, p, m, [(m, None)]) for p in PATTERNS for m in METHODS]
    cases += [
        _edgec("float", FLOAT, "50%", f"wanda, {a}", [("wanda", None)], a) for a in ("owl", "global", "sensitivity")
    ]
    for bits, setting in ROUNDED.items():
        ways: dict[str, list[Step]] = {
            "sparsegpt and gptq in one pass": [("sparsegpt", "gptq")],
            "sparsegpt, then rounded by mse": [("sparsegpt", "mse")],
            # Magnitude keeps what is not 0: the mask of the first pass.
            "sparsegpt, then gptq": [("sparsegpt", None), ("magnitude", "gptq")],
        }
        cases += [_edgec(bits, setting, "2:4", name, steps) for name, steps in ways.items()]
    if peer.exists():
        cases += [_llmcompressor(peer, p, m) for p in ("50%", "2:4") for m in ("wanda", "sparsegpt")]
    return cases


def _edgec(
    table: str, setting: Setting, pattern: str, name: str, steps: list[Step], allocation: str = "uniform"
) -> Case:
    options = {"pattern": pattern, "allocation": allocation, "steps": [list(step) for step in steps]}
    contestant = Contestant(f"edgec {name}", Path(sys.executable), HERE / "edgec_prune.py", options)
    return Case(table, pattern, "edgec", name, contestant, setting)


def _llmcompressor(python: Path, pattern: str, method: str) -> Case:
    options = {"method": method, "structure": pattern if ":" in pattern else "0:0"}
    script = HERE / "peers" / "llmcompressor_prune.py"
    contestant = Contestant(f"llmcompressor {method}", python, script, options)
    return Case("float", pattern, "llmcompressor", method, contestant, FLOAT)
