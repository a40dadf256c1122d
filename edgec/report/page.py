"""The report as a Markdown page for people."""

from collections.abc import Sequence

from edgec.measure.percentiles import percentile_words
from edgec.quantize.scheme import Scheme
from edgec.report.model import AgainstDense, Integers, Report, Zeros
from edgec.spec.layers import describe_matrices
from edgec.spec.operation import Storage
from edgec.spec.plan import Plan
from edgec.spec.prediction import Prediction

_MIB = 2**20


def page(plan: Plan, report: Report) -> str:
    """Return report.md."""
    sections = [
        _head(plan, report), _quality(report), _speed(report), _pruning(report), _size(report), _build(report)
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def describe_storage(storage: Storage) -> str:
    """Return a storage in words, such as "int4, groups of 32, symmetric, rtn"."""
    if not isinstance(storage, Scheme):
        return storage
    group = "one scale per output" if storage.group is None else f"groups of {storage.group}"
    zero_points = [] if storage.is_float else ["symmetric" if storage.symmetric else "asymmetric"]
    return ", ".join([storage.dtype, group, *zero_points, storage.algorithm])


def storage_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return (what, how it is stored) for all weights of a plan."""
    matrices: dict[Storage, list[str]] = {}
    for name, matrix in plan.layers.items():
        matrices.setdefault(matrix.storage, []).append(name)
    return [
        *pruning_rows(plan),
        ("layers", describe_storage(plan.weights)),
        *(("except", f"{describe_storage(how)}: {describe_matrices(names)}") for how, names in matrices.items()),
        ("embedding, output matrix", describe_storage(plan.embedding)),
        *([("before rounding", ", ".join(plan.transforms))] if plan.transforms else []),
    ]


def pruning_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return (what, how) for what a plan prunes."""
    rows = []
    if plan.slim is not None:
        sizes = plan.slim.sizes
        ways = [_INFLUENCE] * ("layers" in plan.slim.parts)
        ways += [_IMPORTANCE[plan.slim.importance]] * any(part != "layers" for part in plan.slim.parts)
        by = "; other parts by ".join(ways)
        widths = f"{sizes.mlp} units in each MLP, {sizes.groups} groups of heads, {sizes.hidden} dimensions"
        rows += [("stays", f"{plan.slim.parameters / 1e6:.1f} M parameters: {sizes.layers} layers, {widths}; by {by}")]
    if plan.sparse is not None:
        spread = "" if plan.sparse.allocation == "uniform" else f", spread by {plan.sparse.allocation}"
        what = f"{plan.sparse.pattern} by {plan.sparse.method}{spread}"
        rows += [
            (
                "weights that stay" if ":" in plan.sparse.pattern else "zeros",
                f"{what}: {describe_matrices(plan.sparse.matrices)}",
            )
        ]
    return rows


_INFLUENCE = "how much layers turn the hidden state"
_IMPORTANCE = {
    "magnitude": "size of their weights",
    "activation": "size of what they give",
    "wanda": "what they give times the weights that read it",
    "taylor": "what the loss would lose (Taylor)",
}


def prediction_rows(predicted: Prediction, measured: AgainstDense | None = None) -> list[tuple[str, str]]:
    """Return (what, dense to pruned) of a prediction, with what was measured beside it."""
    before, after = predicted.dense, predicted.pruned
    if before == after and measured is None:
        return [("predicted", "size, operations and speed of the dense model")]
    size = f"{before.weight_bytes / _MIB:.1f} -> {after.weight_bytes / _MIB:.1f} MiB"
    speed = f"{'up to ' if predicted.at_most else ''}{predicted.speed:.2f} times that of the dense model"
    if measured is not None:
        found = f"{measured.dense_size_bytes / _MIB:.1f} -> {measured.size_bytes / _MIB:.1f} MiB"
        size += f" predicted, {found} measured with all files"
        speed += f" predicted, {measured.speed:.2f} ({measured.low:.2f} to {measured.high:.2f}) measured"
    return [
        ("parameters", f"{before.parameters / 1e6:.1f} -> {after.parameters / 1e6:.1f} M"),
        ("weights", size),
        (
            "operations for a token",
            f"{before.operations_per_token / 1e6:.0f} -> {after.operations_per_token / 1e6:.0f} M",
        ),
        ("memory read for a token", f"{before.bytes_per_token / _MIB:.1f} -> {after.bytes_per_token / _MIB:.1f} MiB"),
        ("speed of decoding", speed),
    ]


def zeros_rows(zeros: Zeros | None) -> list[tuple[str, str]]:
    """Return what there is of zeros, and what comes of them."""
    if zeros is None:
        return []
    return [("zeros", f"{100 * zeros.share:.1f} % of {zeros.matrices} matrices; {zeros.runtime}")]


def describe_activations(plan: Plan) -> str:
    """Return in words what the matrices of a plan are multiplied with."""
    if plan.backend == "tensorrt":
        others = "float32" if plan.weights == "fp32" else "float16, with a float32 residual stream"
    else:
        others = _ACTIVATIONS[plan.accuracy_level]
    if plan.static is None:
        return others
    return (
        f"int8, calibrated scales ({plan.static.range}): {describe_matrices(plan.static.matrices)}; elsewhere {others}"
    )


_ACTIVATIONS = {
    0: "the runtime's choice",
    1: "float32",
    2: "float16 in integer matmuls",
    3: "bfloat16 in integer matmuls",
    4: "int8 in integer matmuls",
}


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(plan: Plan, report: Report) -> str:
    verdict = "not verified" if report.verification is None else f"passed{_in_place(report)}"
    if report.verification is not None and report.verification.failures:
        verdict = "FAILED: " + "; ".join(report.verification.failures)
    rows = [
        ("verification", verdict),
        ("model", f"{plan.source.family}, {plan.source.parameters / 1e6:.1f} M parameters, {plan.source.format}"),
        ("target, backend", f"{plan.target}, {plan.backend}"),
        ("profile", plan.profile),
        *storage_rows(plan),
        ("activations", describe_activations(plan)),
        ("context", f"{plan.context_length} tokens"),
        ("plan", f"`{report.plan_sha256}`"),
    ]
    if report.not_run is not None:
        rows.insert(1, ("not run here", report.not_run))
    rows += [("remark", remark) for remark in report.remarks]
    return f"# edgec {report.edgec}: {plan.source.family} for {plan.target}\n\n" + table(("", ""), rows)


def _in_place(report: Report) -> str:
    return " (the graph in the engine's place)" if report.not_run else ""


def _quality(report: Report) -> str:
    if report.verification is None or report.text is None:
        return "## Quality\n\nNot measured: the build ran with `--no-verify`."
    v, s = report.verification, report.verification.shipped
    rows = [
        ("perplexity of the source", f"{s.reference_perplexity:.4f}", f"{s.reference_perplexity_se:.4f}"),
        ("perplexity of the artifact", f"{s.test_perplexity:.4f}", f"{s.test_perplexity_se:.4f}"),
        ("ratio, paired", f"{s.perplexity_ratio:.5f}", f"{s.perplexity_ratio_se:.5f}"),
        ("mean KL divergence, nats", f"{s.mean_kl:.6f}", f"{s.mean_kl_se:.6f}"),
        ("same most likely token", f"{100 * s.top1_agreement:.2f} %", f"{100 * s.top1_agreement_se:.2f} %"),
    ]
    text = f"{s.tokens} predictions in {report.text.windows} windows of `{report.text.name}`"
    parts = [
        "## Quality",
        f"Shipped mode{_in_place(report)} against the source checkpoint, {text}.",
        table(("", "value", "standard error"), rows),
        _integers(v.integers, "The engine's graph" if report.not_run else "The artifact"),
        (
            f"Exact mode (float32 activations) against the canonical graph, {v.exact.tokens} positions: largest "
            f"difference of a logit {v.exact.max_error:.2e}, {v.exact.relative_error:.2e} of their standard deviation "
            f"(allowed {v.exact.bound:.0e})."
        ),
    ]
    if v.blame:
        parts += ["What quantizing each group of layers alone costs:"]
        parts += [table(("group", "mean KL, nats"), [(b.group, f"{b.mean_kl:.6f}") for b in v.blame])]
    return "\n\n".join(parts)


def _integers(integers: Integers, what: str) -> str:
    if integers.different:
        return f"Not the canonical graph's integers: {', '.join(integers.different)}."
    scales = f", and the scales of all {integers.activations} static activations" if integers.activations else ""
    where = f"in all {integers.weights} quantized weights{scales}"
    return f"{what} holds the canonical graph's integers, bit for bit, {where}."


def _speed(report: Report) -> str:
    if report.latency is None:
        return "## Speed\n\nNot measured: the engine was not run here." if report.not_run else ""
    m = report.latency
    rows = [
        ("time to first token", f"{m.ttft_ms:.1f} ms for {m.prompt_tokens} tokens"),
        ("prefill", f"{m.prefill_tokens_per_s:.1f} tokens/s"),
        ("decode", f"{m.decode_tokens_per_s:.1f} tokens/s"),
        ("per token", percentile_words(m.p50_ms, m.p90_ms, m.p99_ms)),
    ]
    machine = report.environment.get("cpu_model", "unknown CPU")
    return "## Speed\n\n" + f"On the build machine ({machine}).\n\n" + table(("", ""), rows)


def _pruning(report: Report) -> str:
    if report.pruning is None:
        return ""
    rows = [*prediction_rows(report.pruning.predicted, report.pruning.measured), *zeros_rows(report.pruning.zeros)]
    dense = (
        "Beside the dense model, stored alike, rounded to nearest and run in turn"
        if report.pruning.measured
        else "Beside the dense model, stored alike; predicted, not measured"
    )
    return f"## Pruning\n\n{dense}.\n\n" + table(("", ""), rows)


def _size(report: Report) -> str:
    total = sum(report.size_bytes.values())
    rows = [(f"`{name}`", f"{size / _MIB:.2f} MiB") for name, size in report.size_bytes.items()]
    return "## Size\n\n" + table(("file", "size"), [*rows, ("total", f"{total / _MIB:.2f} MiB")])


def _build(report: Report) -> str:
    rows = [(s.name, f"{s.seconds:.2f} s", f"{s.peak_rss_bytes / _MIB:.0f} MiB") for s in report.stages]
    return "## Build\n\n" + table(("stage", "time", "peak memory so far"), rows)
