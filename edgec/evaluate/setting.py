"""What is known of a model and what its outputs mean, from what its checkpoint or its bundle holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgec.errors import BundleError
from edgec.evaluate.metrics import Setting
from edgec.evaluate.metrics._texts import VOCABULARY, decoder_of
from edgec.generate.tokenizer import TOKENIZER, TOKENIZER_CONFIG

TEXT_FILES = (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json", VOCABULARY)
"""What a bundle carries to make tokens of texts, and texts of tokens."""

_CTC = "automatic-speech-recognition"


def setting_of(labels: Sequence[str], task: str | None, files: Mapping[str, bytes]) -> Setting:
    """Return what metrics know about a model.

    Args:
        labels: its classes by index.
        task: by optimum's name. Models for speech are encoders here, whose outputs are for CTC.
        files: of its tokenizer, name -> content; may be empty.

    Raises:
        BundleError: the tokenizer cannot be read.
    """
    ctc = task == _CTC
    if TOKENIZER not in files and not (ctc and VOCABULARY in files):
        return Setting(classes=labels)
    decode, vocabulary, blank = decoder_of(files, ctc=ctc)
    return Setting(classes=labels, decode=decode, vocabulary=vocabulary, blank=blank)


def read_text_files(artifact: Path) -> dict[str, bytes]:
    """Return the files of a tokenizer that an artifact carries, name -> content.

    Raises:
        BundleError: one cannot be read.
    """
    try:
        return {name: (artifact / name).read_bytes() for name in TEXT_FILES if (artifact / name).is_file()}
    except OSError as error:
        raise BundleError(f"the tokenizer cannot be read: {error}", where=str(artifact)) from error
