"""The target database as a page: `python -m edgec.spec.table > docs/targets.md`."""

import sys
from itertools import groupby

import msgspec

from edgec.spec.load import data_dir, read_spec
from edgec.spec.target import Target

_ABILITIES = ("int8", "int4", "fp8", "nvfp4")
_HEADER = (
    *("target", "aliases", "device", "backends", "floats", "memory", "bandwidth"),
    *(*_ABILITIES, "CPU", "GPU", "DLA", "runtimes"),
)
_INTRODUCTION = """# Targets

Made from the files in `targets/` by `make docs`. The target `cpu` is the machine that runs edgec.
An empty cell is a fact that a class of machines does not determine.

- **floats**, **int8**, **int4**, **fp8**, **nvfp4**: how weights may be stored, so that the target's kernels take them.
- **memory**: what the device has, shared with its GPU; for a card, its own. **bandwidth**: the peak.
- **CPU**: extensions that kernels use. **GPU**: compute capability; 2:4 if its tensor cores skip zeros of that pattern.
- **DLA**: number of deep-learning accelerators, which take fp16 and int8 convolutions, not language models.
"""
_SOURCES = """## Sources

Memory, bandwidth, cores, compute capabilities and runtime versions were compared with these documents or with public
copies of them. What could not be is marked "not checked against the document".
"""


def target_page() -> str:
    """Return docs/targets.md: what each file in `targets/` says, and where each fact comes from."""
    targets = [read_spec(path, Target) for path in sorted(data_dir("targets").glob("*.toml"))]
    table = [_row(_HEADER), _row(("---",) * len(_HEADER)), *(_row(cells(target)) for target in targets)]
    return "\n".join([_INTRODUCTION, *table, "", _SOURCES, *map(_source_list, targets)])


def cells(target: Target) -> tuple[str, ...]:
    """Return the facts of a target as short texts, in the order of the table's columns."""
    cores = f"{target.cores} cores, " if target.cores else ""
    return (
        target.name,
        ", ".join(target.aliases),
        target.title,
        ", ".join(target.backends),
        ", ".join(dtype for dtype in target.weight_dtypes if dtype not in _ABILITIES),
        f"{target.memory_gib:g} GiB" if target.memory_gib else "",
        f"{target.memory_bandwidth_gbps:g} GB/s" if target.memory_bandwidth_gbps else "",
        *("yes" if dtype in target.weight_dtypes else "no" for dtype in _ABILITIES),
        f"{cores}{target.arch} {' '.join(target.isa)}".strip(),
        f"sm{target.gpu.sm}{', 2:4' if target.gpu.sparse_2_4 else ''}" if target.gpu else "",
        str(target.gpu.dla) if target.gpu else "",
        "; ".join(_runtimes(target.runtimes)),
    )


def facts(target: Target) -> dict[str, object]:
    """Return the facts that a target states, without its names and sources."""
    values = msgspec.to_builtins(target)
    skipped = ("name", "aliases", "sources")
    return {key: value for key, value in values.items() if key not in skipped and value not in (None, (), {})}


def _runtimes(runtimes: dict[str, tuple[str, ...]]) -> list[str]:
    if "jetpack" in runtimes and "tensorrt" in runtimes:
        pairs = zip(runtimes["tensorrt"], runtimes["jetpack"], strict=True)
        grouped = groupby(pairs, key=lambda pair: pair[0])
        return [
            f"tensorrt {version} (JetPack {', '.join(jetpack for _, jetpack in group)})" for version, group in grouped
        ]
    return [f"{package} {', '.join(versions)}" for package, versions in runtimes.items()]


def _source_list(target: Target) -> str:
    by_source: dict[str, list[str]] = {}
    for fact, source in target.sources.items():
        by_source.setdefault(source, []).append(fact)
    lines = [f"- {', '.join(names)}: {_linked(source)}" for source, names in by_source.items()]
    return "\n".join([f"**{target.name}**", "", *lines, ""])


def _linked(source: str) -> str:
    """Turn each `title, https link` of a source into a Markdown link."""
    parts = [part.rpartition(", ") for part in source.split("; ")]
    return "; ".join(
        f"[{title}]({link})" if link.startswith("https://") else title + comma + link for title, comma, link in parts
    )


def _row(values: tuple[str, ...]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    sys.stdout.write(target_page())
