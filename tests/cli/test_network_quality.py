"""What `build` and `eval` measure of models that are no decoder language models, and what they refuse to measure."""

import json
import subprocess
import sys
import wave

import numpy as np
import onnx
import pytest
from commands import fails, invoke
from tiny_networks import NETWORKS, Tiny, weights

TARGET = ("--target", "x86-avx512-vnni")
TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(27)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder of models, samples and profiles."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(3)
    for name in ("cnn", "mlp"):
        NETWORKS[name].save(folder / f"{name}.onnx")
        inputs = NETWORKS[name].inputs(rng, 24)
        np.savez(folder / f"{name}.npz", **inputs)
        np.savez(folder / f"{name}-labels.npz", **inputs, label=rng.integers(0, 2, 24))
    return folder


@pytest.fixture
def built(files, tmp_path):
    """Return a function that builds a bundle, and gives its folder and report."""

    def build(name, *options, data=None):
        samples = files / f"{data or name}.npz"
        source = files / f"{name}.onnx"
        given = ("--calibration-data", samples, "--eval-data", samples)
        done = invoke("build", source, *TARGET, *given, "-o", tmp_path / "out", "--json", *options)
        assert done.exit_code == 0
        return tmp_path / "out", json.loads(done.stdout)["report"]

    return build


class TestAlone:
    """`eval` without --source."""

    @pytest.mark.parametrize("metric", ["cosine", "agreement", "retrieval", "snr_db", "cosine@z"])
    def test_metrics_of_the_float_model_ask_for_it(self, built, files, metric):
        bundle, _ = built("mlp")
        error = fails("eval", bundle, "--eval-data", files / "mlp.npz", "--metric", metric)
        assert error.exit_code == 2
        assert "--source" in error.hint
        beside = invoke(
            "eval", bundle, "--eval-data", files / "mlp.npz", "--metric", metric, "--source", files / "mlp.onnx"
        )
        assert beside.exit_code == 0

    def test_the_users_own_metric_gets_no_reference(self, built, files, tmp_path, monkeypatch):
        """It lies in the working directory, as factories of models do."""
        bundle, _ = built("mlp")
        (tmp_path / "mine_alone.py").write_text(
            "def positive(outputs, labels, reference_outputs):\n"
            "    assert reference_outputs is None\n"
            "    return (outputs['y'] > 0).mean(axis=1)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
        found = invoke("eval", bundle, "--eval-data", files / "mlp.npz", "--metric", "mine_alone:positive", "--json")
        assert 0 < json.loads(found.stdout)["mine_alone:positive"] <= 1

    def test_it_takes_no_more_than_the_core(self, built, files):
        bundle, _ = built("cnn", data="cnn-labels")
        data = ["--eval-data", str(files / "cnn-labels.npz"), "--metric", "top1"]
        for arguments in (["eval", str(bundle), *data], ["inspect", str(bundle)]):
            code = (
                "import sys\n"
                "for name in ('onnx', 'onnx_ir', 'onnxscript', 'torch', 'transformers'): sys.modules[name] = None\n"
                f"from edgec.cli import edgec\nedgec({arguments!r})"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


class TestThreshold:
    """Models with a single score for each sample."""

    def test_it_is_part_of_the_name(self, built, files):
        names = ("top1:0@y", "f1:0@y", "agreement:0@y")
        options = [option for name in names for option in ("--metric", name)]
        bundle, report = built("mlp", *options, data="mlp-labels")
        quality = report["verification"]["quality"]
        assert [metric["name"] for metric in quality["metrics"]] == list(names)
        assert quality["outputs"][1]["output"] == "y"
        assert quality["outputs"][1]["agreement"] == quality["metrics"][2]["test"]
        data = ("--eval-data", files / "mlp-labels.npz", "--metric", "f1:0@y", "--json")
        assert json.loads(invoke("eval", bundle, *data).stdout)["f1:0@y"] == quality["metrics"][1]["test"]

    def test_without_one_it_is_asked_for_before_the_work(self, files, tmp_path, no_work):
        data = ("--calibration-data", files / "mlp.npz", "--eval-data", files / "mlp-labels.npz")
        error = fails("build", files / "mlp.onnx", *TARGET, *data, "--metric", "f1@y", "-o", tmp_path / "out")
        assert error.exit_code == 2
        assert "NAME:0.5" in error.hint


@pytest.fixture
def no_work(monkeypatch):
    """Let a build fail where it would begin to quantize."""

    def work(*_):
        raise AssertionError("it was quantized")

    monkeypatch.setattr("edgec.build_network._quantize", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("metric", "label", "message"),
    [
        ("top1", None, "needs labels"), ("top1", np.array([*[0] * 23, 100]), "label 100 is outside"),
        ("top1", np.linspace(0, 1, 24), "needs the class"), ("cosine@none", None, "no output 'none'"),
        ("wer", np.zeros(24, int), "texts as labels"), ("mae", np.zeros(24), "do not fit"),
        ("cosine:0.5", None, "takes no threshold"), ("no_such_module:f", None, "cannot be imported"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_before_the_work(files, tmp_path, metric, label, message):
    data = tmp_path / "mine.npz"
    np.savez(data, **np.load(files / "cnn.npz"), **({} if label is None else {"label": label}))
    options = ("--calibration-data", data, "--eval-data", data, "--metric", metric, "-o", tmp_path / "out")
    error = fails("build", files / "cnn.onnx", *TARGET, *options)
    assert (error.exit_code, message in error.what) == (2, True), error
    assert error.where
    assert error.hint


class TestBounds:
    def test_too_much_noise_fails_a_build(self, files, tmp_path):
        profile = tmp_path / "mine.toml"
        profile.write_text(
            'title = "mine"\n[weights]\ndtype = "int8"\ngroup_size = "channel"\n[verify]\nmax_perplexity_ratio = 2.0\n'
            'max_mean_kl = 1.0\nmin_top1_agreement = 0.5\n[network]\nweights = "int8"\nkeep_float = 0.0\n'
            "[network.verify]\nmin_cosine = 0.9\nmin_snr_db = 90\n"
        )
        data = ("--calibration-data", files / "cnn.npz", "--eval-data", files / "cnn.npz")
        options = ("--profile", profile, "-o", tmp_path / "out")
        error = fails("build", files / "cnn.onnx", *TARGET, *data, *options)
        assert error.exit_code == 1
        assert "the SNR of y against the float model's is" in error.what
        assert "(allowed at least 90 dB)" in (tmp_path / "out" / "report.md").read_text()
        assert "SNR 90 dB" in invoke("plan", files / "cnn.onnx", *data[:2], "--profile", profile).stdout

    def test_exact_mode_looks_at_several_samples_also_one_by_one(self, built, files):
        proto = NETWORKS["mlp"].proto()
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
            value.type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(proto, files / "one.onnx")
        _, report = built("one", data="mlp")
        assert report["speed"]["shapes"] == {"x": [1, 24]}
        assert report["verification"]["exact"]["samples"] == 8
        assert report["verification"]["exact"]["relative_error"] < 1e-3

    @pytest.mark.parametrize("size", ["huge", "infinite"])
    def test_numbers_that_are_too_large(self, files, tmp_path, size):
        """The square of a huge float32 number is none; infinite ones are no part of an average."""
        factor = 1e30 if size == "huge" else np.inf
        tiny = Tiny(
            "(float[N, 24] x) => (float[N, 8] y) {h = MatMul (x, w) p = Abs (h) y = Mul (p, factor)}",
            {**weights(w=(24, 8)), "factor": np.array(factor, np.float32)},
            NETWORKS["mlp"].inputs,
        )
        tiny.save(tmp_path / "large.onnx")
        data = ("--calibration-data", files / "mlp.npz", "--eval-data", files / "mlp.npz")
        options = (*TARGET, *data, "--profile", "int8-weights", "-o", tmp_path / "out")
        if size == "huge":  # warnings are errors here
            assert invoke("build", tmp_path / "large.onnx", *options).exit_code == 0
            return
        error = fails("build", tmp_path / "large.onnx", *options)
        assert error.exit_code == 3
        assert "nothing but infinite numbers" in error.what


class TestOptionsThatWouldDoNothing:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("plan", "cnn.onnx", "--task", "bogus"), ("plan", "cnn.onnx", "--state", "cnn.npz"),
            ("inspect", "cnn.onnx", "--task", "bogus"), ("inspect", "cnn.onnx", "--tensors"),
            ("plan", "cnn.onnx", "--ignore-config", "x"), ("build", "cnn.onnx", "--eval-text", "cnn.npz"),
            ("build", "cnn.onnx", "--no-verify", "--metric", "top1"), ("build", "cnn.onnx", "--no-fallback"),
            ("build", "module:factory", "--task", "bogus"), ("build", "cnn.pt2", "--input", "x:float32[1]"),
            ("build", "decoder", "--eval-data", "cnn.npz"), ("build", "decoder", "--metric", "top1"),
            ("build", "decoder", "--state", "cnn.npz"), ("plan", "decoder", "--fix", "x=1"),
            ("plan", "decoder", "--calibration-data", "cnn.npz"), ("inspect", "decoder", "--fix", "x=1"),
        ],
    )  # fmt: skip
    def test_are_refused(self, files, arguments, monkeypatch):
        monkeypatch.chdir(files)
        (files / "decoder").mkdir(exist_ok=True)
        (files / "decoder" / "config.json").write_text('{"model_type": "llama"}')
        error = fails(*arguments)
        assert (error.exit_code, error.hint) == (2, "leave it out")
        assert any(error.what.startswith(str(argument)) for argument in arguments), error

    def test_on_bundles(self, built, files):
        bundle, _ = built("cnn")
        for option in ("--fusions", "--nodes", "--tensors"):
            assert fails("inspect", bundle, option).what.startswith(option)
        data = ("--eval-data", files / "cnn-labels.npz", "--metric", "top1")
        for options in (("--tokens", 9), ("--window", 9), ("--eval-text", "x"), ("--state", "x"), ("--fix", "x=1")):
            error = fails("eval", bundle, *data, *options)
            assert (error.exit_code, error.what.startswith(options[0])) == (2, True)

    def test_samples_that_a_profile_does_not_need(self, files, tmp_path):
        options = ("--profile", "fp16", "--eval-data", files / "cnn.npz", "-o", tmp_path / "out")
        error = fails("build", files / "cnn.onnx", *options, "--calibration-data", "none.jsonl")
        assert (error.exit_code, error.what) == (2, "there is no such file or folder of samples")
        done = invoke("build", files / "cnn.onnx", *options, "--calibration-data", files / "cnn.npz")
        assert done.exit_code == 0
        assert "profile 'fp16' needs no samples: --calibration-data is not read" in done.stderr


def test_speech_is_read_as_text_from_a_build_to_its_bundle(tmp_path):
    """A model for CTC, on sounds of different lengths."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, set_seed

    set_seed(0)
    model, rng = tmp_path / "model", np.random.default_rng(0)
    config = Wav2Vec2Config(
        vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, pad_token_id=0,
        conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(model)
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4, "C": 5, "D": 6, "E": 7}
    (model / "vocab.json").write_text(json.dumps(vocabulary))
    (model / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "word_delimiter_token": "|"}')
    (model / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": true, "sampling_rate": 16000}'
    )
    for number in range(6):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((3000 * rng.standard_normal(1600 + 160 * number)).astype("<i2").tobytes())
    lines = [json.dumps({"audio": f"{number}.wav", "text": "AB C"}) for number in range(6)]
    (tmp_path / "speech.jsonl").write_text("\n".join(lines))

    data = ("--calibration-data", tmp_path / "speech.jsonl", "--eval-data", tmp_path / "speech.jsonl")
    options = (*TARGET, *data, "--metric", "wer", "--json", "-o", tmp_path / "out")
    quality = json.loads(invoke("build", model, *options).stdout)["report"]["verification"]["quality"]
    (metric,) = quality["metrics"]
    assert (metric["name"], metric["samples"]) == ("wer", 6)
    assert metric["reference"] > 0
    assert any(set(changed["reference"]) <= set("ABCDE ") for changed in quality["changed"])
    alone = json.loads(invoke("eval", tmp_path / "out", *data[2:], "--metric", "wer", "--json").stdout)
    assert alone["wer"] == metric["test"]
    error = fails("eval", tmp_path / "out", *data[2:], "--metric", "top1")
    assert "needs the class" in error.what


def test_texts_are_tokens_and_tokens_are_texts_in_a_bundle(tmp_path):
    """A model that gives a token for each, evaluated with and without its source."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

    set_seed(0)
    engine = Tokenizer(models.WordLevel({token: at for at, token in enumerate(TOKENS)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=engine, **special).save_pretrained(tmp_path / "model")
    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(rng.choice(TOKENS[5:], 4)), "target": "w0 w1 w2 w3"} for _ in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))

    data = ("--calibration-data", tmp_path / "texts.jsonl", "--eval-data", tmp_path / "texts.jsonl")
    metrics = ("--metric", "chrf", "--metric", "bleu")
    done = invoke("build", tmp_path / "model", *TARGET, *data, *metrics, "--json", "-o", tmp_path / "out")
    quality = json.loads(done.stdout)["report"]["verification"]["quality"]
    assert [metric["name"] for metric in quality["metrics"]] == ["chrf", "bleu"]
    assert quality["metrics"][0]["reference"] > 0
    alone = json.loads(invoke("eval", tmp_path / "out", *data[2:], *metrics, "--json").stdout)
    assert [alone["chrf"], alone["bleu"]] == [metric["test"] for metric in quality["metrics"]]
    assert {"tokenizer.json", "tokenizer_config.json"} <= {p.name for p in (tmp_path / "out/artifact").iterdir()}
