"""What the canonical graph says about itself in `metadata_props`, for passes that need more than operators."""

BLOCK = "edgec.block"
"""On a node: the block that it belongs to, such as `layers.3.mlp`. Blocks are contiguous in the node order."""

MASK = "mask"
"""The block that makes attention masks, from the shape of the input alone."""

HEAD_ROTATION = "final_norm.rotation"
"""The matrix that a rotation puts in front of an output matrix that is the token embedding too; it stays a float."""

WINDOW = "edgec.window"
"""On an `Attention` node: the sliding window that its mask input implements, in tokens; absent where it sees all."""

SOURCE = "edgec.source"
"""On an initializer: the checkpoint tensor that it was made from."""

SAME_BYTES = "edgec.same_bytes"
"""On an initializer: the name of another one whose bytes in the file are this one's too."""

WEIGHTS = "edgec.weights"
"""On the integers of a kernel: `name:rows` of each weight in them, joined by spaces; it stays in the artifact."""
