"""Read the genai_config.json of an artifact: edgec's own, or one that onnxruntime-genai's model builder wrote.

Source: onnxruntime-genai's configuration reference.
"""

from pathlib import Path

import msgspec

from edgec.errors import BundleError

GENAI_CONFIG = "genai_config.json"


class Inputs(msgspec.Struct, frozen=True):
    """Names of the graph's inputs; `%d` stands for the layer."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str = "past_key_values.%d.key"
    past_value_names: str = "past_key_values.%d.value"


class Outputs(msgspec.Struct, frozen=True):
    """Names of the graph's outputs; `%d` stands for the layer."""

    logits: str = "logits"
    present_key_names: str = "present.%d.key"
    present_value_names: str = "present.%d.value"


class Decoder(msgspec.Struct, frozen=True):
    """The graph's file, names and shapes."""

    filename: str
    head_size: int
    num_key_value_heads: int
    num_hidden_layers: int
    inputs: Inputs = Inputs()
    outputs: Outputs = Outputs()


class Model(msgspec.Struct, frozen=True):
    """The model; `context_length` is the most tokens that it takes."""

    decoder: Decoder
    vocab_size: int
    context_length: int
    eos_token_id: int | tuple[int, ...]


class Search(msgspec.Struct, frozen=True):
    """How to search; only what decides the form of the cache."""

    past_present_share_buffer: bool = False


class Settings(msgspec.Struct, frozen=True):
    """What an artifact says about itself; unknown keys belong to other runtimes."""

    model: Model
    search: Search = Search()

    @property
    def context_length(self) -> int:
        """The most tokens that the artifact takes."""
        return self.model.context_length

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        ids = self.model.eos_token_id
        return frozenset((ids,) if isinstance(ids, int) else ids)


def read_settings(directory: Path) -> Settings:
    """Return the settings of an artifact directory.

    Raises:
        BundleError: there are none, they are damaged, or they name a file outside the directory.
    """
    path = directory / GENAI_CONFIG
    try:
        settings = msgspec.json.decode(path.read_bytes(), type=Settings)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"'{directory}' is no artifact: it has no {GENAI_CONFIG}", where=str(path)) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"the artifact's settings cannot be read: {error}", where=str(path), hint="copy or build it again"
        ) from error
    filename = settings.model.decoder.filename
    if Path(filename).name != filename:
        raise BundleError(f"the settings name a file outside the artifact: '{filename}'", where=str(path))
    return settings
