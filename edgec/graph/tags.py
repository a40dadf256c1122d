"""What the canonical graph says about itself in `metadata_props`, for passes that need more than operators."""

BLOCK = "edgec.block"
"""On a node: the block that it belongs to, such as `layers.3.mlp`. Blocks are contiguous in the node order."""

WINDOW = "edgec.window"
"""On an `Attention` node: the sliding window that its mask input implements, in tokens; absent where it sees all."""

SOURCE = "edgec.source"
"""On an initializer: the checkpoint tensor that it was made from."""
