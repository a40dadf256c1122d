"""Stories by split, the tokenizer that is trained on them, and the rows that the model is trained on.

A story's split follows from a hash of its text, so no story is ever in two, whatever the seeds. A text file holds one
story a line, and the newline is the token that ends a story: a file, tokenized whole, is what the model was trained on.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence

from teller import Grammar, tell
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS = "<|bos|>", "\n"
BOS_ID, EOS_ID = 0, 1


def split_of(text: str) -> str:
    """Return the split of a story: 90 % of all stories are `train`, 5 % `validation` and 5 % `heldout`."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 20
    return {0: "heldout", 1: "validation"}.get(bucket, "train")


def stories(grammar: Grammar, split: str, seed: int) -> Iterator[str]:
    """Yield the stories of a split without end."""
    rng = random.Random(f"{split} {seed}")
    while True:
        text, _ = tell(grammar, rng)
        if split_of(text) == split:
            yield text


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer that puts `BOS` before every text and knows `EOS` as the end of a story."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode_story(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of one whole story: `BOS`, its words, `EOS`."""
    ids: list[int] = tokenizer.encode(text + EOS).ids
    return ids


def training_rows(tokenizer: Tokenizer, texts: Iterator[str], length: int) -> Iterator[Sequence[int]]:
    """Yield rows of tokens without end: in turn from `BOS` on, and from where the row before broke off.

    So the model learns both the start of a text and a window from the middle of one.
    """
    pending: list[int] = []
    for fresh in itertools.cycle((True, False)):
        if fresh:
            pending = [BOS_ID]
        while len(pending) < length:
            pending += encode_story(tokenizer, next(texts))[1:]
        yield pending[:length]
        pending = pending[length:]
