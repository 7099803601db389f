"""What is made of several endpoints' words about many transactions at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solders.hash import Hash
from solders.keypair import Keypair
from solders.signature import Signature

from pilot_grpc.solana.answers import Commitment, Status
from pilot_grpc.solana.faults import RpcError, RpcUnavailable
from pilot_grpc.solana.localnet import FOR_EVER, Fault, Kind, Localnet
from pilot_grpc.solana.rpc import SIGNATURES_MAX
from tests.solana.payments import funded
from tests.solana.ports import opened
from tests.solana.scripted import http, node, port, result, seen
from tests.solana.sound import BLOCKHASH, OTHER_SIGNATURE, SIGNATURE, status

FAILED = {"InstructionError": [2, {"Custom": 17}]}
AWAY = object()


async def said(*words: Any, counts: Commitment = Commitment.FINALIZED) -> Status | None:
    """What endpoints make of one transaction together, each of which says so of it."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                node(getSignatureStatuses=[http(503) if word is AWAY else seen([word])])
            )
            for word in words
        ]
        rpc = await stack.enter_async_context(port(*nodes))
        (found,) = await rpc.statuses([SIGNATURE], search_history=True, counts=counts)
        return found


def short(found: Status | None) -> tuple[str, bool] | None:
    return None if found is None else (found.commitment.value, found.err is not None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([status()], ("finalized", False)),
        ([status(err=FAILED)], ("finalized", True)),
        ([status(), status()], ("finalized", False)),
        ([status(err=FAILED), status(err=FAILED)], ("finalized", True)),
        ([status(), status(err=FAILED)], ("confirmed", False)),
        ([status(), status(slot=91)], ("confirmed", False)),
        ([status(), None], ("confirmed", False)),
        ([None, status()], ("confirmed", False)),
        ([status(err=FAILED), None], ("confirmed", True)),
        ([status(), AWAY], ("confirmed", False)),
        ([status("processed"), status("confirmed")], ("confirmed", False)),
        ([status("processed"), None], ("processed", False)),
        ([None, None], None),
        ([None, AWAY], None),
        ([status(), None, status()], ("finalized", False)),
        ([status(), status(err=FAILED), status()], ("finalized", False)),
        ([status(), status("confirmed"), AWAY], ("confirmed", False)),
        ([status(), status(), status(err=FAILED), status(err=FAILED)], ("confirmed", False)),
    ],
)
async def test_two_endpoints_make_a_status_final(
    words: list[Any], expected: tuple[str, bool] | None
) -> None:
    """Where several are configured; until then it is at most confirmed, and may change."""
    assert short(await said(*words)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([status("confirmed")], ("confirmed", False)),
        ([status("confirmed"), status("confirmed")], ("confirmed", False)),
        ([status("confirmed"), status()], ("confirmed", False)),
        ([status(), status()], ("finalized", False)),
        ([status("confirmed"), None], ("processed", False)),
        ([status(), AWAY], ("processed", False)),
        ([status("confirmed"), status("processed")], ("processed", False)),
        ([status("confirmed"), status("confirmed", err=FAILED)], ("processed", False)),
        ([status("processed"), status("processed")], ("processed", False)),
        ([None, None], None),
    ],
)
async def test_two_endpoints_make_a_status_confirmed_where_that_counts(
    words: list[Any], expected: tuple[str, bool] | None
) -> None:
    """One node alone confirms nothing, and what only one says is no more than seen."""
    assert short(await said(*words, counts=Commitment.CONFIRMED)) == expected


async def test_how_a_node_words_the_details_of_an_error_does_not_matter() -> None:
    one, other = ({"InstructionError": [2, {"BorshIoError": text}]} for text in ("a", "b"))
    found = await said(status(err=one), status(err=other))

    assert found is not None
    assert found.finalized


async def test_nobody_who_answers_is_an_error() -> None:
    with pytest.raises(RpcUnavailable):
        await said(AWAY, AWAY)


async def test_each_endpoint_is_asked_once_for_256() -> None:
    """And the answers come in the order of the signatures."""
    signatures = [
        str(Signature.from_bytes(number.to_bytes(64))) for number in range(2 * SIGNATURES_MAX + 1)
    ]
    words = [status(slot=number) for number in range(len(signatures))]
    parts = [words[:SIGNATURES_MAX], words[SIGNATURES_MAX:-1], words[-1:]]
    answers = [seen(part) for part in parts]
    async with (
        node(getSignatureStatuses=list(answers)) as one,
        node(getSignatureStatuses=list(answers)) as two,
        port(one, two) as rpc,
    ):
        found = await rpc.statuses(signatures, search_history=False)
        nothing = await rpc.statuses([], search_history=False)

    assert [each and each.slot for each in found] == list(range(len(signatures)))
    assert nothing == []
    for each in (one, two):
        asked = [params for method, params in each.asked if method == "getSignatureStatuses"]
        assert [len(params[0]) for params in asked] == [256, 256, 1]
        assert asked[0] == [signatures[:256], {"searchTransactionHistory": False}]


async def test_a_payment_becomes_final_when_both_nodes_have_seen_it(net: Localnet) -> None:
    payer = funded(net)
    payment = payer.payment(Keypair().pubkey(), 5, net.chain.blockhash(net.chain.tip))
    signature = str(payment.signatures[0])
    async with opened(*net.urls) as rpc:
        found = [await rpc.statuses([signature, OTHER_SIGNATURE], search_history=True)]
        await rpc.send(bytes(payment), preflight_commitment=Commitment.PROCESSED)
        net.tick(2)
        found.append(await rpc.statuses([signature, OTHER_SIGNATURE], search_history=True))
        net.finalize()
        net.endpoints[1].node.lag = 20
        found.append(await rpc.statuses([signature, OTHER_SIGNATURE], search_history=True))
        net.endpoints[1].node.lag = 0
        found.append(await rpc.statuses([signature, OTHER_SIGNATURE], search_history=True))

    assert [[short(each) for each in both] for both in found] == [
        [None, None],
        [("confirmed", False), None],
        [("confirmed", False), None],
        [("finalized", False), None],
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)


@given(junk=JSON, key=st.sampled_from(["slot", "err", "confirmationStatus"]) | st.none())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_garbage_makes_nothing_final(junk: object, key: str | None) -> None:
    """From one node of two: the other's word is not enough, and garbage is no second one."""
    word = junk if key is None else status() | {key: junk}
    try:
        found = await said(word, status())
    except RpcError:
        return
    assert found is not None
    assert not found.finalized or word == status()


async def test_a_blockhash_comes_from_whoever_has_one(net: Localnet) -> None:
    """With a node away, and when all have to be asked a second time."""
    async with opened(*net.urls) as rpc:
        net.tick(3)
        expected = net.chain.blockhash(net.chain.tip - net.chain.confirmed_slots)
        net.faults.add(Fault(Kind.UNAVAILABLE, "getLatestBlockhash"))
        alone = await rpc.newest_blockhash(Commitment.CONFIRMED)
        for each in net.endpoints:
            each.faults.add(Fault(Kind.DISCONNECT, "getLatestBlockhash"))
        again = await rpc.newest_blockhash(Commitment.CONFIRMED)
        for each in net.endpoints:
            each.faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))
        with pytest.raises(RpcUnavailable):
            await rpc.newest_blockhash(Commitment.CONFIRMED)

    assert Hash.from_string(alone.value.blockhash) == expected
    assert alone == again


async def test_of_a_short_life_and_a_long_one_the_long_one_counts() -> None:
    """A node that sees the end too early would have a living transaction paid anew."""
    low = {"blockhash": BLOCKHASH, "lastValidBlockHeight": 81}
    high = {"blockhash": str(Hash.new_unique()), "lastValidBlockHeight": 229}
    async with (
        node(getLatestBlockhash=[seen(low, 101)]) as liar,
        node(getLatestBlockhash=[seen(high, 100)]) as honest,
        node(getLatestBlockhash=[result("nonsense")]) as mad,
        port(mad, liar, honest) as rpc,
    ):
        found = await rpc.newest_blockhash()

    assert (found.slot, found.value.blockhash) == (101, BLOCKHASH)
    assert found.value.last_valid_block_height == 229
