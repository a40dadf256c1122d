"""Read config.json so that nothing in it is ignored by accident."""

import difflib
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
    }
)  # fmt: skip

# Keys that are harmless while they are off.
_OFF = frozenset({"is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder", "pruned_heads"})


class Config:
    """A view of config.json that remembers which keys were read.

    A family reads each key that it understands; `finish` then refuses what is left, because a key that nobody read may
    change the mathematics.

    Args:
        values: the parsed config.json.
        ignored: further keys that the user declared harmless.
    """

    def __init__(self, values: Mapping[str, Any], ignored: frozenset[str] = frozenset()) -> None:
        self._values = values
        self._ignored = ignored
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
                f"config.json has no '{key}', which this architecture needs",
                where="config.json",
                hint="take the config.json that came with the weights",
            )
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer.

        Raises:
            CheckpointError: it is absent without a default, or not a positive integer.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"config.json: '{key}' is {value!r}, not a positive integer", where="config.json")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number as float.

        Raises:
            CheckpointError: it is absent without a default, or not a number.
        """
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise CheckpointError(f"config.json: '{key}' is {value!r}, not a number", where="config.json")
        return float(value)

    def only(self, key: str, default: Any, *supported: Any) -> Any:
        """Return the value of `key` if it is `default` or one of `supported`.

        Raises:
            CheckpointError: the value is another one, which would change the mathematics.
        """
        value = self.get(key, default)
        if value not in (default, *supported):
            known = ", ".join(repr(v) for v in (default, *supported))
            raise CheckpointError(
                f"config.json: '{key}' is {value!r}, which edgec does not implement for this architecture",
                where="config.json",
                hint=f"supported: {known}",
            )
        return value

    def finish(self) -> None:
        """Refuse keys that nobody read.

        Raises:
            CheckpointError: a key is left that may change what the model computes.
        """
        for key, value in self._values.items():
            known = key in self._read or key in self._ignored or key in _HARMLESS
            if known or key.startswith("_") or value is None or (key in _OFF and not value):
                continue
            near = difflib.get_close_matches(key, self._read, n=1)
            hint = f"did you mean '{near[0]}'? If not, and" if near else "if"
            raise CheckpointError(
                f"config.json: edgec does not know the key '{key}' ({value!r}) for this architecture, "
                "and it may change what the model computes",
                where="config.json",
                hint=f"{hint} it does not, build with --ignore-config {key}",
            )
