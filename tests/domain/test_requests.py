"""Idempotency: what makes two requests the same, and how a difference is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc.domain.requests import Request, fingerprint
from pilot_grpc.errors import RequestIdReused

FIELDS = {"amount": b"5", "metadata": b"{}", "agent_id": b"a1"}


def a_spend(fields: dict[str, bytes]) -> Request:
    return Request("scope", "r1", "Spend", fingerprint(fields.items()))


def test_the_same_request_is_recognised() -> None:
    """In whatever order its fields come."""
    again = fingerprint(reversed(FIELDS.items()))

    a_spend(FIELDS).must_equal("Spend", again)


def test_another_rpc_is_refused() -> None:
    """Even with the same content: the answer would be of another kind."""
    with pytest.raises(RequestIdReused) as refusal:
        a_spend(FIELDS).must_equal("AuthorizeSpend", fingerprint(FIELDS.items()))

    assert refusal.value.metadata == {"request_id": "r1", "fields": "rpc"}


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        ({**FIELDS, "amount": b"6"}, "amount"),
        ({**FIELDS, "amount": b"6", "metadata": b"[]"}, "amount,metadata"),
        ({"amount": b"5", "metadata": b"{}"}, "agent_id"),
        ({**FIELDS, "model": b"gpt-4o"}, "model"),
        ({}, "agent_id,amount,metadata"),
    ],
)
def test_every_field_that_differs_is_named(now: dict[str, bytes], differs: str) -> None:
    """Changed, left out or added; no content is told."""
    with pytest.raises(RequestIdReused) as refusal:
        a_spend(FIELDS).must_equal("Spend", fingerprint(now.items()))

    assert refusal.value.metadata == {"request_id": "r1", "fields": differs}


names = st.text(st.characters(categories=["Ll"]), min_size=1, max_size=8)
contents = st.dictionaries(names, st.binary(max_size=8), max_size=5)


@given(contents, contents)
def test_two_requests_are_equal_if_and_only_if_their_fields_are(
    before: dict[str, bytes], now: dict[str, bytes]
) -> None:
    """What is named is what differs, no more and no less."""
    differs = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    try:
        a_spend(before).must_equal("Spend", fingerprint(now.items()))
        named = set()
    except RequestIdReused as refusal:
        named = set(refusal.metadata["fields"].split(","))

    assert named == differs


def test_a_fingerprint_keeps_no_content() -> None:
    """Neither a secret in metadata nor an amount can be read from it."""
    kept = fingerprint([("metadata", b"a secret"), ("amount", b"123456789")])

    assert "secret" not in kept
    assert "123456789" not in kept
