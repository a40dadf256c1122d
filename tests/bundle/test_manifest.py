import msgspec
import pytest

from edgec.bundle.manifest import MANIFEST, check_files, make_manifest, read_manifest
from edgec.errors import BundleError


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"model")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "report.json").write_text("{}")
    manifest = make_manifest(tmp_path, {"model.safetensors": "00"}, {"edgec": "1"})
    (tmp_path / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return tmp_path


def test_a_bundle_agrees_with_its_manifest(bundle):
    check_files(bundle, read_manifest(bundle))


def test_measurements_are_no_part_of_the_content(bundle):
    before = read_manifest(bundle)
    (bundle / "report.json").write_text('{"seconds": 2}')
    after = make_manifest(bundle, before.source, before.versions)
    assert after.content_sha256 == before.content_sha256
    assert after.evidence != before.evidence


def test_damage_is_found(bundle):
    (bundle / "artifact" / "model.onnx").write_bytes(b"modem")
    with pytest.raises(BundleError, match=r"artifact/model\.onnx"):
        check_files(bundle, read_manifest(bundle))


def test_missing_and_added_files_are_found(bundle):
    (bundle / "extra").write_text("")
    with pytest.raises(BundleError, match="extra"):
        check_files(bundle, read_manifest(bundle))
    (bundle / "extra").unlink()
    (bundle / "plan.json").unlink()
    with pytest.raises(BundleError, match=r"plan\.json"):
        check_files(bundle, read_manifest(bundle))


def test_a_forged_list_is_found(bundle):
    manifest = read_manifest(bundle)
    forged = msgspec.structs.replace(manifest, content_sha256="0" * 64)
    with pytest.raises(BundleError, match="content hash"):
        check_files(bundle, forged)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 1}',
        '{"format": 99, "content_sha256": "", "source": {}, "versions": {}, "content": {}, "evidence": {}}',
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        read_manifest(tmp_path)


def test_no_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        read_manifest(tmp_path)
