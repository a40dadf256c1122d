"""The manifest of a bundle: what is in it, and from what it was made."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

import msgspec

from edgec.errors import BundleError
from edgec.json_file import write_json

MANIFEST = "manifest.json"
PLAN = "plan.json"
REPORT = "report.json"
REPORT_PAGE = "report.md"
ARTIFACT = "artifact"

# Measurements differ from run to run, engines in numbers that their compiler gives: they are listed apart, and are
# no part of the content's hash.
_EVIDENCE = (REPORT, REPORT_PAGE, f"{ARTIFACT}/tensorrt.json")
_ENGINE = ".engine"
_FORMAT = 1


class File(msgspec.Struct, frozen=True):
    """One file of a bundle."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> Self:
        with path.open("rb") as file:
            return cls(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle holds.

    Args:
        format: version of this structure.
        content_sha256: hash over the names, sizes and hashes of `content`: the identity of the bundle.
        source: checkpoint file -> sha256.
        versions: package -> version that took part in writing the content.
        content: file -> hash, for everything that two builds of the same inputs make equal.
        evidence: the same for reports, which hold measurements, and for engines.
    """

    format: int
    content_sha256: str
    source: dict[str, str]
    versions: dict[str, str]
    content: dict[str, File]
    evidence: dict[str, File]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return package -> version, without packages that are not installed: an engine may be left to the device."""
    found = {}
    for package in sorted(packages):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def make_manifest(folder: Path, source: dict[str, str], versions: dict[str, str]) -> Manifest:
    """Hash every file in `folder` but the manifest itself."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {name: File.of(folder / name) for name in names if name != MANIFEST}
    evidence = {name: file for name, file in files.items() if name in _EVIDENCE or name.endswith(_ENGINE)}
    content = {name: file for name, file in files.items() if name not in evidence}
    return Manifest(_FORMAT, _content_hash(content), source, versions, content, evidence)


def _content_hash(content: dict[str, File]) -> str:
    lines = "".join(f"{file.sha256} {file.size_bytes} {name}\n" for name, file in sorted(content.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def finish(folder: Path, report: object, page: str, source: dict[str, str], packages: Iterable[str]) -> None:
    """Write what a bundle says of itself: its report, the report's page, and the manifest of all that is in it.

    Args:
        folder: of the bundle; all else is in it.
        report: for machines.
        page: for people.
        source: see `Manifest`.
        packages: that took part in writing the content.
    """
    write_json(folder / REPORT, report)
    (folder / REPORT_PAGE).write_text(page)
    write_json(folder / MANIFEST, make_manifest(folder, source, versions(packages)))


def read_manifest(bundle: Path) -> Manifest:
    """Return the manifest of a bundle, without checking the files.

    Raises:
        BundleError: there is none, or it is not one.
    """
    path = bundle / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise BundleError(f"'{bundle}' is no bundle: it has no {MANIFEST}", where=str(path)) from None
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise BundleError(f"the manifest cannot be read: {error}", where=str(path)) from error
    if manifest.format != _FORMAT:
        raise BundleError(
            f"the bundle has format {manifest.format}, this edgec reads format {_FORMAT}",
            where=str(path),
            hint="update edgec, or build the bundle again",
        )
    return manifest


def check_files(bundle: Path, manifest: Manifest) -> None:
    """Compare every file of the bundle with its manifest.

    Raises:
        BundleError: a file is missing, changed, or not listed, or the content hash is wrong.
    """
    listed = {**manifest.content, **manifest.evidence}
    present = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {MANIFEST}
    if missing := sorted(set(listed) - present):
        raise BundleError(f"the bundle lacks '{missing[0]}'", where=str(bundle), hint="copy or build it again")
    if extra := sorted(present - set(listed)):
        raise BundleError(f"the bundle holds '{extra[0]}', which its manifest does not list", where=str(bundle))
    for name, expected in listed.items():
        if File.of(bundle / name) != expected:
            raise BundleError(
                f"'{name}' is not what the manifest says it is",
                where=str(bundle / name),
                hint="the file is damaged or was changed; copy or build the bundle again",
            )
    if _content_hash(manifest.content) != manifest.content_sha256:
        raise BundleError("the manifest's content hash does not fit its files", where=str(bundle / MANIFEST))
