"""Write the tokenizer as OpenVINO models, which openvino_genai runs instead of the tokenizer's files."""

from pathlib import Path

import openvino as ov

from edgec.generate.tokenizer import Tokenizer

# Words, digits, spaces, punctuation, an accent and other scripts: conversions go wrong in these places.
_PROBES = ("The 12 quick foxes' tails, 3.14!", "naïve — so", "a\nb", "\tif (x > 0) { return; }  x", "Привет 你好")


def write_tokenizer(folder: Path) -> tuple[str, ...]:
    """Write openvino_tokenizer.xml and openvino_detokenizer.xml for the tokenizer files in `folder`.

    Returns:
        Why they were not written: openvino_tokenizers cannot convert this tokenizer, or what it makes gives other
        tokens. Wrong tokens would look like a bad model, and the artifact is of use without these files.
    """
    # Both write to the terminal and to the root logger when they are imported.
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder))
        tokenizer, detokenizer = convert_tokenizer(fast, with_detokenizer=True)
        converted, own = ov.compile_model(tokenizer, "CPU"), Tokenizer.from_directory(folder)
        wrong = [probe for probe in _PROBES if converted([probe])["input_ids"][0].tolist() != own.encode(probe)]
    except Exception as error:  # noqa: BLE001 - the package raises whatever it meets
        return (f"no openvino_tokenizer.xml: openvino_tokenizers cannot convert the tokenizer: {error}; {_SO}",)
    if wrong:
        texts = ", ".join(map(repr, wrong))
        return (f"no openvino_tokenizer.xml: what openvino_tokenizers makes gives other tokens for {texts}; {_SO}",)
    ov.save_model(tokenizer, folder / "openvino_tokenizer.xml", compress_to_fp16=False)
    ov.save_model(detokenizer, folder / "openvino_detokenizer.xml", compress_to_fp16=False)
    return ()


_SO = "edgec run works, openvino_genai takes token ids only"
