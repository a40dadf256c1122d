"""The graphs of an artifact; all read the same weights file."""

from pathlib import Path

MODEL_FILE = "model.onnx"
"""For generation: gives the logits of each row's last token."""

ALL_LOGITS_FILE = "model_all_logits.onnx"
"""For evaluation: gives the logits of every token; the same graph up to the output matrix."""


def evaluation_file(artifact: Path) -> str | None:
    """Return the graph that gives every token's logits; None where the artifact has but one graph."""
    return ALL_LOGITS_FILE if (artifact / ALL_LOGITS_FILE).is_file() else None
