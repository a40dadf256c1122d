"""Which tensors a decoder needs, and whether a checkpoint has them."""

from edgec.checkpoint.model import Checkpoint
from edgec.errors import CheckpointError
from edgec.frontends.architecture import Decoder, Linear, Norm


def check_tensors(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Compare every tensor that `decoder` needs with what the checkpoint holds.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the config says.
    """
    for name, shape in expected_shapes(decoder).items():
        info = checkpoint.tensors.get(name)
        if info is None:
            raise CheckpointError(
                f"the checkpoint has no tensor '{name}', which its config asks for",
                where=str(checkpoint.path),
                hint="the weights and config.json may come from different models, or a shard is missing",
            )
        if tuple(info.shape) != shape:
            raise CheckpointError(
                f"tensor '{name}' has shape {tuple(info.shape)}, but config.json asks for {shape}",
                where=str(checkpoint.path),
                hint="the weights and config.json come from different models",
            )
        if info.dtype in ("I64", "I32", "I16", "I8", "U8", "BOOL"):
            raise CheckpointError(
                f"tensor '{name}' holds {info.dtype}: this checkpoint is already quantized",
                where=str(checkpoint.path),
                hint="give the original floating-point checkpoint",
            )


def expected_shapes(decoder: Decoder) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that `decoder` needs, as the checkpoint has it."""
    shapes: dict[str, tuple[int, ...]] = {decoder.embedding: (decoder.vocab_size, decoder.hidden_size)}
    rows: dict[str, int] = {}
    if decoder.position_embedding:
        shapes[decoder.position_embedding] = (decoder.context_length, decoder.hidden_size)
    for linear in linears(decoder):
        n_in, n_out = linear.size
        rows[linear.weight] = rows.get(linear.weight, 0) + n_out
        total = rows[linear.weight]
        shapes[linear.weight] = (n_in, total) if linear.transposed else (total, n_in)
        if linear.bias:
            shapes[linear.bias] = (total,)
    for norm in norms(decoder):
        shapes[norm.weight] = (norm.size,)
        if norm.bias:
            shapes[norm.bias] = (norm.size,)
    return shapes


def linears(decoder: Decoder) -> list[Linear]:
    """Return every matrix of `decoder`, in the order of the graph."""
    found: list[Linear | None] = []
    for layer in decoder.layers:
        a, m = layer.attention, layer.mlp
        found += [a.q, a.k, a.v, a.o, m.gate, m.up, m.down]
    return [linear for linear in [*found, decoder.head] if linear]


def norms(decoder: Decoder) -> list[Norm]:
    """Return every normalisation of `decoder`, in the order of the graph."""
    found: list[Norm | None] = []
    for layer in decoder.layers:
        found += [layer.attention_norm, layer.attention.q_norm, layer.attention.k_norm, layer.attention_post_norm]
        found += [layer.mlp_norm, layer.mlp_post_norm]
    return [norm for norm in [*found, decoder.final_norm] if norm]
