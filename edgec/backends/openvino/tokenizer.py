"""Write the tokenizer as OpenVINO models, which openvino_genai runs instead of the tokenizer's files."""

from pathlib import Path

import openvino as ov

from edgec.errors import CheckpointError
from edgec.generate.tokenizer import TOKENIZER, Tokenizer

# Letters, digits, spaces, punctuation, an accent and other scripts: conversions go wrong in these places.
_PROBE = "The 12 quick foxes' tails, naïve — 3.14!\n\tif (x > 0) { return; }  Привет 你好"


def write_tokenizer(folder: Path) -> None:
    """Write openvino_tokenizer.xml and openvino_detokenizer.xml for the tokenizer files in `folder`.

    Raises:
        CheckpointError: openvino_tokenizers cannot convert this tokenizer, or what it makes gives other tokens.
    """
    # Both write to the terminal and to the root logger when they are imported.
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    where = str(folder / TOKENIZER)
    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder))
        tokenizer, detokenizer = convert_tokenizer(fast, with_detokenizer=True)
    except Exception as error:  # the package raises whatever it meets
        raise CheckpointError(
            f"openvino_tokenizers cannot convert the tokenizer: {error}",
            where=where,
            hint="choose another backend of the target (--backend)",
        ) from error
    ids = ov.compile_model(tokenizer, "CPU")([_PROBE])["input_ids"][0].tolist()
    if ids != Tokenizer.from_directory(folder).encode(_PROBE):
        raise CheckpointError(
            "openvino_tokenizers makes a tokenizer that gives other tokens than the checkpoint's",
            where=where,
            hint="choose another backend of the target (--backend)",
        )
    ov.save_model(tokenizer, folder / "openvino_tokenizer.xml", compress_to_fp16=False)
    ov.save_model(detokenizer, folder / "openvino_detokenizer.xml", compress_to_fp16=False)
