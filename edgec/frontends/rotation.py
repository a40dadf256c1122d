"""Whether the residual stream of a decoder can be rotated (see `edgec.quantize.transforms.quarot`)."""

from edgec.errors import PlanError
from edgec.frontends.architecture import Decoder


def check_rotation(decoder: Decoder) -> None:
    """Refuse a decoder whose residual stream cannot be rotated.

    Raises:
        PlanError: what is in the way, and where.
    """
    if reason := can_rotate(decoder):
        raise PlanError(
            f"quarot cannot rotate a {decoder.family} model: {reason}",
            where="transforms",
            hint="leave quarot out of the profile's transforms",
        )


def can_rotate(decoder: Decoder) -> str | None:
    """Return why the residual stream of `decoder` cannot be rotated: what is in the way, and where; None if it can."""
    if decoder.position_embedding:
        return "the embedding adds learned positions to the tokens"
    for index, layer in enumerate(decoder.layers):
        for branch, before, after in (
            ("attention", layer.attention_norm, layer.attention_post_norm),
            ("mlp", layer.mlp_norm, layer.mlp_post_norm),
        ):
            name = f"layers.{index}.{branch}"
            if after is not None:
                return f"{name}_post_norm weighs what it adds to the residual stream, and no matrix follows it"
            if before is None:
                return f"{name} has no norm in front of it"
            if before.kind != "rms":
                return f"{name}_norm is a LayerNorm, whose mean a rotation changes"
    return None if decoder.final_norm.kind == "rms" else "final_norm is a LayerNorm, whose mean a rotation changes"
