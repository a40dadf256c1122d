"""The graphs of an artifact; all read the same weights file."""

MODEL_FILE = "model.onnx"
"""For generation: gives the logits of each row's last token."""

ALL_LOGITS_FILE = "model_all_logits.onnx"
"""For evaluation: gives the logits of every token; the same graph up to the output matrix."""
