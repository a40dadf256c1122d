"""`edgec run`: generate text with a bundle."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgec.cli._console import json_option, print_json, say
from edgec.errors import UsageError

if TYPE_CHECKING:
    from edgec.generate.sampling import Sampling
    from edgec.generate.tokenizer import Tokenizer


class Generation(msgspec.Struct, frozen=True):
    """What was generated, and how fast; times are None where there was nothing to time, or no engine that ran."""

    text: str
    prompt_tokens: int
    new_tokens: int
    ttft_ms: float | None
    decode_tokens_per_s: float | None


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--prompt", required=True, metavar="TEXT", help="What to continue, or with --chat what to answer.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0, or 1 with --top-k or --top-p]")
@click.option("--top-k", type=int, metavar="K", help="Choose from the K most likely tokens.")
@click.option(
    "--top-p", type=float, metavar="P", help="Choose from the fewest tokens that together have probability P."
)
@click.option("--seed", type=click.IntRange(min=0), help="Make a random choice repeatable.")
@click.option("--beams", type=click.IntRange(min=1), metavar="N", help="Search with N beams instead of choosing.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="[default: the runtime's choice]")
@json_option
def command(
    *,
    bundle: Path,
    prompt: str,
    chat: bool,
    max_new_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    beams: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Generate text with BUNDLE: the text goes to stdout as it comes, its speed to stderr.

    BUNDLE is what `edgec build` made, or any decoder's directory for onnxruntime-genai or openvino_genai.
    """
    from edgec.backends.backend import backend_of
    from edgec.bundle.open import find_decoder
    from edgec.generate.tokenizer import Tokenizer

    sampling = _sampling(temperature, top_k, top_p, beams)
    artifact = find_decoder(bundle)
    backend = backend_of(artifact)
    settings = backend.read_settings(artifact)
    if not_run := backend.not_run(artifact):
        say(f"note: {not_run}")
    tokenizer = Tokenizer.from_directory(artifact)
    ids = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    context = settings.context_length
    if len(ids) > context:
        raise UsageError(f"the prompt has {len(ids)} tokens, the model takes {context}", hint="shorten the prompt")

    from edgec.generate.beam import beam_search
    from edgec.generate.loop import generate

    room = min(context, len(ids) + max_new_tokens)
    session = backend.open_session(artifact, "generate", threads=threads, max_length=room)
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos_ids": settings.eos_ids}
    show = (lambda _: None) if as_json else (lambda text: click.echo(text, nl=False))
    if beams:
        result = _at_once(lambda: beam_search(session, ids, beams=beams, **limits), tokenizer, len(ids), show)
    else:
        tokens = generate(session, ids, sampling=sampling, seed=seed, **limits)
        result = _as_it_comes(tokens, tokenizer, len(ids), show)
    if not_run:  # what ran in its place says nothing about its speed
        result = msgspec.structs.replace(result, ttft_ms=None, decode_tokens_per_s=None)
    if as_json:
        print_json(result)
    else:
        click.echo()
        say(_describe(result))


def _sampling(temperature: float | None, top_k: int | None, top_p: float | None, beams: int | None) -> "Sampling":
    from edgec.generate.sampling import Sampling

    random = top_k is not None or top_p is not None
    if beams and (random or temperature):
        raise UsageError("--beams searches; it takes no --temperature, --top-k or --top-p")
    if random and temperature == 0:
        raise UsageError("with --temperature 0 there is no choice for --top-k or --top-p")
    chosen = (1.0 if random else 0.0) if temperature is None else temperature
    return Sampling(chosen, top_k, 1.0 if top_p is None else top_p)


def _as_it_comes(
    tokens: Iterator[int], tokenizer: "Tokenizer", prompt_tokens: int, show: Callable[[str], None]
) -> Generation:
    stream, pieces, times = tokenizer.stream(), [], [time.perf_counter()]
    for token in tokens:
        times.append(time.perf_counter())
        pieces.append(stream.push(token))
        show(pieces[-1])
    pieces.append(stream.flush())
    show(pieces[-1])
    new = len(times) - 1
    return Generation(
        text="".join(pieces),
        prompt_tokens=prompt_tokens,
        new_tokens=new,
        ttft_ms=1e3 * (times[1] - times[0]) if new else None,
        decode_tokens_per_s=(new - 1) / (times[-1] - times[1]) if new > 1 else None,
    )


def _at_once(
    search: Callable[[], list[int]], tokenizer: "Tokenizer", prompt_tokens: int, show: Callable[[str], None]
) -> Generation:
    start = time.perf_counter()
    tokens = search()
    seconds = time.perf_counter() - start
    text = tokenizer.decode(tokens)
    show(text)
    return Generation(text, prompt_tokens, len(tokens), None, len(tokens) / seconds)


def _describe(result: Generation) -> str:
    parts = [f"{result.prompt_tokens} prompt tokens, {result.new_tokens} new"]
    if result.ttft_ms is not None:
        parts.append(f"first after {result.ttft_ms:.1f} ms")
    if result.decode_tokens_per_s is not None:
        parts.append(f"{result.decode_tokens_per_s:.1f} tokens/s")
    return ", ".join(parts)
