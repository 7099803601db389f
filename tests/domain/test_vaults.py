"""Vaults: what may leave them, and how a drift is written down."""

from dataclasses import replace
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc.domain.vaults import (
    OUTFLOWS_NAMED_MAX,
    Drift,
    Outflow,
    decode_drift,
    encode_drift,
)
from tests.domain.examples import a_drift, a_vault

# What the column takes; a signature has at most 88 characters.
DRIFT_BYTES_MAX = 65_536
LONGEST = Outflow("5" * 88, 2**63 - 1, 2**63 - 1)

numbers = st.integers(-(2**63), 2**63 - 1)
outflows = st.lists(st.builds(Outflow, st.text(), numbers, numbers), max_size=5).map(tuple)
moments = st.datetimes(timezones=st.just(UTC))


@given(st.builds(Drift, st.text(), numbers, numbers, numbers, numbers, outflows, moments))
def test_a_drift_survives_its_column(drift: Drift) -> None:
    """To the microsecond and the unit, with those who took it."""
    assert decode_drift(encode_drift(drift)) == drift


def test_the_longest_drift_fits_its_column() -> None:
    drift = a_drift(
        id="c" * 25,
        amount=-(2**63),
        slot=2**63 - 1,
        found_amount=2**63 - 1,
        expected_amount=2**63 - 1,
        outflows=(LONGEST,) * OUTFLOWS_NAMED_MAX,
    )

    assert len(encode_drift(drift).encode()) < DRIFT_BYTES_MAX


@pytest.mark.parametrize(
    ("balance", "chain_balance", "held", "withdrawable", "settleable"),
    [
        (0, 0, 0, 0, 0),
        (5, 5, 0, 5, 0),
        (5, 9, 0, 5, 4),
        (5, 9, 3, 5, 1),
        (5, 9, 4, 5, 0),
        (5, 9, 9, 5, 0),
        (9, 5, 0, 5, 0),
    ],
)
def test_what_may_leave_a_vault_leaves_the_rest_covered(
    balance: int, chain_balance: int, held: int, withdrawable: int, settleable: int
) -> None:
    """A withdrawal is bound by both figures, a settlement by what the chain has beyond them."""
    vault = replace(a_vault(), balance=balance, chain_balance=chain_balance, held=held)

    assert (vault.withdrawable, vault.settleable) == (withdrawable, settleable)
