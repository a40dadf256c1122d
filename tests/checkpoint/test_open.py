from pathlib import Path

import pytest

from edgec.checkpoint.open import open_checkpoint
from edgec.errors import CheckpointError, UsageError


@pytest.mark.parametrize(
    "source", ["./no/where", "/no/where", "nowhere", "a/b/c", "org/model.gguf", "~nobody/x", "x" * 5000]
)
def test_a_path_that_is_not_there_is_a_mistake_of_usage(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        open_checkpoint(source)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(UsageError, match="there is no file or directory"):
        open_checkpoint(Path("organisation/name"))


def test_a_directory_wins_over_a_hub_id(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent.parent)
    assert open_checkpoint(f"{directory.parent.name}/model").path.name == "model"


def test_another_file_is_refused(directory: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint that edgec can open"):
        open_checkpoint(directory / "model.safetensors")


def test_a_hub_id_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be downloaded") as error:
        open_checkpoint("organisation/name")
    assert "hf download organisation/name" in str(error.value)
