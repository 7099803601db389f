"""When an agent needs setup, and when it no longer does."""

import itertools

import pytest

from pilot_grpc.domain.agents import AgentStatus, status_after_setup

ACTIVE, NEEDS_SETUP = AgentStatus.ACTIVE, AgentStatus.NEEDS_SETUP


@pytest.mark.parametrize(
    ("status", "has_key", "has_rule", "after"),
    [
        (NEEDS_SETUP, True, True, ACTIVE),
        (NEEDS_SETUP, True, False, NEEDS_SETUP),
        (NEEDS_SETUP, False, True, NEEDS_SETUP),
        (NEEDS_SETUP, False, False, NEEDS_SETUP),
        (ACTIVE, True, True, ACTIVE),
        (ACTIVE, False, True, ACTIVE),
        (ACTIVE, True, False, NEEDS_SETUP),
        (ACTIVE, False, False, NEEDS_SETUP),
    ],
)
def test_a_key_and_a_rule_end_the_setup(
    status: AgentStatus, has_key: bool, has_rule: bool, after: AgentStatus
) -> None:
    """And without a rule it begins again; a key that is revoked changes nothing."""
    assert status_after_setup(status, has_key=has_key, has_rule=has_rule) is after


@pytest.mark.parametrize("status", [AgentStatus.PAUSED, AgentStatus.ERROR])
def test_what_an_owner_set_stays(status: AgentStatus) -> None:
    """Neither a key nor a rule, given or taken, clears a pause or an error."""
    for has_key, has_rule in itertools.product((True, False), repeat=2):
        assert status_after_setup(status, has_key=has_key, has_rule=has_rule) is status
