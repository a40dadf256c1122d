"""What a model is asked to do while it is timed: MLPerf's scenarios."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

Scenario = Literal["single-stream", "offline", "server"]

MOST_TOKENS = 1_000_000
"""Of a prompt, or decoded; also the most of a size that a network leaves open."""

MOST_ROWS = 65_536
"""Of a query."""

MOST_THREADS = 1024
"""Of a runtime."""

Length = Annotated[int, msgspec.Meta(ge=1, le=MOST_TOKENS)]
Rows = Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)]

# What marks the batch among the sizes that a network leaves open.
_BATCH = "batch"


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to use a model.

    A query of a decoder is a prompt of random tokens and greedy decoding after it; one of any other model is a run on
    made-up inputs.

    Args:
        scenario: "single-stream" (one query after the other), "offline" (`batch` rows at once, for throughput) or
            "server" (queries arrive at random, at `rate_per_s`, and wait for those before them).
        prompt_tokens: of a decoder's query.
        new_tokens: decoded after the first.
        batch: rows of a query.
        rate_per_s: queries that arrive in a second, in the mean, for "server".
        sizes: name -> what a size is that a network leaves open.

    Source: Reddi et al., "MLPerf Inference Benchmark", 2020: the scenarios, and Poisson arrivals.
    """

    scenario: Scenario = "single-stream"
    prompt_tokens: Length = 128
    new_tokens: Length = 32
    batch: Rows = 1
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    sizes: dict[str, Length] = {}

    def __post_init__(self) -> None:
        if self.scenario == "server" and self.rate_per_s is None:
            raise ValueError('the scenario "server" needs `rate_per_s`')
        if self.scenario != "server" and self.rate_per_s is not None:
            raise ValueError(f'`rate_per_s` is for the scenario "server", not for "{self.scenario}"')
        if self.scenario != "offline" and self.batch != 1:
            raise ValueError(f'`batch` is for the scenario "offline", not for "{self.scenario}"')

    def label(self, among: Sequence["Workload"]) -> str:
        """Return in words how it differs from others; "" where there are none."""
        differ = [word for name, word in self._words().items() if len({str(getattr(each, name)) for each in among}) > 1]
        return ", ".join(filter(None, differ))

    def title(self, *, lengths: bool) -> str:
        """Return in words what it is; prompt and new tokens where it is a decoder that has `lengths`."""
        left_out = {"sizes"} if lengths else {"prompt_tokens", "new_tokens"}
        words = {name: word for name, word in self._words().items() if name not in left_out}
        if self.scenario != "offline" or (self.sizes and self.batch == 1):  # which may say how many rows there are
            del words["batch"]
        return ", ".join(filter(None, words.values()))

    def _words(self) -> dict[str, str]:
        return {
            "scenario": self.scenario,
            "prompt_tokens": f"{self.prompt_tokens} prompt tokens",
            "new_tokens": f"{self.new_tokens} new",
            "batch": "" if self._sizes_batch() else f"batch {self.batch}",
            "rate_per_s": f"{self.rate_per_s:g}/s" if self.rate_per_s else "",
            "sizes": ", ".join(f"{name} {size}" for name, size in self.sizes.items()),
        }

    def _sizes_batch(self) -> bool:
        """Say whether `sizes` says how many rows there are."""
        return self.batch == 1 and any(_BATCH in name for name in self.sizes)
