"""What a model is asked to do while it is timed: MLPerf's scenarios."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

Scenario = Literal["single-stream", "offline", "server"]
_Count = Annotated[int, msgspec.Meta(ge=1)]


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
    prompt_tokens: _Count = 128
    new_tokens: _Count = 32
    batch: _Count = 1
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    sizes: dict[str, _Count] = {}

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
        if self.scenario != "offline":
            del words["batch"]
        return ", ".join(filter(None, words.values()))

    def _words(self) -> dict[str, str]:
        return {
            "scenario": self.scenario,
            "prompt_tokens": f"{self.prompt_tokens} prompt tokens",
            "new_tokens": f"{self.new_tokens} new",
            "batch": f"batch {self.batch}",
            "rate_per_s": f"{self.rate_per_s:g}/s" if self.rate_per_s else "",
            "sizes": ", ".join(f"{name} {size}" for name, size in self.sizes.items()),
        }
