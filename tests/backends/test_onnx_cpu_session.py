import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

from edgec.backends.onnx_cpu.session import OnnxCpuSession
from edgec.backends.onnx_cpu.settings import read_settings
from edgec.errors import BundleError, UsageError
from edgec.evaluate.perplexity import perplexity
from edgec.generate.loop import generate

RNG = np.random.default_rng(0)
IDS = RNG.integers(2, 300, (3, 20))
TOLERANCE = 2e-5


def open_all(artifact: Path, max_length: int | None = None) -> OnnxCpuSession:
    """A session that gives every token's logits."""
    return OnnxCpuSession(artifact, "evaluate", max_length=max_length, threads=1)


@pytest.fixture(params=["peer_artifact", "growing_artifact", "lowered_artifact"])
def session(request: pytest.FixtureRequest) -> OnnxCpuSession:
    return open_all(request.getfixturevalue(request.param), max_length=40)


@pytest.fixture
def damaged(peer_artifact: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(peer_artifact, tmp_path / "artifact")


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "genai_config.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_pieces_give_the_logits_of_the_whole(session: OnnxCpuSession):
    session.reset(3)
    whole = session.step(IDS)
    assert whole.shape == (3, 20, session.vocab_size)
    assert whole.dtype == np.float32
    session.reset(3)
    pieces = np.concatenate([session.step(IDS[:, :7]), session.step(IDS[:, 7:8]), session.step(IDS[:, 8:])], axis=1)
    assert session.length == 20
    np.testing.assert_allclose(pieces, whole, atol=TOLERANCE * np.abs(whole).max())


def test_rows_do_not_mix(session: OnnxCpuSession):
    session.reset(3)
    whole = session.step(IDS)
    for row in range(3):
        session.reset(1)
        np.testing.assert_allclose(session.step(IDS[row : row + 1])[0], whole[row], atol=1e-4)


def test_rewind_forgets(session: OnnxCpuSession):
    session.step(IDS[:1, :5])
    expected = session.step(IDS[:1, 5:6])
    session.step(IDS[:1, 6:])
    session.rewind(5)
    assert session.length == 5
    np.testing.assert_array_equal(session.step(IDS[:1, 5:6]), expected)
    with pytest.raises(UsageError, match="cannot go back to 7"):
        session.rewind(7)


def test_reorder_moves_repeats_and_drops_rows(session: OnnxCpuSession):
    session.reset(3)
    session.step(IDS[:, :9])
    following = session.step(np.full((3, 1), 5))
    session.rewind(9)
    for rows in ([2, 0, 1], [1, 1, 0, 2], [3, 1]):
        session.reorder(np.array(rows))
        following = following[rows]
        assert session.batch == len(rows)
        np.testing.assert_allclose(session.step(np.full((len(rows), 1), 5)), following, atol=1e-4)
        session.rewind(9)


def test_reset_is_a_fresh_start(session: OnnxCpuSession):
    first = session.step(IDS[:1])
    session.reset(2)
    session.step(IDS[:2])
    session.reset(1)
    np.testing.assert_array_equal(session.step(IDS[:1]), first)


def test_both_caches_compute_the_same(growing_artifact: Path, lowered_artifact: Path):
    growing, shared = (open_all(path) for path in (growing_artifact, lowered_artifact))
    for piece in (IDS[:1, :12], IDS[:1, 12:13], IDS[:1, 13:]):
        np.testing.assert_allclose(growing.step(piece), shared.step(piece), atol=1e-4)


def test_a_generation_graph_gives_the_last_logits(lowered_artifact: Path):
    everything = open_all(lowered_artifact)
    last = OnnxCpuSession(lowered_artifact, "generate", threads=1)
    for batch, pieces in ((1, (IDS[:1, :12], IDS[:1, 12:])), (3, (IDS[:, :12], IDS[:, 12:]))):
        everything.reset(batch)
        last.reset(batch)
        for piece in pieces:
            found = last.step(piece)
            assert found.shape == (batch, 1, last.vocab_size)
            np.testing.assert_allclose(found, everything.step(piece)[:, -1:], atol=1e-4)


def test_generates_what_onnxruntime_genai_generates(peer_artifact: Path):
    prompt = IDS[0, :6].tolist()
    model = og.Model(str(peer_artifact))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=40, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    eos = read_settings(peer_artifact).eos_ids
    expected = [int(token) for token in generator.get_sequence(0)[6:] if token not in eos]
    assert list(generate(OnnxCpuSession(peer_artifact, "generate"), prompt, max_new_tokens=34, eos_ids=eos)) == expected


def test_session_entries_reach_the_runtime(lowered_artifact: Path):
    with pytest.raises(BundleError, match="cannot load"):
        OnnxCpuSession(lowered_artifact, "generate", options={"session.intra_op_thread_affinities": "nonsense"})


def test_refuses_wrong_tokens(session: OnnxCpuSession):
    session.step(np.ones((1, 40), np.int64))
    with pytest.raises(UsageError, match="41 tokens do not fit the cache of 40"):
        session.step(np.ones((1, 1), np.int64))
    session.reset()
    for bad in (session.vocab_size, -1):
        with pytest.raises(UsageError, match=f"token {bad} is not in the vocabulary"):
            session.step(np.array([[1, bad]]))
    for shape in ((2, 1), (1, 0), (1,)):
        with pytest.raises(UsageError, match="shape"):
            session.step(np.ones(shape, np.int64))
    with pytest.raises(UsageError, match="at least one row"):
        session.reset(0)


def test_refuses_a_cache_longer_than_the_context(peer_artifact: Path):
    for length in (0, 129):
        with pytest.raises(UsageError, match="takes 1 to 128 tokens"):
            OnnxCpuSession(peer_artifact, "generate", max_length=length)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "genai_config.json"])
def test_refuses_an_artifact_without_a_file(damaged: Path, name: str):
    (damaged / name).unlink()
    with pytest.raises(BundleError, match=r"no artifact|lacks|cannot load") as error:
        OnnxCpuSession(damaged, "generate")
    assert name in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": {}}', b"\xff"])
def test_refuses_damaged_settings(damaged: Path, content: bytes):
    (damaged / "genai_config.json").write_bytes(content)
    with pytest.raises(BundleError, match="settings cannot be read"):
        OnnxCpuSession(damaged, "generate")


def test_refuses_a_damaged_graph(damaged: Path):
    content = (damaged / "model.onnx").read_bytes()
    (damaged / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="cannot load"):
        OnnxCpuSession(damaged, "generate")


def test_refuses_settings_that_do_not_fit_the_graph(damaged: Path):
    edit(damaged, lambda s: s["model"]["decoder"].update(num_hidden_layers=4))
    with pytest.raises(BundleError, match=r"no 'past_key_values\.3\.key'"):
        OnnxCpuSession(damaged, "generate")
    edit(damaged, lambda s: s["model"]["decoder"].update(num_hidden_layers=3, head_size=7))
    with pytest.raises(BundleError, match="cannot run"):
        OnnxCpuSession(damaged, "generate").step(IDS[:1])


@pytest.mark.parametrize("filename", ["../model.onnx", "/etc/passwd", ".."])
def test_refuses_a_graph_outside_the_artifact(damaged: Path, filename: str):
    edit(damaged, lambda s: s["model"]["decoder"].update(filename=filename))
    with pytest.raises(BundleError, match=r"outside the artifact|lacks"):
        OnnxCpuSession(damaged, "generate")


def test_a_generation_graph_is_not_evaluated(lowered_artifact: Path):
    with pytest.raises(BundleError, match="last token only"):
        perplexity(OnnxCpuSession(lowered_artifact, "generate"), IDS)
    session = OnnxCpuSession(lowered_artifact, "evaluate")
    assert perplexity(session, IDS).tokens == 3 * 19


def test_eos_may_be_a_list(damaged: Path):
    edit(damaged, lambda s: s["model"].update(eos_token_id=[1, 7]))
    assert read_settings(damaged).eos_ids == {1, 7}
