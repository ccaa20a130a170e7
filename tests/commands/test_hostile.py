"""Made-up hostile inputs of every kind end in a message or are read: see hostile.py."""

import hostile
import pytest
from hostile_inputs import KINDS

QUICK = [name for name in KINDS if name not in ("checkpoint", "config", "fields", "torch", "safetensors")]


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Imports are no input's cost."""
    hostile.warm_up(QUICK)


def listed(found):
    return [
        f"{result.kind} {result.number}: {result.outcome}: {result.detail[-300:]}" for result in hostile.faults(found)
    ]


@pytest.mark.check
def test_some_hundred_hostile_inputs(monkeypatch):
    found = [hostile.fed(1, number, QUICK) for number in range(15 * len(QUICK))]
    assert not listed(found)
    assert {result.outcome for result in found} == {"refused", "accepted"}


def test_inputs_depend_on_the_seed_and_the_number_alone():
    first, second = (hostile.fed(2, 11, QUICK) for _ in range(2))
    assert (first.kind, first.outcome) == (second.kind, second.outcome)


def test_faults_are_seen(monkeypatch):
    def broken(folder):
        raise KeyError("x")

    def empty(folder):
        raise ValueError("")

    for feed, outcome in ((broken, "failed"), (empty, "silent")):
        monkeypatch.setitem(KINDS, "config", KINDS["config"]._replace(feed=feed))
        assert hostile.fed(0, 0, ["config"]).outcome == outcome
    assert hostile.judged(hostile.Result("x", 0, "accepted", "", 11.0)).outcome == "slow"
    assert hostile.judged(hostile.Result("x", 0, "accepted", "", 1.0, 2 * 10**9)).outcome == "large"


@pytest.mark.slow
def test_ten_thousand_hostile_inputs():
    assert hostile.main(["--num=10000", "--seed=0"]) == 0
