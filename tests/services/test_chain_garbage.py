"""Nodes that answer anything at all: whatever works on the chain goes on, and decides nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from solders.keypair import Keypair

from pilot_grpc.domain.ledger import EventStatus
from pilot_grpc.services import reconciliation
from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet import Fault, Kind, Localnet
from pilot_grpc.solana.localnet.rpc import Node, RpcError
from tests import make
from tests.sampling import first_of
from tests.services.onchain import OnChain, paying, running
from tests.solana import sound

PENDING, CONFIRMED, FAILED = EventStatus
ROUNDS = 40
KINDS = (
    *(Kind.HTML, Kind.TRUNCATED, Kind.WRONG_ID, Kind.WRONG_TYPE, Kind.ERROR, Kind.DISCONNECT),
    *(Kind.RATE_LIMITED, Kind.UNAVAILABLE, Kind.APPLY_THEN_DISCONNECT),
)


@pytest.fixture
async def net() -> AsyncIterator[Localnet]:
    """A chain that only this test sees; it stands still."""
    async with localnet.running(None, manual=True) as net:
        yield net


@pytest.fixture
async def here(database: str, net: Localnet) -> AsyncIterator[OnChain]:
    async with running(database, net) as process:
        process.hurry()
        yield process


def anything(random: Random, depth: int = 3) -> Any:
    """Any JSON, with a liking for what nodes say."""
    leaves: list[Any] = [
        *(
            None,
            True,
            False,
            "",
            "finalized",
            "Ok",
            sound.ADDRESS,
            sound.SIGNATURE,
            "\x00",
            "é" * 9,
        ),
        *(0, 1, -1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400),
        random.getrandbits(60),
    ]
    if depth == 0 or random.random() < 0.3:
        return random.choice(leaves)
    if random.random() < 0.4:
        return [anything(random, depth - 1) for _ in range(random.randint(0, 4))]
    names = ["context", "value", "slot", "err", "signature", "meta", "transaction", "data", "x"]
    return {random.choice(names): anything(random, depth - 1) for _ in range(random.randint(0, 5))}


def spoilt(random: Random, sane: Any) -> Any:
    """Something sane with a part that is anything."""
    if isinstance(sane, dict) and sane and random.random() < 0.85:
        name = random.choice([*sane])
        return {**sane, name: spoilt(random, sane[name])}
    if isinstance(sane, list) and sane and random.random() < 0.85:
        at = random.randrange(len(sane))
        return [*sane[:at], spoilt(random, sane[at]), *sane[at + 1 :]]
    return anything(random)


def storm(
    net: Localnet,
    monkeypatch: pytest.MonkeyPatch,
    random: Random,
    *,
    sane: float,
    nearly: float = 0,
) -> None:
    """Let the first node answer like this; so much of it is the truth, or nearly."""
    node, call = net.endpoints[0].node, Node.call

    def raging(method: str, params: Any) -> Any:
        if method == "getGenesisHash" or random.random() < sane:
            return call(node, method, params)
        if random.random() < nearly:
            return spoilt(random, json.loads(json.dumps(call(node, method, params))))
        if random.random() < 0.2:
            data = anything(random)
            raise RpcError(random.choice([0, -32_005, -32_002, -32_015, 7]), "no", data)
        return anything(random)

    monkeypatch.setattr(node, "call", raging)


def must_be_calm(caplog: pytest.LogCaptureFixture) -> None:
    """Fail where something happened that nobody had expected."""
    assert [each for each in caplog.records if each.exc_info and "pilot" in each.name] == []


async def everybody_works(here: OnChain, random: Random) -> None:
    """Give everything that works on the chain a turn; none of it may fail."""
    settlement = here.settlement
    due = "UPDATE vault_scans SET next_watch_at = '-infinity', next_reconcile_at = '-infinity'"
    await here.app.database.pool.execute(due)
    await settlement.deposits.watch()
    await settlement.reconciler.round()
    await settlement.fee_payer.check()
    await asyncio.sleep(random.choice([0, 0.002]))


@pytest.mark.parametrize("seed", first_of(range(3)))
async def test_garbage_decides_nothing_and_ends_nobody(
    here: OnChain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """A deposit waits, a payment waits; when the nodes come to their senses, both go on."""
    random = Random(seed)  # noqa: S311 - it decides nothing
    spender, friend = await here.spender(1_000), Keypair().pubkey()
    await here.app.agents.add_recipient(spender.owner, spender.agent_id, str(friend), None)
    async with paying(here):
        with monkeypatch.context() as patch:
            storm(here.net, patch, random, sane=0)
            here.net.faucet(await here.wallet(spender), 77)
            here.net.finalize()
            paid = await make.spend(here.app, spender, 300, recipient=str(friend))
            before = (await make.vault(here.app, spender)).revision
            for _ in range(ROUNDS):
                await everybody_works(here, random)
            vault, after = await make.vault(here.app, spender), await here.get(spender, paid)

        here.net.tick()
        (paid,) = await here.decided(spender, paid)
    here.net.finalize()
    await here.look(spender)
    found = await here.reconcile(spender)

    assert (vault.revision, vault.drift, after.status) == (before, None, PENDING)
    assert (paid.status, await here.figures(spender)) == (CONFIRMED, (777, 777))
    assert (found.found_amount, found.expected_amount, found.drift) == (777, 777, None)
    assert await make.verify(here.app, spender) is None
    must_be_calm(caplog)


@pytest.mark.parametrize("seed", first_of(range(3)))
async def test_half_of_the_truth_is_never_taken_for_more(
    here: OnChain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Among faults of every kind what is credited is true, and in the end all of it is."""
    random = Random(seed)  # noqa: S311 - it decides nothing
    monkeypatch.setattr(reconciliation, "RETRY", timedelta(0))
    spender, friend = await here.spender(1_000), Keypair().pubkey()
    wallet = await here.wallet(spender)
    await here.app.agents.add_recipient(spender.owner, spender.agent_id, str(friend), None)
    sent = {here.net.faucet(wallet, number): number for number in range(1, 30)}
    async with paying(here):
        paid = await make.spend(here.app, spender, 300, recipient=str(friend))
        for _ in range(ROUNDS):
            here.net.faults.clear()
            for kind in random.sample(KINDS, 3):
                here.net.faults.add(Fault(kind, count=random.randint(1, 3)))
            with monkeypatch.context() as patch:
                storm(here.net, patch, random, sane=0.6)
                await everybody_works(here, random)
            here.net.tick()
            found = await here.deposits(spender)
            true = [sent.get(tx_hash or "", 1_000) == amount for _, amount, tx_hash in found]
            assert all(true)
        here.net.faults.clear()
        (paid,) = await here.decided(spender, paid)
    here.net.finalize()
    await here.look(spender, from_slot=0)
    agreement = await here.reconcile(spender)

    deposits = await here.deposits(spender)
    assert sorted(amount for _, amount, _ in deposits) == [*range(1, 30), 1_000]
    assert {status for status, _, _ in deposits} == {CONFIRMED}
    assert paid.status is CONFIRMED
    assert await here.figures(spender) == (1_000 + sum(range(1, 30)) - 300,) * 2
    assert agreement.drift is None
    assert agreement.found_amount == agreement.expected_amount
    assert await make.verify(here.app, spender) is None
    must_be_calm(caplog)


@pytest.mark.parametrize("seed", first_of(range(4)))
async def test_a_node_whose_answers_are_nearly_true_is_not_believed_alone(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Beside an honest one it can keep things from being decided, and decide nothing itself."""
    random = Random(seed)  # noqa: S311 - it decides nothing
    monkeypatch.setattr(reconciliation, "RETRY", timedelta(0))
    async with (
        localnet.running(None, manual=True, endpoints=2) as net,
        running(database, net, net.urls) as here,
    ):
        here.hurry()
        spender, friend = await here.spender(1_000), Keypair().pubkey()
        wallet = await here.wallet(spender)
        await here.app.agents.add_recipient(spender.owner, spender.agent_id, str(friend), None)
        async with paying(here):
            paid = await make.spend(here.app, spender, 300, recipient=str(friend))
            sent: dict[str | None, int] = {}
            for number in range(1, ROUNDS):
                sent[net.faucet(wallet, number)] = number
                with monkeypatch.context() as patch:
                    storm(net, patch, random, sane=0.5, nearly=0.9)
                    await everybody_works(here, random)
                net.tick(2)
                for status, amount, tx_hash in await here.deposits(spender):
                    assert status is not CONFIRMED or sent.get(tx_hash, 1_000) == amount
            (paid,) = await here.decided(spender, paid)
        net.finalize()
        await here.look(spender, from_slot=0)
        agreement = await here.reconcile(spender)

        deposits = await here.deposits(spender)
        confirmed = [amount for status, amount, _ in deposits if status is CONFIRMED]
        left = 1_000 - (300 if paid.status is CONFIRMED else 0)
        assert sorted(confirmed) == [*range(1, ROUNDS), 1_000]
        assert await here.figures(spender) == (sum(range(1, ROUNDS)) + left,) * 2
        assert agreement.drift is None
        assert agreement.found_amount == agreement.expected_amount
        assert await make.verify(here.app, spender) is None
        must_be_calm(caplog)
