"""Build random Llamas of growing depth to int4 and record the peak memory: it must not grow with the depth.

The deepest has 1.5 billion parameters (bfloat16, sharded safetensors, 3 GB on disk). Writes bench/results/memory.md.
"""

import json
import platform
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent.parent))
import paired

WORK = Path(__file__).parent.parent / ".work"
RESULTS = Path(__file__).parent.parent / "results"
DEPTHS = (7, 14, 28)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def make_llama(folder: Path, depth: int) -> int:
    """Write a random checkpoint, a shard for each layer, and return its number of parameters."""
    rng = np.random.default_rng(0)
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]

    def matrix(rows: int, cols: int) -> np.ndarray:
        return (rng.standard_normal((rows, cols), np.float32) / np.sqrt(cols)).astype(ml_dtypes.bfloat16)

    def layer(i: int) -> dict[str, np.ndarray]:
        shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
        tensors = {f"self_attn.{n}_proj": matrix(*shape) for n, shape in shapes.items()}
        tensors |= {"mlp.gate_proj": matrix(inner, hidden), "mlp.up_proj": matrix(inner, hidden)}
        tensors |= {"mlp.down_proj": matrix(hidden, inner)}
        ones = np.ones(hidden, ml_dtypes.bfloat16)
        tensors |= {"input_layernorm": ones, "post_attention_layernorm": ones.copy()}
        return {f"model.layers.{i}.{name}.weight": tensor for name, tensor in tensors.items()}

    folder.mkdir(parents=True)
    weight_map, parameters = {}, 0
    for number in range(depth + 1):
        shard = f"model-{number + 1:05d}-of-{depth + 1:05d}.safetensors"
        if number < depth:
            tensors = layer(number)
        else:
            tensors = {"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], hidden)}
            tensors["model.norm.weight"] = np.ones(hidden, ml_dtypes.bfloat16)
        save_file(tensors, folder / shard)
        weight_map |= dict.fromkeys(tensors, shard)
        parameters += sum(tensor.size for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": depth}))
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return parameters


def main() -> None:
    edgec = str(Path(sys.executable).parent / "edgec")
    lines = ["| layers | parameters | time | peak memory |", "|---|---|---|---|"]
    for depth in DEPTHS:
        source, out = WORK / "random-llama", WORK / "random-llama-int4"
        for path in (source, out):
            shutil.rmtree(path, ignore_errors=True)
        # In a process of its own: Linux counts what a parent holds at the fork into its child's peak.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as maker:
            parameters = maker.submit(make_llama, source, depth).result()
        build = [edgec, "build", str(source), "--profile", "int4", "--no-verify", "--out", str(out)]
        process = paired.run(build)
        row = f"| {depth} | {parameters / 1e9:.2f} B | {process.seconds:.1f} s | {process.peak_bytes / 1e9:.2f} GB |"
        lines.append(row)
        print(row)
    for path in (source, out):
        shutil.rmtree(path)
    versions = {name: version(name) for name in ("edgec", "torch", "onnx-ir", "numpy")}
    note = ", ".join(f"{k} {v}" for k, v in versions.items()) + f", python {platform.python_version()}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.md").write_text("\n".join([*lines, "", note, ""]))


if __name__ == "__main__":
    main()
