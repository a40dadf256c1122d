"""Queries of each scenario: on real bundles, and on sessions that take as long as a test wants them to."""

import subprocess
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from edgec.errors import UsageError
from edgec.frontends.network import Port
from edgec.measure import query
from edgec.measure.energy import Meter
from edgec.measure.query import Model, _decoder_query, _network_query, rows_of
from edgec.measure.workload import Workload

SHORT = {"prompt_tokens": 4, "new_tokens": 3}
PORTS = (Port("x", "float32", ("N", 2)),)


def test_imports_are_no_part_of_loading(network, monkeypatch):
    order = []
    monkeypatch.setattr(query, "import_runtime", lambda _: order.append("import"))
    monkeypatch.setattr(query, "time", SimpleNamespace(perf_counter=lambda: order.append("clock") or 0.0))
    Model(network, (Workload(),), 1)
    assert order == ["import", "clock", "clock"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_is_imported_is_the_runtime(runtime):
    name = {"onnxruntime": "onnx_cpu"}.get(runtime, runtime)
    program = (
        "import sys; from edgec.backends.backend import get_backend, import_runtime as import_; "
        f"import_(get_backend({name!r})); sys.exit({runtime!r} not in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Teller:
    """A decoder that takes its time for each step, and knows what it was asked."""

    vocab_size = 50

    def __init__(self, step_s=0.0):
        self.step_s = step_s
        self.prompts, self.batches = [], []

    def reset(self, batch=1):
        self.batches.append(batch)

    def step(self, ids):
        if ids.shape[1] > 1:
            self.prompts.append(ids.tolist())
        time.sleep(self.step_s) if self.step_s else None
        return np.zeros((len(ids), 1, self.vocab_size), np.float32)


class Machine:
    """A network that takes its time, and knows when it was asked what."""

    def __init__(self, run_s=0.0):
        self.run_s = run_s
        self.feeds = []

    def run(self, feed):
        self.feeds.append(feed)
        time.sleep(self.run_s) if self.run_s else None
        return {}


def model(workload, query, meter=None):
    """Return a model that answers with a query of a test's own."""
    made = Model.__new__(Model)
    made._workloads, made._queries, made._meter = (workload,), [query], meter or Meter()
    return made


def recorded(query):
    """Return a query that keeps when its queries arrived, and that list."""
    arrivals = []

    def ask(rng, arrival):
        arrivals.append(arrival)
        return query(rng, arrival)

    return ask, arrivals


def at_once(rng, arrival):
    return iter([("latency_ms", 1e3 * (time.perf_counter() - arrival), 1)])


def made(steps):
    """Return how many tokens or rows came out of a query."""
    return sum(count for _, _, count in steps)


class TestBundles:
    @pytest.mark.parametrize(
        ("workload", "rows"),
        [
            (Workload(**SHORT), 1),
            (Workload(scenario="offline", batch=3, **SHORT), 3),
            (Workload(scenario="server", rate_per_s=200, **SHORT), 1),
        ],
    )
    def test_a_decoder_gives_times_of_first_and_of_other_tokens(self, decoder, workload, rows):
        loaded = Model(decoder, (workload,), 1)
        assert loaded.load_ms > 0
        done = loaded.run(0, 5, 0)
        assert {name: len(times) for name, times in done.samples.items()} == {"ttft_ms": 5, "token_ms": 15}
        assert min(min(times) for times in done.samples.values()) > 0
        assert done.work == 5 * rows * 4
        if workload.scenario != "server":  # where queries may wait at the same time
            assert sum(map(sum, done.samples.values())) <= 1e3 * done.busy_s

    @pytest.mark.parametrize(
        ("workload", "rows"),
        [
            (Workload(), 1),
            (Workload(sizes={"N": 6}), 6),
            (Workload(scenario="offline", batch=4), 4),
            (Workload(scenario="server", rate_per_s=500), 1),
        ],
    )
    def test_a_network_gives_times_of_runs(self, network, workload, rows):
        done = Model(network, (workload,), 1).run(0, 7, 0)
        assert {name: len(times) for name, times in done.samples.items()} == {"latency_ms": 7}
        assert done.work == 7 * rows

    def test_all_workloads_of_a_model_share_its_session(self, decoder):
        lengths = [Workload(prompt_tokens=4, new_tokens=2), Workload(prompt_tokens=9, new_tokens=1)]
        loaded = Model(decoder, lengths, 1)
        assert [len(loaded.run(number, 2, 0).samples["token_ms"]) for number in (0, 1)] == [4, 2]

    def test_what_a_model_does_not_take_is_refused(self, decoder, network):
        with pytest.raises(UsageError, match="no size is called 'tokens'"):
            Model(network, (Workload(sizes={"tokens": 4}),), 1)
        with pytest.raises(UsageError, match="leaves no sizes open"):
            Model(decoder, (Workload(sizes={"N": 4}),), 1)
        with pytest.raises(UsageError, match="takes 1 to 512 tokens"):
            Model(decoder, (Workload(prompt_tokens=500, new_tokens=20),), 1)


class TestArrivals:
    RATE, COUNT = 1e5, 4000

    def arrivals(self, query, seed, rate=RATE, count=COUNT):
        ask, arrivals = recorded(query)
        model(Workload(scenario="server", rate_per_s=rate), ask).run(0, count, seed)
        return np.array(arrivals[-count:])  # those before are warm-up

    def test_they_are_a_poisson_process(self):
        gaps = np.diff(self.arrivals(at_once, 0))
        assert gaps.min() >= 0
        assert gaps.mean() * self.RATE == pytest.approx(1, abs=4 / self.COUNT**0.5)
        assert gaps.var() * self.RATE**2 == pytest.approx(1, abs=4 * (8 / self.COUNT) ** 0.5)
        for share in (0.5, 1, 2):  # of gaps that are longer than so many means
            assert (gaps * self.RATE > share).mean() == pytest.approx(np.exp(-share), abs=0.03)
        assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.06

    def test_fast_and_slow_models_are_asked_at_the_same_times(self):
        fast, slow = _decoder_query(Teller(), Workload(**SHORT)), _decoder_query(Teller(0.001), Workload(**SHORT))
        gaps = [np.diff(self.arrivals(query, 5, rate=500, count=12)) for query in (fast, slow)]
        np.testing.assert_allclose(*gaps, atol=1e-9)
        other = np.diff(self.arrivals(fast, 6, rate=500, count=12))
        assert abs(other - gaps[0]).max() > 1e-4

    def test_fast_and_slow_models_are_asked_the_same(self):
        tellers = Teller(), Teller(0.001)
        for teller in tellers:
            model(Workload(**SHORT), _decoder_query(teller, Workload(**SHORT))).run(0, 6, 3)
        fast, slow = (teller.prompts for teller in tellers)
        assert fast[-6:] == slow[-6:]  # whatever warmed them up before, of which more fits where steps are fast
        assert len({str(prompt) for prompt in slow[-6:]}) == 6

    def test_waiting_counts_where_queries_come_faster_than_answers(self):
        run_s = 0.004
        workload = Workload(scenario="server", rate_per_s=1000)
        ask, arrivals = recorded(_network_query(Machine(run_s), PORTS, workload))
        done = model(workload, ask).run(0, 12, 1)
        latencies = 1e-3 * np.array(done.samples["latency_ms"])
        ends = np.array(arrivals[-12:]) + latencies
        # Each query waits for the one before it, and then takes its own time.
        assert (np.diff(ends) >= run_s).all()
        assert (latencies >= run_s).all()
        assert latencies[-1] > 12 * run_s - (arrivals[-1] - arrivals[-12])
        assert done.busy_s >= 12 * run_s

    def test_the_first_token_waits_too(self):
        workload = Workload(scenario="server", rate_per_s=2000, **SHORT)
        done = model(workload, _decoder_query(Teller(0.002), workload)).run(0, 6, 1)
        first = done.samples["ttft_ms"]
        assert all(late - early > 0 for early, late in pairwise(first))
        assert first[-1] > 5 * 4 * 2 - 6  # five queries of four steps; the last one comes 3 ms after the first or so
        assert len(done.samples["token_ms"]) == 18

    def test_nobody_waits_where_queries_come_slowly(self):
        workload = Workload(scenario="server", rate_per_s=50)
        done = model(workload, at_once).run(0, 10, 0)
        assert np.median(done.samples["latency_ms"]) < 20
        assert done.busy_s > 0.03  # with the time in which there was nothing to do

    def test_single_queries_do_not_wait_for_each_other(self):
        machine = Machine(0.002)
        done = model(Workload(), _network_query(machine, PORTS, Workload())).run(0, 10, 0)
        assert min(done.samples["latency_ms"]) >= 2
        assert sum(done.samples["latency_ms"]) <= 1e3 * done.busy_s


class TestWarmUp:
    def test_it_is_not_counted(self):
        ask, arrivals = recorded(at_once)
        done = model(Workload(), ask).run(0, 4, 0)
        assert len(arrivals) > 4
        assert (len(done.samples["latency_ms"]), done.work) == (4, 4)
        assert done.busy_s >= arrivals[-1] - arrivals[-4]

    def test_there_is_none_for_a_single_query(self):
        ask, arrivals = recorded(at_once)
        model(Workload(), ask).run(0, 1, 0)
        assert len(arrivals) == 1


class TestPieces:
    def test_a_query_in_pieces_is_the_query(self):
        whole, pieces = Teller(), Teller()
        model(Workload(**SHORT), _decoder_query(whole, Workload(**SHORT))).run(0, 1, 7)
        asked = model(Workload(**SHORT), _decoder_query(pieces, Workload(**SHORT)))
        done = [asked.begin(0, 1, 7), asked.go_on(2), asked.go_on(1)]
        assert [{name: len(times) for name, times in each.samples.items()} for each in done] == [
            {"ttft_ms": 1}, {"token_ms": 2}, {"token_ms": 1},
        ]  # fmt: skip
        assert sum(each.work for each in done) == 4
        assert np.array_equal(whole.prompts, pieces.prompts)

    def test_turns_of_others_do_not_count(self):
        asked = model(Workload(**SHORT), _decoder_query(Teller(0.001), Workload(**SHORT)))
        asked.begin(0, 1, 0)
        time.sleep(1)
        done = asked.go_on(3)
        assert max(done.samples["token_ms"]) < 900
        assert done.busy_s < 0.9

    def test_a_query_that_begins_leaves_the_one_before(self):
        asked = model(Workload(**SHORT), _decoder_query(Teller(), Workload(**SHORT)))
        asked.begin(0, 1, 0)
        assert list(asked.begin(0, 1, 1).samples) == ["ttft_ms"]
        assert asked.go_on(3).work == 3


class TestEnergy:
    def test_it_is_that_of_what_counts(self, tmp_path):
        package = tmp_path / "intel-rapl:0"
        package.mkdir()
        (package / "name").write_text("package-0")
        (package / "energy_uj").write_text("0")

        def ask(rng, arrival):
            counter = package / "energy_uj"
            counter.write_text(str(int(counter.read_text()) + 250_000))
            return at_once(rng, arrival)

        done = model(Workload(), ask, Meter(tmp_path)).run(0, 4, 0)
        assert done.energy_j == 1
        assert int((package / "energy_uj").read_text()) > 1_000_000  # warming up takes energy, too

    def test_none_where_the_machine_does_not_tell(self, tmp_path):
        assert model(Workload(), at_once, Meter(tmp_path)).run(0, 2, 0).energy_j is None


class TestRows:
    def test_offline_batches_reach_the_session(self):
        teller, machine = Teller(), Machine()
        offline = Workload(scenario="offline", batch=5, **SHORT)
        assert made(_decoder_query(teller, offline)(np.random.default_rng(0), 0.0)) == 5 * 4
        assert teller.batches == [5]
        assert np.shape(teller.prompts) == (1, 5, 4)
        assert made(_network_query(machine, PORTS, offline)(np.random.default_rng(0), 0.0)) == 5
        assert machine.feeds[0]["x"].shape == (5, 2)

    def test_a_batch_by_name(self):
        machine = Machine()
        query = _network_query(machine, PORTS, Workload(sizes={"N": 7}))
        assert made(query(np.random.default_rng(0), 0.0)) == 7
        assert machine.feeds[0]["x"].shape == (7, 2)

    def test_a_batch_that_the_model_does_not_take(self):
        offline = Workload(scenario="offline", batch=2)
        with pytest.raises(UsageError, match="no batch of 2"):
            rows_of((Port("x", "float32", (1, 4)),), offline)
        named = (Port("x", "float32", (1, "tokens")), Port("y", "float32", ("batch", "tokens")))
        assert rows_of(named, offline) == 2
        with pytest.raises(UsageError, match="'N' is the batch, which is given twice"):
            rows_of(PORTS, Workload(scenario="offline", batch=2, sizes={"N": 3}))
