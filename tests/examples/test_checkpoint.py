"""The committed checkpoint is a Llama of the stated size that knows its world, and forgets some of it at 4 bits."""

import json
from pathlib import Path

import pytest
import torch
from data import BOS_ID, EOS_ID, encode_story
from grammar import story
from measure import floor, perplexity, rounded
from tokenizers import Tokenizer
from train import HEAD_STORIES
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from world import make_world

STORYTELLER = Path(__file__).parents[2] / "examples" / "storyteller"

CHECKPOINT = STORYTELLER / "checkpoint"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads((STORYTELLER / "training_report.json").read_text())


@pytest.fixture(scope="module")
def head() -> list[str]:
    text = (STORYTELLER / "data" / "heldout.txt").read_text(encoding="utf-8")
    return text.splitlines()[:HEAD_STORIES]


def test_size_and_configuration(model, report) -> None:
    assert type(model) is LlamaForCausalLM
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == report["parameters"]
    assert 2_000_000 <= parameters <= 5_000_000
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.config.head_dim % 16 == 0
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.lm_head.weight is model.model.embed_tokens.weight
    files = [path for path in STORYTELLER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 16 * MEGABYTE


def test_perplexity_is_the_reported_one_and_near_the_floor(model, tokenizer, head, report) -> None:
    documents = [encode_story(tokenizer, text) for text in head]
    assert sum(map(len, documents)) == pytest.approx(5000, rel=0.1)
    found = perplexity(model, documents)
    assert found == pytest.approx(report["perplexity"][f"heldout, first {HEAD_STORIES} stories"], rel=1e-3)
    lowest = floor(story(make_world()), tokenizer, head)
    assert lowest < found < 1.25 * lowest


def test_four_bits_hurt_and_eight_do_not(model, tokenizer, head) -> None:
    documents = [encode_story(tokenizer, text) for text in head]
    whole = perplexity(model, documents)
    assert perplexity(rounded(model, 8), documents) < 1.005 * whole
    assert perplexity(rounded(model, 4), documents) > 1.03 * whole
    assert perplexity(model, documents) == whole, "rounding a copy changed the model"


def test_padding_and_batching_change_nothing(model, tokenizer, head) -> None:
    documents = [encode_story(tokenizer, text) for text in head[:5]]
    total, count = 0.0, 0
    for ids in documents:
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        total, count = total + loss * (len(ids) - 1), count + len(ids) - 1
    assert perplexity(model, documents) == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)


def test_greedy_stories_end_and_speak_of_their_hero(model, tokenizer) -> None:
    world = make_world()
    good = 0
    for being in world.beings[:8]:
        prompt = f"Once upon a time there was a clever {being.species} called {being.name}"
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=300)[
            0
        ].tolist()
        assert output[0] == BOS_ID
        words = tokenizer.decode(output[ids.shape[1] :]).replace(".", " ").replace(",", " ").split()
        good += output[-1] == EOS_ID and 60 < len(words) < 250 and any(w.startswith(being.name) for w in words)
    assert good >= 7


def test_transformers_reads_the_same_tokens(tokenizer, head) -> None:
    theirs = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = "\n".join(head[:3]) + "\n"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert (theirs.bos_token_id, theirs.eos_token_id) == (BOS_ID, EOS_ID)
