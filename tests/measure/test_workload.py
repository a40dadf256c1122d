import msgspec
import pytest

from edgec.measure.workload import Workload


def test_each_scenario_takes_what_is_its_own():
    assert Workload(scenario="server", rate_per_s=3).rate_per_s == 3
    assert Workload(scenario="offline", batch=8).batch == 8
    with pytest.raises(ValueError, match="needs `rate_per_s`"):
        Workload(scenario="server")
    for scenario in ("single-stream", "offline"):
        with pytest.raises(ValueError, match="`rate_per_s` is for"):
            Workload(scenario=scenario, rate_per_s=1)
    for scenario, rate in (("single-stream", None), ("server", 1)):
        with pytest.raises(ValueError, match="`batch` is for"):
            Workload(scenario=scenario, rate_per_s=rate, batch=2)


@pytest.mark.parametrize(
    "text",
    [
        '{"scenario": "multi-stream"}',
        '{"prompt_tokens": 0}',
        '{"new_tokens": 0}',
        '{"scenario": "server", "rate_per_s": 0}',
        '{"scenario": "server", "rate_per_s": 1e7}',
        '{"sizes": {"N": 0}}',
        '{"tokens": 3}',
        '{"prompt_tokens": 1000001}',
        '{"new_tokens": 1000001}',
        '{"scenario": "offline", "batch": 65537}',
        '{"sizes": {"N": 1000001}}',
    ],
)
def test_files_that_ask_for_the_impossible_are_refused(text):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Workload)


def test_a_label_says_what_differs():
    short, long = Workload(prompt_tokens=8), Workload(prompt_tokens=16, new_tokens=4)
    assert [each.label((short, long)) for each in (short, long)] == [
        "8 prompt tokens, 32 new",
        "16 prompt tokens, 4 new",
    ]
    assert short.label((short,)) == ""
    server, batch = Workload(scenario="server", rate_per_s=2.5), Workload(scenario="offline", batch=4, sizes={"N": 3})
    assert server.label((server, batch)) == "server, batch 1, 2.5/s"
    assert batch.label((server, batch)) == "offline, batch 4, N 3"


def test_a_title_says_what_it_is():
    assert Workload(prompt_tokens=8, new_tokens=2).title(lengths=True) == "single-stream, 8 prompt tokens, 2 new"
    assert Workload(scenario="server", rate_per_s=50).title(lengths=False) == "server, 50/s"
    offline = Workload(scenario="offline", batch=4, sizes={"tokens": 9})
    assert offline.title(lengths=False) == "offline, batch 4, tokens 9"
    assert offline.title(lengths=True) == "offline, 128 prompt tokens, 32 new, batch 4"


def test_a_batch_is_told_once():
    named = Workload(scenario="offline", sizes={"batch": 4})
    assert named.title(lengths=False) == "offline, batch 4"
    assert Workload(scenario="offline", sizes={"N": 4}).title(lengths=False) == "offline, N 4"
    assert Workload(scenario="offline").title(lengths=False) == "offline, batch 1"
    other = Workload(scenario="offline", batch=8)
    assert [each.label((named, other)) for each in (named, other)] == ["batch 4", "batch 8"]
