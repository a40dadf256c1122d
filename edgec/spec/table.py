"""The target database as a page: `python -m edgec.spec.table > docs/targets.md`."""

import sys

import msgspec

from edgec.spec.load import data_dir, read_spec
from edgec.spec.target import Target

_HEADER = ("target", "aliases", "device", "backends", "weights", "memory", "bandwidth", "CPU", "GPU", "runtimes")


def target_page() -> str:
    """Return docs/targets.md: what each file in `targets/` says, and where each fact comes from."""
    targets = [read_spec(path, Target) for path in sorted(data_dir("targets").glob("*.toml"))]
    lines = [
        "# Targets",
        "",
        "Made from the files in `targets/` by `make docs`. The target `cpu` is the machine that runs edgec.",
        "An empty cell is a fact that a class of machines does not determine.",
        "",
        _row(_HEADER),
        _row(("---",) * len(_HEADER)),
        *(_row(cells(target)) for target in targets),
        "",
        "## Sources",
        "",
    ]
    for target in targets:
        lines += [f"**{target.name}**", ""]
        lines += [f"- {fact}: {source}" for fact, source in target.sources.items()]
        lines.append("")
    return "\n".join(lines)


def cells(target: Target) -> tuple[str, ...]:
    """Return the facts of a target as short texts, in the order of the table's columns."""
    cores = f"{target.cores} cores, " if target.cores else ""
    return (
        target.name,
        ", ".join(target.aliases),
        target.title,
        ", ".join(target.backends),
        ", ".join(target.weight_dtypes),
        f"{target.memory_gib:g} GiB" if target.memory_gib else "",
        f"{target.memory_bandwidth_gbps:g} GB/s" if target.memory_bandwidth_gbps else "",
        f"{cores}{target.arch} {' '.join(target.isa)}".strip(),
        _gpu(target),
        "; ".join(f"{package} {', '.join(versions)}" for package, versions in target.runtimes.items()),
    )


def facts(target: Target) -> dict[str, object]:
    """Return the facts that a target states, without its names and sources."""
    values = msgspec.to_builtins(target)
    skipped = ("name", "aliases", "sources")
    return {key: value for key, value in values.items() if key not in skipped and value not in (None, (), {})}


def _gpu(target: Target) -> str:
    if target.gpu is None:
        return ""
    extras = {
        f"{target.gpu.dla} DLA": target.gpu.dla,
        "fp8": target.gpu.fp8,
        "nvfp4": target.gpu.nvfp4,
        "2:4": target.gpu.sparse_2_4,
    }
    return ", ".join([f"sm{target.gpu.sm}", *(name for name, has in extras.items() if has)])


def _row(values: tuple[str, ...]) -> str:
    return f"| {' | '.join(values)} |"


if __name__ == "__main__":
    sys.stdout.write(target_page())
