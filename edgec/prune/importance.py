"""What of a decoder to keep: how much its layers, units, heads and dimensions count on a calibration text.

The float model runs block by block, as in `edgec.quantize.sequential`. What counts how much:

- A **layer**, by any method: its block influence, 1 - the mean over tokens of the cosine between the residual stream
  before and after it (Men et al. 2024, ShortGPT, arXiv:2403.03853).
- An inner unit of an **MLP**, by what flows from it into `down`; a **group** of heads that share keys and values, by
  what flows from it into `o`:
  - "magnitude": the norm of all weights of the unit, in every matrix that makes it or reads it.
  - "activation": the mean over tokens of |x|, summed over the values of a group.
  - "wanda": the root mean square of x times the norm of the weights that read it, summed alike (Sun et al. 2023,
    arXiv:2306.11695).
  - "taylor": the sum over tokens of |x * gradient|, where x * gradient is summed over the values of a group: the change
    of the loss, to first order, if the unit gave 0 to that token (Molchanov et al. 2019, arXiv:1906.10771; Michel et
    al. 2019, arXiv:1905.10650).
- A dimension of the **residual stream**, as one for all layers: "magnitude" over all matrices that write or read it;
  "activation" and "wanda" of the inputs of q, k, v, gate, up and the output matrix, which are outputs of norms in most
  families (Muralidharan et al. 2024, Minitron, arXiv:2407.14679); "taylor" of the stream itself, between all blocks.

The gradient is that of the model's loss, the mean of -log p(next token), not of a block's own error. One sweep back
over the blocks computes it: each is run again on the inputs that the sweep forward left, and gives the gradient of its
inputs. Memory: weights of two blocks, what is inside a block for 4 x 1024 tokens, and the hidden states of the text:
three times, but with "taylor" twice for each layer.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgec.calibrate import cache
from edgec.calibrate.flow import Flow
from edgec.errors import UsageError
from edgec.frontends.architecture import Decoder
from edgec.graph.blocks import cut, read_later
from edgec.graph.tags import MASK
from edgec.graph.torch_run import TorchBlock
from edgec.prune.keep import Keep, Sizes, full
from edgec.prune.scores import Floats, Importance, Method, Tally, Tensor
from edgec.prune.taylor import output_of, sweep_back
from edgec.quantize.sequential import text_key
from edgec.quantize.threads import one_thread
from edgec.quantize.weights import one_ahead

Ids = NDArray[np.int64]
Tick = Callable[[str], object]


def choose(
    model: ir.Model,
    decoder: Decoder,
    windows: Ids | None,
    sizes: Sizes,
    method: Method,
    *,
    source: str,
    folder: Path,
    device: str = "cpu",
    tick: Tick = lambda _: None,
) -> Keep:
    """Return what to keep of a decoder: as much as `sizes` say, of what counts most.

    Layers and widths are measured in the whole model. What was measured is kept in `folder`: for other sizes, or after
    an interruption of what comes next, the same model and text are not measured again.

    Args:
        model: its canonical graph, with lazy float weights; not changed.
        decoder: its description.
        windows: token ids (n, tokens); None will do for "magnitude" if all layers stay.
        sizes: of what stays.
        method: for all but layers.
        source: says which float graph it is: hashes of its files, and what was done to the graph.
        folder: for results.
        device: where blocks run.
        tick: called with the name of each block of the sweep forward.

    Raises:
        CheckpointError: the model computes something that is not finite.
        OutputError: the result cannot be written.
        UsageError: the windows are too short for "taylor".
    """
    there = full(decoder)
    only_layers = (sizes.mlp, sizes.groups, sizes.hidden) == (there.mlp, there.groups, there.hidden)
    chosen: Method = "magnitude" if only_layers else method  # which is done soonest, as nothing comes of it
    text = None if chosen == "magnitude" and sizes.layers == there.layers else windows
    path = folder / f"{cache.key(cache.code_key(), torch.__version__, source, text_key(text), chosen, device)}.npz"
    known = cache.load(path)
    if known is None or known.keys() != Importance.__annotations__.keys():
        known = vars(importance(model, decoder, text, chosen, device=device, tick=tick))
        cache.save(path, known)
    return most_important(Importance(**known), sizes)


def most_important(found: Importance, sizes: Sizes) -> Keep:
    """Keep what counts most; of what counts the same, the first."""
    layers = _largest(found.layers, sizes.layers)
    mlp, groups = (
        tuple(_largest(scores[layer], size) for layer in layers)
        for scores, size in ((found.mlp, sizes.mlp), (found.groups, sizes.groups))
    )
    return Keep(layers, mlp, groups, _largest(found.hidden, sizes.hidden))


def _largest(scores: Floats, count: int) -> tuple[int, ...]:
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))


@torch.no_grad()
@one_thread()
def importance(
    model: ir.Model,
    decoder: Decoder,
    windows: Ids | None,
    method: Method,
    *,
    device: str = "cpu",
    tick: Tick = lambda _: None,
) -> Importance:
    """Measure how much each part of a decoder counts on a calibration text.

    Args:
        model: its canonical graph, with lazy float weights; not changed.
        decoder: its description.
        windows: token ids (n, tokens); each row is a context of its own. None, for
            "magnitude" alone, leaves layers out.
        method: for all but layers.
        device: where blocks run.
        tick: called with the name of each block of the sweep forward.

    Raises:
        CheckpointError: the model computes something that is not finite.
        UsageError: the windows are too short for "taylor".
    """
    if method == "taylor" and windows is not None and windows.shape[1] < 2:
        raise UsageError("a window of one token has no next token to predict", hint="calibrate on longer windows")
    blocks = cut(model)
    runners, tally = [TorchBlock(block, device) for block in blocks], Tally(decoder, method)
    if windows is None:
        for runner, weights in one_ahead(TorchBlock.load, runners):
            tally.add(runner, weights, None)
            tick(runner.block.name)
        return tally.importance()
    later, flow = read_later(blocks), Flow(windows, device)
    everything = {name for names in later for name in names}
    before = stream = torch.empty(0)
    for index, (runner, weights) in enumerate(one_ahead(TorchBlock.load, runners)):
        block = runner.block
        if block.name.endswith(".attention"):
            before = stream
        tally.add(runner, weights, flow)
        if index < len(blocks) - 1:
            flow.advance(runner, weights, everything if method == "taylor" else later[index])
            stream = stream if block.name == MASK else flow.values[output_of(block)]
        if block.name.endswith(".mlp"):
            tally.layers.append(_influence(before, stream))
        tick(block.name)
    if method == "taylor":
        sweep_back(flow, runners, decoder, tally)
    return tally.importance()


def _influence(before: Tensor, after: Tensor) -> float:
    """Return 1 - the mean over tokens of the cosine between two streams (windows, tokens, hidden)."""
    cosines = [functional.cosine_similarity(x, y, dim=-1).mean() for x, y in zip(before, after, strict=True)]
    return 1 - float(torch.stack(cosines).double().mean())
