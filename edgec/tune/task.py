"""What is to be tuned, and for what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgec.checkpoint.model import Checkpoint
from edgec.evaluate.corpus import Corpus
from edgec.frontends.architecture import Decoder
from edgec.spec.plan import Plan
from edgec.spec.profile import Profile
from edgec.spec.prune import Slim
from edgec.spec.target import Target
from edgec.tune.budget import Budget
from edgec.tune.search import Method

Say = Callable[[str, int], Callable[[str], object]]
"""Announce a stage by its name and number of steps; returns what to call after each step."""


@dataclass(frozen=True)
class Task:
    """What to tune, for what.

    Args:
        profile: the base: its text, context, runtime, bounds, and algorithm of integers below 8 bits. What it slims is
            always gone; for what its `[sparse]` means see `candidates_of`.
        plan: of the base.
        tokens: for the sensitivity of each unit.
        labels: of candidates; empty for the usual ones.
        slims: shapes to try beside that of the base.
        ignored: keys of config.json that the user declared harmless.
        no_fallback: leave out what falls back on the target.
        evaluation: text that nothing is chosen on; None leaves the last measurement out.
    """

    checkpoint: Checkpoint
    decoder: Decoder
    target: Target
    profile: Profile
    plan: Plan
    budget: Budget
    tokens: int
    labels: Sequence[str] = ()
    slims: Sequence[Slim] = ()
    ignored: frozenset[str] = frozenset()
    no_fallback: bool = False
    search: Method | None = None
    trials: int = 16
    evaluation: Corpus | None = None
