"""Search what a profile says of all layers at once: the algorithm, zero points, groups, and the embedding's storage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgec.backends.backend import get_backend
from edgec.quantize.scheme import Scheme
from edgec.spec.load import algorithm_names
from edgec.spec.profile import Profile, Weights
from edgec.tune.check import Checker
from edgec.tune.cost import unit_sizes
from edgec.tune.problem import Problem
from edgec.tune.profile_file import tuned_profile
from edgec.tune.search import Setting, Space
from edgec.tune.solve import minimise
from edgec.tune.units import EMBEDDING, Candidate, Unit, candidate, cheap

_ANY = "any"


@dataclass(frozen=True)
class Settings:
    """Settings around one that was found, at no more cost.

    The KL of single units is that of the first setting: good enough to choose by, as each mixture is measured whole.

    Args:
        base: the profile that was tuned.
        problem: its tables.
        check: measures mixtures.
        most: what the choice may cost: bytes, or ms where the problem has a latency.
    """

    base: Profile
    problem: Problem
    check: Checker
    most: float

    @property
    def kept_algorithm(self) -> str | None:
        """The base's algorithm, if it needs more than what is known here: trials cannot tell what it is worth."""
        weights = self.base.weights
        return weights.algorithm if weights.dtype == "int4" and cheap(weights.storage()) != weights.storage() else None

    def space(self) -> Space:
        """Return what may be set, and to what."""
        labels = [one.label for one in self.problem.candidates]
        narrow = [label for label in labels if label.startswith("int4")]
        zero_points = get_backend(self.check.backend).LIMITS.zero_points and self.problem.latency is None
        return {
            "algorithm": [self.kept_algorithm] if self.kept_algorithm else _algorithms(),
            "zero points": ["no", "yes"] if zero_points else ["no"],
            "int4 groups": [_ANY, *narrow] if len(narrow) > 1 else [_ANY],
            "embedding": [_ANY, *labels],
        }

    def solve(self, setting: Setting) -> tuple[Profile, Problem, NDArray[np.int64]] | None:
        """Return the profile and the tables of a setting, and its best choice; None where none is cheap enough."""
        symmetric = setting["zero points"] == "no"
        weights = Weights(dtype="int4", group_size=32, symmetric=symmetric, algorithm=setting["algorithm"])
        profile = msgspec.structs.replace(self.base, weights=weights)
        limits = get_backend(self.check.backend).LIMITS
        candidates = [candidate(one.label, weights, self.base.sparse) for one in self.problem.candidates]
        size = unit_sizes(self.check.left.decoder, self.problem.units, candidates, limits)
        problem = replace(self.problem, candidates=candidates, size=size).only(_allowed(setting))
        solution = minimise(problem.kl, problem.costs, self.most)
        return None if solution is None else (profile, problem, solution.choice)

    def evaluate(self, setting: Setting) -> float:
        """Return the measured KL of a setting's best mixture, in nats; infinite where there is none."""
        solved = self.solve(setting)
        if solved is None:
            return float("inf")
        profile, problem, choice = solved
        try:
            return self.check.measure(
                tuned_profile(profile, self.base.name, "", problem.choose(choice))
            ).divergence.mean_kl
        except ValueError:  # the algorithm does not take such a scheme
            return float("inf")


def _algorithms() -> Sequence[str]:
    """Return the algorithms that need no more than the importance of inputs, which is known here."""
    schemes = [Scheme("int4", 32, algorithm=name) for name in algorithm_names()]
    return [scheme.algorithm for scheme in schemes if cheap(scheme) == scheme]


def _allowed(setting: Setting) -> Callable[[Unit, Candidate], bool]:
    def allowed(unit: Unit, candidate: Candidate) -> bool:
        if unit.name == EMBEDDING:
            return setting["embedding"] in (_ANY, candidate.label)
        return not candidate.label.startswith("int4") or setting["int4 groups"] in (_ANY, candidate.label)

    return allowed
