"""Train the storyteller: a tokenizer and a small Llama, on stories that are made up as it reads them.

Writes checkpoint/, data/ and training_report.json.
"""

import argparse
import itertools
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from channels import spread_channels
from data import BOS, BOS_ID, EOS, EOS_ID, encode_story, stories, train_tokenizer
from grammar import story
from loop import Settings, best_of, make_model, train, training_batches
from measure import floor, perplexity, rounded, share_in_grammar
from teller import Grammar
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM
from world import make_world

# Seeds of the streams of stories; the splits are disjoint whatever they are.
TOKENIZER_SEED, TRAIN_SEED, FILE_SEED = 1, 2, 3
STORIES = {"calibration": 200, "validation": 120, "heldout": 260}
SAMPLED_STORIES = 64
# The first held-out stories, about 5000 tokens, are enough to tell whether a checkpoint is the reported one.
HEAD_STORIES = 26


def write_texts(grammar: Grammar, folder: Path, counts: dict[str, int]) -> dict[str, list[str]]:
    """Write a text file for each name, one story a line, and return the stories.

    Calibration stories are from the training split.

    Raises:
        ValueError: a story occurs twice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for name, count in counts.items():
        split = "train" if name == "calibration" else name
        texts[name] = list(itertools.islice(stories(grammar, split, FILE_SEED), count))
        (folder / f"{name}.txt").write_text("".join(text + EOS for text in texts[name]), encoding="utf-8")
    every = [text for some in texts.values() for text in some]
    if len(set(every)) != len(every):
        raise ValueError("a story occurs twice in the text files: take another FILE_SEED")
    return texts


def write_checkpoint(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights, configuration and tokenizer in the Hugging Face layout."""
    # The end of a story also pads; in the model's own config it would stop that token's embedding from learning.
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=EOS_ID)
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", config)


def evaluate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, grammar: Grammar, texts: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the perplexities of the splits, their floors, and what rounding the weights costs."""
    documents = {name: [encode_story(tokenizer, text) for text in texts[name]] for name in ("validation", "heldout")}
    variants = {
        "fp32": model,
        "int8 per channel": rounded(model, 8),
        "int4 per channel": rounded(model, 4),
        "int4 groups of 32": rounded(model, 4, 32),
    }
    return {
        "floor": {name: floor(grammar, tokenizer, texts[name]) for name in documents},
        "perplexity": {
            **{name: perplexity(model, some) for name, some in documents.items()},
            f"heldout, first {HEAD_STORIES} stories": perplexity(model, documents["heldout"][:HEAD_STORIES]),
        },
        "rounded": {
            name: {
                "heldout_perplexity": perplexity(variant, documents["heldout"]),
                "share_in_grammar": share_in_grammar(variant, tokenizer, grammar, SAMPLED_STORIES, seed=0),
            }
            for name, variant in variants.items()
        },
    }


def run(out: Path, settings: Settings, counts: dict[str, int]) -> dict[str, Any]:
    """Train everything, write it under `out`, and return the report."""
    grammar = story(make_world())
    texts = write_texts(grammar, out / "data", counts)
    sample = itertools.islice(stories(grammar, "train", TOKENIZER_SEED), settings.tokenizer_stories)
    tokenizer = train_tokenizer(sample, settings.vocab)
    model = make_model(settings, tokenizer.get_vocab_size())
    validation = [encode_story(tokenizer, text) for text in texts["validation"]]
    batches = training_batches(tokenizer, stories(grammar, "train", TRAIN_SEED + settings.seed), settings)
    curve = train(model, batches, validation, settings)
    spread_channels(model, settings.spread, settings.seed)
    write_checkpoint(model, tokenizer, out / "checkpoint")
    report = {
        "settings": asdict(settings),
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_read": curve[-1].step * settings.batch * settings.length,
        "stories": counts,
        "best_step": best_of(curve).step,
        "stopped_early": curve[-1].step < settings.steps,
        **evaluate(model, tokenizer, grammar, texts),
        "curve": [asdict(point) for point in curve],
    }
    _write_json(out / "training_report.json", report)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, help="folder that everything is written to")
    parser.add_argument("--threads", type=int, default=1, help="their number changes the weights in the last digits")
    for option in fields(Settings):
        kind: dict[str, Any] = {"type": type(option.default)}
        if isinstance(option.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        name = option.name.replace("_", "-")
        parser.add_argument(f"--{name}", default=option.default, help=option.metadata["help"], **kind)
    options = vars(parser.parse_args(arguments))
    out, threads = options.pop("out"), options.pop("threads")
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    report = run(out, Settings(**options), STORIES)
    print(json.dumps({key: report[key] for key in ("floor", "perplexity", "rounded")}, indent=2))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
