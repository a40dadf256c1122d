"""Read config.json so that nothing in it is ignored by accident."""

import difflib
import sys
from collections.abc import Mapping
from typing import Any

from edgec.errors import CheckpointError

# Keys that cannot change what the model computes at inference.
_HARMLESS = frozenset(
    {
        "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "auto_map", "name_or_path",
        "use_cache", "initializer_range", "initializer_factor", "bos_token_id", "eos_token_id", "pad_token_id",
        "sep_token_id", "unk_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
        "attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "embedding_dropout",
        "classifier_dropout", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "resid_dropout",
        "summary_type", "summary_use_proj", "task_specific_params", "chunk_size_feed_forward", "finetuning_task",
        "id2label", "label2id", "problem_type", "num_labels", "output_attentions", "output_hidden_states",
        "output_router_logits", "return_dict", "return_dict_in_generate", "tokenizer_class", "prefix",
        "torchscript", "use_bfloat16", "gradient_checkpointing", "unsloth_version", "unsloth_fixed",
        "transformers.js_config", "keys_to_ignore_at_inference", "max_length", "min_length", "do_sample",
        "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "num_beams",
        "num_beam_groups", "diversity_penalty", "early_stopping", "no_repeat_ngram_size", "bad_words_ids",
        "encoder_no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens", "num_return_sequences",
        "output_scores", "remove_invalid_values", "exponential_decay_length_penalty", "n_ctx", "is_decoder",
        "cache_implementation", "attn_implementation", "pretraining_tp",
    }
)  # fmt: skip

# Keys that are harmless while they are off.
_OFF = frozenset({"is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder", "pruned_heads"})

_MOST = 2**31 - 1


class Config:
    """A view of config.json, or of a mapping in it, that remembers which keys were read.

    A family reads each key that it understands; `finish` then refuses what is left, because a key that nobody read may
    change the mathematics. A null counts as absent, except for the `optional_` readers.

    Args:
        values: the parsed mapping.
        ignored: further keys that the user declared harmless.
        tensors: names in the checkpoint, for families whose names were changed over the years.
        where: the mapping's place, for messages.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        ignored: frozenset[str] = frozenset(),
        tensors: frozenset[str] = frozenset(),
        where: str = "config.json",
    ) -> None:
        self.ignored = ignored
        self.tensors = tensors
        self.where = where
        self._values = values
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` where it is absent or null."""
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return the value of `key`.

        Raises:
            CheckpointError: it is absent.
        """
        value = self.get(key)
        if value is None:
            raise CheckpointError(
                f"{self.where} has no '{key}', which this architecture needs",
                where=self.where,
                hint="take the config.json that came with the weights",
            )
        return value

    def size(self, key: str, default: int | None = None, most: int = _MOST) -> int:
        """Return an integer from 1 to `most`.

        Raises:
            CheckpointError: it is absent without a default, or not such an integer.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self.wrong(key, value, f"an integer from 1 to {most}")
        return value

    def number(self, key: str, default: float | None = None, above: float | None = None) -> float:
        """Return a finite number, larger than `above`, as float.

        Raises:
            CheckpointError: it is absent without a default, or not such a number.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if not _is_number(value):
            raise self.wrong(key, value, "a number")
        if above is not None and value <= above:
            raise self.wrong(key, value, f"a number above {above:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false.

        Raises:
            CheckpointError: it is neither.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def optional_size(self, key: str, default: int | None) -> int | None:
        """Return a positive integer, or None where the key is null; `default` holds where it is absent."""
        self._read.add(key)
        return None if self._values.get(key, default) is None else self.size(key, default)

    def optional_number(self, key: str, default: float | None) -> float | None:
        """Return a positive number, or None where the key is null; `default` holds where it is absent."""
        self._read.add(key)
        return None if self._values.get(key, default) is None else self.number(key, default, above=0)

    def numbers(self, key: str, count: int) -> list[float]:
        """Return a list of `count` positive numbers.

        Raises:
            CheckpointError: it is absent, or not such a list.
        """
        value = self.need(key)
        if not isinstance(value, list) or len(value) != count or not all(_is_number(v) and v > 0 for v in value):
            raise self.wrong(key, value, f"a list of {count} positive numbers")
        return [float(v) for v in value]

    def mapping(self, key: str) -> dict[str, Any]:
        """Return a copy of a mapping, without its nulls and what the user declared harmless; empty where absent.

        Raises:
            CheckpointError: it is not a mapping.
        """
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, value, "a mapping")
        return {k: v for k, v in value.items() if v is not None and k not in self.ignored}

    def only(self, key: str, default: Any, *supported: Any) -> Any:
        """Return the value of `key` if it is `default` or one of `supported`.

        Raises:
            CheckpointError: the value is another one, which would change the mathematics.
        """
        value = self.get(key, default)
        if value not in (default, *supported):
            known = ", ".join(repr(v) for v in dict.fromkeys((default, *supported)))
            raise CheckpointError(
                f"{self.where}: '{key}' is {value!r}, which edgec does not implement for this architecture",
                where=self.where,
                hint=f"supported: {known}",
            )
        return value

    def wrong(self, key: str, value: Any, expected: str) -> CheckpointError:
        """Return the error for a value that is not what it must be."""
        return CheckpointError(f"{self.where}: '{key}' is {value!r}, not {expected}", where=self.where)

    def finish(self) -> None:
        """Refuse keys that nobody read.

        Raises:
            CheckpointError: a key is left that may change what the model computes.
        """
        for key, value in self._values.items():
            known = key in self._read or key in self.ignored or key in _HARMLESS
            if known or key.startswith("_") or value is None or (key in _OFF and not value):
                continue
            near = difflib.get_close_matches(key, self._read, n=1)
            hint = f"did you mean '{near[0]}'? If not, and" if near else "if"
            raise CheckpointError(
                f"{self.where}: edgec does not know the key '{key}' ({value!r}) for this architecture, "
                "and it may change what the model computes",
                where=self.where,
                hint=f"{hint} it does not, build with --ignore-config {key}",
            )


def _is_number(value: Any) -> bool:
    """Say whether `value` is a number that a float can hold; NaN, infinities and booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
