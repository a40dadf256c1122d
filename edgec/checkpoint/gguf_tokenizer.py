"""Make tokenizer.json and its companions from the metadata of a GGUF file.

The file names its pre-tokenizer instead of containing it; the expressions here are those of the tokenizer.json files
that the names stand for.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf_update.py
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgec.errors import CheckpointError

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_USE_DIRECTORY = "give the Hugging Face directory that this file was made from"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_WORDS % "{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(_WORDS % ""), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json and generation_config.json made from `metadata` of the file `path`.

    Raises:
        CheckpointError: the tokenizer is of another kind than byte-level or SentencePiece BPE, or incomplete.
    """
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = values.get("model")
    makers: dict[Any, Callable[[Mapping[str, Any], list[str]], Tokenizer]] = {"gpt2": _byte_level, "llama": _pieces}
    tokens = values.get("tokens")
    if kind not in makers or not isinstance(tokens, list) or len(set(tokens)) != len(tokens):
        what = f"kind {kind!r} is not supported" if kind not in makers else "list of tokens is missing or ambiguous"
        raise CheckpointError(f"the tokenizer's {what}", where=str(path), hint=_USE_DIRECTORY)
    try:
        tokenizer = makers[kind](values, tokens)
        special = {
            short: _token(tokens, values[f"{name}_token_id"])
            for short, name in _SPECIAL_TOKENS.items()
            if f"{name}_token_id" in values
        }
        adds_bos = bool(values.get("add_bos_token", kind == "llama" or values.get("pre") == "llama-bpe"))
        _add_tokens(tokenizer, tokens, values.get("token_type") or [])
        _frame(tokenizer, special, adds_bos=adds_bos, adds_eos=bool(values.get("add_eos_token", False)))
    except CheckpointError as error:
        raise CheckpointError(error.what, where=str(path), hint=error.hint) from error
    except Exception as error:  # the tokenizers package raises bare Exception for a merge of unknown tokens
        raise CheckpointError(f"the tokenizer is damaged: {error}", where=str(path), hint=_USE_DIRECTORY) from error
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        **{f"{short}_token": token for short, token in special.items()},
        **({"chat_template": metadata["tokenizer.chat_template"]} if "tokenizer.chat_template" in metadata else {}),
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json(_generation_config(values)),
    }


def _byte_level(values: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    pre = values.get("pre")
    if pre not in _SPLITS:
        raise CheckpointError(
            f"the tokenizer splits text by the rules of {pre!r}, which are not supported",
            hint=f"supported: {', '.join(_SPLITS)}; for others {_USE_DIRECTORY}",
        )
    merges = [_pair(merge) for merge in values["merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _token(tokens: list[str], index: int) -> str:
    if not 0 <= index < len(tokens):
        raise CheckpointError(f"the tokenizer names token {index}, but has {len(tokens)} tokens", hint=_USE_DIRECTORY)
    return tokens[index]


def _pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def _pieces(values: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Return SentencePiece's BPE: two neighbours merge if that makes a token, the highest score first.

    After a token that is matched whole, the prefix space is added again, as Llama 2's tokenizer.json and llama.cpp do;
    SentencePiece's own encoder does not.
    """
    scores = values["scores"]
    vocab = {token: index for index, token in enumerate(tokens)}
    ranked = [
        (-scores[index], vocab[token[:cut]], vocab[token[cut:]])
        for token, index in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(ranked)]
    unknown = _token(tokens, values["unknown_token_id"])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    prefixed = bool(values.get("add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1, right=0)] if prefixed else steps)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Mark the tokens that are matched whole, before the text is split."""
    typed = list(zip(tokens, types, strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in typed if kind == _CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == _USER_DEFINED])


def _frame(tokenizer: Tokenizer, special: Mapping[str, str], *, adds_bos: bool, adds_eos: bool) -> None:
    """Put the tokens for begin and end around every text, where the model was trained so."""
    before = [special["bos"]] if adds_bos and "bos" in special else []
    after = [special["eos"]] if adds_eos and "eos" in special else []
    if before or after:
        used = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])]
        template = [*before, "$A", *after]
        pair = [*template, *(f"{part}:1" for part in [*before, "$B", *after])]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=used)


def _generation_config(values: Mapping[str, Any]) -> dict[str, Any]:
    stops = [values[key] for key in ("eos_token_id", "eot_token_id") if key in values]
    ids = {"bos_token_id": values.get("bos_token_id"), "pad_token_id": values.get("padding_token_id")}
    config = {key: value for key, value in ids.items() if value is not None}
    return config | ({"eos_token_id": stops[0] if len(set(stops)) == 1 else stops} if stops else {})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
