"""Webhooks: when the next attempt is made, and what a message is called."""

import pytest

from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.webhooks import WebhookState, backoff, message_id, state_of

HOUR = 3_600.0


@pytest.mark.parametrize(
    ("attempts", "longest"), [(1, 1.0), (2, 2.0), (5, 16.0), (12, 2_048.0), (13, HOUR)]
)
def test_waits_double_up_to_an_hour_and_are_spread_over_all_of_it(
    attempts: int, longest: float
) -> None:
    assert backoff(attempts, 0.0, None) == 0.0
    assert backoff(attempts, 0.5, None) == longest / 2
    assert backoff(attempts, 0.999_999, None) < longest


@pytest.mark.parametrize("attempts", [14, 1_000, 2**31])
def test_an_endpoint_is_tried_at_least_every_hour_for_ever(attempts: int) -> None:
    assert backoff(attempts, 0.999_999, None) < HOUR


@pytest.mark.parametrize(
    ("asked", "waits"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (7.0, 7.0), (1e9, HOUR)]
)
def test_what_the_receiver_asks_for_is_waited_for_within_reason(
    asked: float | None, waits: float
) -> None:
    """It never makes a wait shorter."""
    assert backoff(2, 0.5, asked) == waits


def test_a_change_has_one_name() -> None:
    """Of another history it has another."""
    names = [message_id(VaultId("cvault"), 7, digest) for digest in (b"\x01" * 16, b"\x02" * 16)]

    assert names == ["chg_cvault_7_01010101", "chg_cvault_7_02020202"]


def test_a_state_names_what_its_owner_has_to_do_first() -> None:
    assert state_of(has_secret=False, attempts=3) is WebhookState.NEEDS_SECRET
    assert state_of(has_secret=True, attempts=3) is WebhookState.FAILING
    assert state_of(has_secret=True, attempts=0) is WebhookState.DELIVERING
