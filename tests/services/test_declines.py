"""The limit on declines, minute by minute, under a clock that is moved by hand."""

import pytest

from pilot_grpc.domain.ids import AgentId
from pilot_grpc.errors import DeclinesLimited
from pilot_grpc.services import declines as declines_service
from pilot_grpc.services.declines import Declines

AGENT, BESIDE = AgentId("a"), AgentId("b")


class Seconds:
    """A clock in seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def declines(clock: Seconds) -> Declines:
    return Declines(3, clock)


def test_fewer_declines_than_may_be_are_let_pass(declines: Declines) -> None:
    for _ in range(2):
        declines.count(AGENT)

    declines.must_be_below_limit([AGENT])


def test_the_last_one_stops_the_agent_until_the_minute_is_over(
    declines: Declines, clock: Seconds
) -> None:
    """The caller is told how long that is; the agent beside is not stopped."""
    for _ in range(3):
        declines.count(AGENT)
        clock.now += 5

    with pytest.raises(DeclinesLimited) as refusal:
        declines.must_be_below_limit([BESIDE, AGENT])

    assert refusal.value.retry_after == 45
    declines.must_be_below_limit([BESIDE])
    clock.now += 45
    declines.must_be_below_limit([AGENT])


def test_a_new_minute_begins_with_its_first_decline(declines: Declines, clock: Seconds) -> None:
    for _ in range(3):
        declines.count(AGENT)
    clock.now += 60

    declines.count(AGENT)

    declines.must_be_below_limit([AGENT])
    assert declines.rooms([AGENT])[AGENT].left == 2


def test_only_so_many_agents_are_remembered(
    declines: Declines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was declined longest ago is forgotten first."""
    monkeypatch.setattr(declines_service, "AGENTS_REMEMBERED_MAX", 2)
    for agent_id in (AGENT, BESIDE, AGENT, AgentId("c")):
        declines.count(agent_id)

    assert list(declines._windows) == [AGENT, AgentId("c")]
