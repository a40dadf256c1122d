"""Races of real bundles: what rounds hold, and what becomes of processes that end early."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from edgec.backends.backend import backend_of
from edgec.bundle.open import find_artifact
from edgec.errors import BundleError, EdgecError, InconclusiveError
from edgec.measure import parent
from edgec.measure import race as racing
from edgec.measure.parent import Worker, workers
from edgec.measure.query import Slice
from edgec.measure.race import Course, TooLongError, have_room, race
from edgec.measure.worker import Ran
from edgec.measure.workload import Workload

SHORT = {"prompt_tokens": 4, "new_tokens": 2}
QUICK = {"threads": 1, "slices": 3}
SINGLE = (Workload(**SHORT),)


def children(pid):
    """Return the processes of a process that time bundles."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:  # it is gone
            continue
        if parent == pid and b"edgec.measure.worker" in command:
            found.add(int(path.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waits_for(condition, seconds=20.0):
    """Return what a condition says as soon as that is something, or in the end."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def nobody_stays():
    yield
    assert children(os.getpid()) == set()


@pytest.fixture
def started():
    with workers(1) as (worker,):
        yield worker


class TestRounds:
    def test_a_round_has_a_process_of_each_variant(self, decoder, network, tmp_path):
        (first, second), (again, _) = islice(
            race((decoder, decoder), Course(workloads=(*SINGLE, Workload(prompt_tokens=8, new_tokens=1)), **QUICK)), 2
        )
        for process in (first, second, again):
            assert len(process.slices) == 2
            assert [len(turns) for turns in process.slices] == [3, 3]
            for turns, new in zip(process.slices, (2, 1), strict=True):
                for turn in turns:
                    queries = len(turn.samples["ttft_ms"])
                    assert len(turn.samples["token_ms"]) == new * queries
                    assert turn.work == (1 + new) * queries
            assert 1 <= len(process.load_ms) <= 5
            assert min(process.load_ms) > 0
            assert process.peak_rss_bytes > 2**24
            artifact = decoder / "artifact"
            assert process.size_bytes == sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
        assert first.slices != second.slices != again.slices

    def test_turns_are_taken_in_random_order_with_the_same_inputs(self, network, monkeypatch):
        taken = []

        def take(worker, request):
            taken.append((worker, request))
            return plain(worker, request)

        plain = Worker.take
        monkeypatch.setattr(Worker, "take", take)
        course = Course(workloads=(Workload(),), threads=1, slices=12, round_s=20.0)
        (found,) = islice(race((network,) * 3, course), 1)
        assert [len(process.slices[0]) for process in found] == [12] * 3
        turns = [taken[at : at + 3] for at in range(len(taken) - 36, len(taken), 3)]
        orders = [tuple(id(worker) for worker, _ in turn) for turn in turns]
        assert all(sorted(order) == sorted(orders[0]) for order in orders)  # everybody once
        assert len(set(orders)) > 1
        assert len({order[0] for order in orders}) == 3
        requests = [{request for _, request in turn} for turn in turns]
        assert all(len(each) == 1 for each in requests)
        assert len({request.seed for (request,) in requests}) == 12

    def test_long_queries_are_divided_into_turns(self, decoder):
        # Long are those that take ten times as long as a turn.
        course = Course(workloads=SINGLE, threads=1, slices=3, slice_s=1e-6)
        ((first, second),) = islice(race((decoder, decoder), course), 1)
        assert first.pieces == second.pieces == (3,)
        for process in (first, second):
            assert [list(turn.samples) for turn in process.slices[0]] == [["ttft_ms"], ["token_ms"], ["token_ms"]] * 3
            assert {turn.work for turn in process.slices[0]} == {1}

    def test_offline_and_server(self, network):
        workloads = (Workload(scenario="offline", batch=4), Workload(scenario="server", rate_per_s=300))
        ((process,),) = islice(race((network,), Course(workloads=workloads, **QUICK)), 1)
        offline, server = process.slices
        for turn in offline:
            assert turn.work == 4 * len(turn.samples["latency_ms"])
        for turn in server:
            assert turn.work == len(turn.samples["latency_ms"]) >= 8  # for a queue to build up

    def test_each_workload_has_as_many_turns_as_it_takes(self, network):
        workloads = (Workload(), Workload(scenario="server", rate_per_s=300))
        ((process,),) = islice(race((network,), Course(workloads=workloads, threads=1, round_s=1e-9)), 1)
        assert [len(turns) for turns in process.slices] == [3, 1]

    def test_percentiles_get_the_queries_that_they_take(self, network):
        course = Course(workloads=(Workload(),), threads=1, slices=10, slice_s=1e-9, round_s=1e-9)
        few, many = (
            next(race((network,), course_))[0].slices[0]
            for course_ in (course, Course(**{**_fields(course), "at_least": {"latency_ms": 64}}))
        )
        assert [len(turn.samples["latency_ms"]) for turn in few] == [1, 1, 1]
        assert [len(turn.samples["latency_ms"]) for turn in many] == [7] * 10

    def test_one_process_at_a_time(self, network, monkeypatch):
        there = []

        def load(worker):
            there.append(len(children(os.getpid())))
            return plain(worker)

        plain = Worker.load
        monkeypatch.setattr(Worker, "load", load)
        for together, count in ((True, 3), (False, 1)):
            there.clear()
            course = Course(workloads=(Workload(),), together=together, **QUICK)
            (found,) = islice(race((network,) * 3, course), 1)
            assert set(there[1:]) == {count}  # the scout was the first
            assert [len(process.slices[0]) for process in found] == [3, 3, 3]


class TestPlans:
    """Of made-up bundles: what they say of themselves, and the turns that come of it."""

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    @pytest.mark.parametrize("times", [(0.5, 0.5, 1.5), (0.001, 0.001, 2.0), (1.0, 1.0, 0.01), (0.001, 0.001, 0.001)])
    def test_a_round_fits_however_different_the_bundles_are(self, times, order):
        scouts = [_scout(times[variant]) for variant in order]
        turns = racing._plan(scouts, Course(workloads=(Workload(),), round_s=7.5, longest_s=8.5))
        (count,), (queries,) = turns.counts, turns.queries
        assert sum(scout.load_s for scout in scouts) + (1 + count) * queries * sum(times) <= 8.5
        assert queries == max(1, round(0.005 / max(times)))
        assert count == 24 or (count + 2) * sum(times) > 7.5  # no time is left over

    def test_the_slowest_says_whether_queries_are_divided(self):
        course = Course(workloads=(Workload(new_tokens=4),))
        times = {"ttft_ms": (1.0,), "token_ms": (2.5,) * 4}
        scouts = [_scout(0.002, **times), _scout(1.0, **times)]
        assert racing._plan(scouts, course).steps == ((1, 2, 2),)
        assert racing._plan(scouts[:1], course).steps == ((),)

    def test_rounds_that_are_too_long_have_fewer_turns_as_far_as_that_helps(self):
        scouts = [_scout(0.5), _scout(0.5), _scout(4.0)]
        assert racing._plan(scouts, Course(workloads=(Workload(),), round_s=7.5)).counts == (3,)
        assert racing._plan(scouts, Course(workloads=(Workload(),), round_s=7.5, longest_s=10.1)).counts == (1,)
        with pytest.raises(TooLongError) as caught:
            racing._plan(scouts, Course(workloads=(Workload(),), round_s=7.5, longest_s=10.0))
        assert caught.value.round_s == pytest.approx(10, abs=0.1)

    def test_each_bundle_is_scouted_once(self, network, decoder, monkeypatch):
        seen = []

        def plan(scouts, course):
            seen.extend(scouts)
            return plain(scouts, course)

        plain = racing._plan
        monkeypatch.setattr(racing, "_plan", plan)
        for together in (True, False):
            seen.clear()
            next(race((network, network, decoder), Course(workloads=SINGLE, together=together, **QUICK)))
            assert seen[0] is seen[1]
            assert [list(scout.probes[0].samples) for scout in seen[1:]] == [["latency_ms"], ["ttft_ms", "token_ms"]]

    def test_long_queries_are_probed_less_often(self):
        class Slow:
            def __init__(self, *times):
                self.times = list(times)

            def run(self, number, queries, seed):
                return Ran(Slice({}, self.times.pop(0), 1), 1)

        for slow, found, left in (
            (Slow(0.1, 0.02, 0.01, 0.03, 0.005), 0.01, 1),
            (Slow(0.1, 0.3, 0.25, 0.1), 0.25, 1),
            (Slow(1.9, 0.6, 0.5), 0.6, 1),  # the first one finds nothing prepared
            (Slow(2.1, 2.0), 2.1, 1),
        ):
            assert racing._probe(slow, 0, Workload()).busy_s == found
            assert len(slow.times) == left

    def test_a_workload_that_needs_many_turns_leaves_fewer_to_the_others(self):
        workloads = (Workload(new_tokens=32), Workload(new_tokens=256))
        times = [{"ttft_ms": (each,), "token_ms": (each,) * count} for each, count in ((1.8, 32), (1.45, 256))]
        probes = tuple(Slice(each, sum(map(sum, each.values())) / 1e3, 1) for each in times)
        course = Course(workloads=workloads, round_s=7.5, longest_s=8.57, at_least={"token_ms": 662})
        turns = racing._plan([racing._Scout(0.1, 0.05, probes)] * 3, course)
        assert turns.counts == (21, 3)

    def test_what_starting_takes_is_a_part_of_the_round(self):
        course = Course(workloads=(Workload(),), round_s=7.5)
        few, many = (
            racing._plan([racing._Scout(start_s, 0.1, _scout(0.2).probes)] * 3, course).counts[0]
            for start_s in (1.05, 0.1)
        )
        assert (few, many) == (5, 10)  # of 0.6 s, after one that warms up


def _scout(query_s, **samples):
    return racing._Scout(0.0, 0.01, (Slice({"latency_ms": (1e3 * query_s,), **samples}, query_s, 1),))


def _fields(course):
    return {name: getattr(course, name) for name in course.__struct_fields__}


class TestCpus:
    def test_a_round_is_on_one_set_of_cpus(self):
        usable = os.sched_getaffinity(0)
        generator = np.random.default_rng(0)
        drawn = [racing._some_cpus(1, generator) for _ in range(20)]
        if len(usable) == 1:
            assert set(drawn) == {None}
        else:
            assert all(len(each) == 1 and usable.issuperset(each) for each in drawn)
            assert len(set(drawn)) > 1
        assert racing._some_cpus(None, generator) is None
        assert racing._some_cpus(len(usable), generator) is None

    def test_a_process_and_its_runtime_stay_on_them(self, decoder, started):
        cpu = max(os.sched_getaffinity(0))
        started.open(decoder, SINGLE, 1, (cpu,))
        started.load()
        started.run(0, 1, 0)
        assert os.sched_getaffinity(started._process.pid) == {cpu}

    def test_all_of_a_round_are_told_the_same(self, network, monkeypatch):
        told = []

        def open_(worker, bundle, workloads, threads, cpus):
            told.append(cpus)
            plain(worker, bundle, workloads, threads, cpus)

        plain = Worker.open
        monkeypatch.setattr(Worker, "open", open_)
        next(race((network, network), Course(workloads=(Workload(),), **QUICK)))
        assert len(told) == 3  # one is the scout
        assert told[1] == told[2]
        assert (told[1] is None) == (len(os.sched_getaffinity(0)) == 1)


class TestRefusals:
    def test_a_bundle_that_cannot_be_read_says_so_itself(self, decoder, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(decoder, broken)
        (broken / "artifact" / "model.onnx").write_bytes(b"nonsense")
        with pytest.raises(BundleError) as here:
            backend_of(find_artifact(broken)).open_session(find_artifact(broken), "generate", threads=1)
        with pytest.raises(EdgecError) as there:
            next(race((decoder, broken), Course(workloads=SINGLE, **QUICK)))
        for name in ("what", "where", "hint", "exit_code"):
            assert getattr(there.value, name) == getattr(here.value, name)
        assert there.value.exit_code == 3

    def test_what_does_not_fit_is_a_usage_error(self, decoder, network):
        with pytest.raises(EdgecError, match="takes 1 to 512 tokens") as caught:
            next(race((decoder,), Course(workloads=(Workload(prompt_tokens=600),), **QUICK)))
        assert caught.value.exit_code == 2
        with pytest.raises(EdgecError, match="no size is called 'other'") as caught:
            next(race((network,), Course(workloads=(Workload(sizes={"other": 2}),), **QUICK)))
        assert caught.value.exit_code == 2

    def test_what_is_no_bundle_starts_no_process(self, tmp_path):
        with pytest.raises(BundleError):
            next(race((tmp_path,), Course(workloads=SINGLE)))

    def test_modules_in_the_users_directory_are_not_imported(self, tmp_path, monkeypatch):
        (tmp_path / "numpy.py").write_text("raise SystemExit(7)\n")
        monkeypatch.chdir(tmp_path)
        with workers(1):
            pass


class TestDeaths:
    @pytest.mark.parametrize(
        ("number", "kind", "message"),
        [
            (signal.SIGKILL, InconclusiveError, "was killed"),
            (signal.SIGTERM, InconclusiveError, "was killed"),
            (signal.SIGSEGV, BundleError, "crashed with SIGSEGV"),
            (signal.SIGABRT, BundleError, "crashed with SIGABRT"),
        ],
    )
    def test_between_two_turns(self, network, started, number, kind, message):
        started.open(network, (Workload(),), 1, None)
        started.load()
        _no_core(started)
        os.kill(started._process.pid, number)
        with pytest.raises(kind, match=message) as caught:
            started.run(0, 1, 0)
        assert caught.value.where == str(network)
        assert ("more memory" in (caught.value.hint or "")) == (number == signal.SIGKILL)

    def test_in_a_turn(self, network, started):
        started.open(network, (Workload(scenario="server", rate_per_s=0.01),), 1, None)
        started.load()
        timer = threading.Timer(0.2, os.kill, (started._process.pid, signal.SIGKILL))
        timer.start()
        start = time.monotonic()
        with pytest.raises(InconclusiveError, match="was killed"):
            started.run(0, 5, 0)  # waits for its first query for a minute or so
        assert time.monotonic() - start < 20
        timer.join()

    def test_one_that_hangs(self, started, monkeypatch):
        started.close()
        started._process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        monkeypatch.setattr(parent, "_SILENCE_S", 0.2)
        with pytest.raises(BundleError, match="has not answered for 0 minutes") as caught:
            started.run(0, 1, 0)
        assert "deadlock" in caught.value.hint
        assert started._process.wait(20) == -signal.SIGKILL

    def test_between_turns_it_is_stopped(self, network, started):
        started.open(network, (Workload(),), 2, None)
        started.load()
        for _ in range(3):
            started.run(0, 1, 0)
            assert waits_for(lambda: state(started._process.pid) == "T")

    def test_queries_that_arrive_slowly_are_waited_for(self, network, started, monkeypatch):
        started.open(network, (Workload(scenario="server", rate_per_s=4),), 1, None)
        started.load()
        monkeypatch.setattr(parent, "_SILENCE_S", 0.01)
        assert started.run(0, 4, 0).slice.busy_s > 0.2

    def test_an_end_in_the_middle_of_an_answer(self, network, started):
        started.open(network, (Workload(),), 1, None)
        program = [sys.executable, "-c", "print('{\"type\": \"Loa', end='')"]
        started.close()
        started._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with pytest.raises(BundleError, match="ended with exit code 0"):
            started.load()

    def test_processes_of_a_round_end_when_one_of_them_does(self, network):
        with pytest.raises(RuntimeError, match="of the test"), workers(2) as both:
            assert len(children(os.getpid())) == 2
            assert all(worker._process.poll() is None for worker in both)
            raise RuntimeError("of the test")

    def test_a_race_that_is_left_leaves_nobody(self, network):
        rounds = race((network, network), Course(workloads=(Workload(),), **QUICK))
        next(rounds)
        assert children(os.getpid()) == set()
        rounds.close()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
    def test_nobody_outlives_the_command(self, network, number, code):
        command = [sys.executable, "-m", "edgec", "bench", "--compare", network, network, "--rounds", "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            found = waits_for(lambda: children(process.pid))
            assert found
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
        assert process.returncode == code
        assert "Traceback" not in said
        assert waits_for(lambda: not any(map(alive, found)))


def state(pid):
    """Return the state of a process: R runs, S sleeps, T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _no_core(worker):
    """Let a process crash without leaving its memory on the disk."""
    import resource

    resource.prlimit(worker._process.pid, resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize(("free", "fits"), [(6, 2), (8, 3), (None, 9)])
def test_room_is_for_all_at_once(decoder, monkeypatch, free, fits):
    size = racing.artifact_bytes(decoder)
    monkeypatch.setattr(racing, "available_bytes", lambda: free and free * size)
    assert have_room((decoder,) * fits)
    assert free is None or not have_room((decoder,) * (fits + 1))


@pytest.mark.parametrize(
    ("rate", "percentiles"), [(0.001, {}), (50, {"latency_ms": 662})], ids=["few arrivals", "many queries"]
)
def test_rounds_that_would_take_too_long_are_not_begun(network, rate, percentiles):
    workload = Workload(scenario="server", rate_per_s=rate)
    start = time.monotonic()
    with pytest.raises(TooLongError) as caught:
        next(race((network,) * 3, Course(workloads=(workload,), at_least=percentiles, longest_s=10)))
    assert caught.value.round_s > 10
    assert time.monotonic() - start < 10


def test_a_few_arrivals_are_a_turn(network):
    workload = Workload(scenario="server", rate_per_s=20)
    (first, _) = next(race((network,) * 2, Course(workloads=(workload,), round_s=0.1, threads=1)))
    assert [len(turn.samples["latency_ms"]) for turn in first.slices[0]] == [8]
