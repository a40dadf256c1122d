"""A tokenizer whose tokens can be read: the word "17" is token 17."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, processors

from edgec.generate.tokenizer import Tokenizer

BOS, EOS, OTHER, USER, BOT = 0, 1, 2, 3, 4
VOCABULARY = 1000

Words = Callable[..., Tokenizer]


@pytest.fixture(scope="session")
def words() -> Words:
    """Return a function that makes the tokenizer, with or without marks around a text and a chat template."""

    def make(*, bos: bool = False, eos: bool = False, template: str | None = None) -> Tokenizer:
        vocab = {"<s>": BOS, "</s>": EOS, "?": OTHER, "<u>": USER, "<b>": BOT}
        engine = Engine(models.WordLevel(vocab | {str(n): n for n in range(5, VOCABULARY)}, unk_token="?"))
        engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if bos:
            engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
        config = {"bos_token": "<s>", **({"eos_token": "</s>"} if eos else {})}
        return Tokenizer(engine, config, template)

    return make


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Return a function that writes a file and returns its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write
