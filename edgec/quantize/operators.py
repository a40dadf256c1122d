"""How operators take integers."""

ANCHORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""They multiply by a constant weight: what integers are for."""

ABSORBED = frozenset({"Relu", "Clip"})
"""Activations that end at a bound: rounding what they give does their work."""

KEEPING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity"})
"""They give numbers that they were given: both sides have one scale."""
