import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgec.checkpoint.gguf_tokenizer import tokenizer_files
from edgec.errors import CheckpointError

TEXTS = [
    "Hello world, it's 2024; I'VE 12345.67 dollars!",
    "  leading and   many\n\n\tspaces \n",
    "naïve café — 日本語 😀 ½² ١٢٣ e\u0301",
    "def f(x):\n    return x ** 2  # 100 %",
    "<|begin|>user\nhi<|end|> <think>now</think>",
    "",
    " ",
]
PATH = Path("model.gguf")


def llama_split(digits: str) -> str:
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def reference(pre: str) -> Tokenizer:
    """Train the kind of tokenizer.json that the name `pre` stands for."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in ("gpt-2", "smollm"))
    before = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(llama_split(r"\p{N}{1,3}")), "isolated")],
        "qwen2": [pre_tokenizers.Split(Regex(llama_split(r"\p{N}")), "isolated")],
    }[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def metadata(tokenizer: Tokenizer, named: str, **more: Any) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    kinds = {"<|begin|>": 3, "<|end|>": 3, "<think>": 4}
    values = {
        "model": "gpt2",
        "pre": named,
        "tokens": tokens,
        "token_type": [kinds.get(token, 1) for token in tokens],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokens_equal_those_of_the_original(pre: str) -> None:
    original = reference(pre)
    made = load(tokenizer_files(metadata(original, pre, add_bos_token=False), PATH))
    for text in TEXTS:
        assert made.encode(text).ids == original.encode(text).ids
        assert made.decode(made.encode(text).ids) == original.decode(original.encode(text).ids)


def test_sentencepiece_tokens_equal_those_of_sentencepiece() -> None:
    """The fixture holds a vocabulary that SentencePiece 0.2.3 trained, and what its own encoder made of some texts."""
    fixture = json.loads((Path(__file__).parent / "sentencepiece.json").read_text())
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    values = {"model": "llama", **ids, **{key: fixture[key] for key in ("tokens", "scores", "token_type")}}
    made = load(tokenizer_files({f"tokenizer.ggml.{key}": value for key, value in values.items()}, PATH))
    for text, expected in fixture["cases"]:
        assert made.encode(text).ids == [1, *expected]
        assert made.decode(made.encode(text).ids) == text


@pytest.mark.parametrize(
    ("pre", "more", "before", "after"),
    [
        ("llama-bpe", {}, [0], []),
        ("qwen2", {}, [], []),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, [0], [1]),
    ],
)
def test_begin_and_end_are_added_where_the_model_expects_them(
    pre: str, more: dict[str, bool], before: list[int], after: list[int]
) -> None:
    original = reference(pre)
    made = load(tokenizer_files(metadata(original, pre, **more), PATH))
    assert made.encode("Hello").ids == [*before, *original.encode("Hello").ids, *after]
    assert made.encode("Hello", add_special_tokens=False).ids == original.encode("Hello").ids


def test_companions_name_the_special_tokens_and_the_template() -> None:
    values = metadata(reference("smollm"), "smollm", eot_token_id=2, padding_token_id=1)
    files = tokenizer_files(values | {"tokenizer.chat_template": "{{ messages }}"}, PATH)
    assert json.loads(files["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|end|>",
        "chat_template": "{{ messages }}",
    }
    generation = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 1}
    assert json.loads(files["generation_config.json"]) == generation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "kind 'bert' is not supported"),
        ({"pre": "tekken"}, "by the rules of 'tekken'"),
        ({"pre": "default"}, "by the rules of 'default'"),
        ({"tokens": None}, "list of tokens is missing or ambiguous"),
        ({"tokens": ["a", "a"]}, "list of tokens is missing or ambiguous"),
        ({"merges": ["no such"]}, "the tokenizer is damaged"),
        ({"merges": ["three parts here"]}, "the tokenizer is damaged"),
        ({"bos_token_id": 100_000}, "names token 100000"),
    ],
)
def test_refuses_a_tokenizer(change: dict[str, Any], message: str) -> None:
    values = metadata(reference("gpt-2"), "gpt-2", **change)
    with pytest.raises(CheckpointError, match=message) as error:
        tokenizer_files(values, PATH)
    assert "Hugging Face directory" in str(error.value)
    assert error.value.where == "model.gguf"


def load(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"].decode())
