import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgec.errors import BundleError
from edgec.generate.tokenizer import Tokenizer

SAMPLE = ["The quick brown fox says: héllo wörld! 日本語のテキスト", "  spaces   and\ttabs\n\n"]


def byte_level() -> Engine:
    """As GPT-2 and Llama 3 have it: tokens are bytes, a character may take several."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    engine.train_from_iterator(SAMPLE, trainer)
    return engine


def byte_fallback() -> Engine:
    """As SentencePiece has it: a mark for spaces, the first of which the decoder takes away, and tokens for bytes."""
    pieces = [
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁a",
        "he",
    ]
    engine = Engine(models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "a"), ("h", "e")], byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.add_special_tokens(["<s>", "</s>"])
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return engine


CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "chat_template": "{{ bos_token }}"}
ENGINES = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.fixture(params=ENGINES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(ENGINES[request.param], CONFIG)


def files(engine: Engine, **others: bytes) -> dict[str, bytes]:
    return {"tokenizer.json": engine.to_str().encode(), "tokenizer_config.json": json.dumps(CONFIG).encode(), **others}


@pytest.mark.parametrize("name", ENGINES)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\N{REPLACEMENT CHARACTER}▁"), max_size=30))
def test_streamed_pieces_join_to_the_text(name: str, text: str):
    tokenizer = Tokenizer(ENGINES[name], CONFIG)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert stream.flush() == ""
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) == tokenizer.decode(ids) == text


def test_pieces_come_as_soon_as_they_can(tokenizer: Tokenizer):
    ids = tokenizer.encode("he is a fox")
    stream, text = tokenizer.stream(), ""
    for count, token in enumerate(ids, 1):
        text += stream.push(token)
        assert text == tokenizer.decode(ids[:count])


def test_flush_gives_what_is_no_character(tokenizer: Tokenizer):
    ids = tokenizer.encode("日")[:-1]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == ""
    assert stream.flush() == tokenizer.decode(ids)
    assert stream.push(tokenizer.encode("z")[-1]) == "z"


def test_bos_is_what_the_tokenizer_adds():
    plain, marking = (Tokenizer(ENGINES[name], CONFIG) for name in ("byte_level", "byte_fallback"))
    assert plain.bos_id is None
    assert marking.bos_id == 0
    assert marking.encode("he")[0] == 0
    assert marking.encode("he", special=False)[0] != 0


def test_eos_is_what_the_config_says():
    assert Tokenizer(ENGINES["byte_level"], CONFIG).eos_id == 1
    assert Tokenizer(ENGINES["byte_level"], {}).eos_id is None


def test_the_vocabulary_has_room_for_added_tokens():
    engine = byte_level()
    size = engine.get_vocab_size()
    assert Tokenizer(engine, {}).vocabulary == size
    engine.add_tokens(["<more>"])
    assert Tokenizer(engine, {}).vocabulary == size + 1


def test_special_tokens_are_no_text(tokenizer: Tokenizer):
    ids = tokenizer.encode("he", special=False)
    assert tokenizer.decode([0, *ids, 1]) == "he"


def test_chat_writes_special_tokens_once():
    content = files(ENGINES["byte_fallback"])
    content["chat_template.jinja"] = b"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tokenizer = Tokenizer.from_files(content)
    assert tokenizer.chat([{"role": "user", "content": "he"}]) == [0, *tokenizer.encode("he", special=False), 1]


def test_a_conversation_that_is_over_is_the_same_every_day():
    template = (
        "{{ messages[0].content }}{% if add_generation_prompt %}?{% endif %} {{ strftime_now('%d %b %Y %H:%M') }}"
    )
    tokenizer = Tokenizer(ENGINES["byte_level"], {}, template)
    assert tokenizer.has_chat_template
    said = tokenizer.conversation([{"role": "user", "content": "he"}])
    assert tokenizer.decode(said) == "he 01 Jan 2025 00:00"


@pytest.mark.parametrize("value", [[{"name": "default", "template": "he"}, {"name": "rag", "template": "x"}], "he"])
def test_finds_the_template_in_the_config(value: object):
    tokenizer = Tokenizer(ENGINES["byte_level"], {"chat_template": value})
    assert tokenizer.decode(tokenizer.chat([])) == "he"


def test_refuses_to_chat_without_a_template():
    with pytest.raises(BundleError, match="no chat template"):
        Tokenizer(ENGINES["byte_level"], {}).chat([])


def test_truncation_and_padding_of_training_are_ignored():
    engine = byte_level()
    engine.enable_truncation(3)
    engine.enable_padding(length=64)
    assert len(Tokenizer.from_files(files(engine)).encode("a b c d e f g h")) == 15


def test_reads_a_directory(tmp_path: Path):
    for name, content in files(ENGINES["byte_level"]).items():
        (tmp_path / name).write_bytes(content)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode(SAMPLE[0])) == SAMPLE[0]
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"no tokenizer\.json") as error:
        Tokenizer.from_directory(tmp_path)
    assert error.value.where == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_refuses_damaged_files(name: str, content: bytes):
    with pytest.raises(BundleError, match=r"cannot be read|no object"):
        Tokenizer.from_files({**files(ENGINES["byte_level"]), name: content})
