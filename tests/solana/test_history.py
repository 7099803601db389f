"""A token account's history: no row is lost, no money is invented or hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from spl.token.constants import (
    ASSOCIATED_TOKEN_PROGRAM_ID,
    TOKEN_2022_PROGRAM_ID,
    TOKEN_PROGRAM_ID,
)
from spl.token.instructions import (
    approve,
    create_idempotent_associated_token_account,
    set_authority,
    transfer,
)
from spl.token.models import (
    ApproveParams,
    AuthorityType,
    SetAuthorityParams,
    TransferParams,
)

from pilot_grpc.solana import localnet
from pilot_grpc.solana.answers import (
    SYSTEM_PROGRAM,
    TOKEN_2022_PROGRAM,
    Commitment,
)
from pilot_grpc.solana.clusters import DEVNET_USDC_MINT, MAINNET_USDC_MINT
from pilot_grpc.solana.faults import RpcBehind, RpcDisagreed, RpcError, RpcGarbage, RpcUnavailable
from pilot_grpc.solana.history import (
    HistoryTooLong,
    Holdings,
    Movement,
    holdings,
    movement,
    parts_since,
    rows_since,
)
from pilot_grpc.solana.localnet import FOR_EVER, USDC, Fault, Kind, Localnet
from pilot_grpc.solana.rpc import Rpc
from tests.solana import scripted, sound
from tests.solana.payments import Payer, ata, funded
from tests.solana.ports import done, frozen, opened

CONFIRMED, FINALIZED = Commitment.CONFIRMED, Commitment.FINALIZED


@pytest.fixture
async def rpc(net: Localnet) -> AsyncIterator[Rpc]:
    """Pilot's port to both nodes."""
    async with opened(*net.urls) as rpc:
        yield rpc


@pytest.fixture
def wallet() -> Pubkey:
    """Whoever gets the deposits."""
    return Keypair().pubkey()


def deposits(net: Localnet, wallet: Pubkey, count: int, a_slot: int = 7) -> list[str]:
    """So many deposits, so many of them a slot, all final; oldest first."""
    signatures = []
    for number in range(count):
        signatures.append(net.faucet(wallet, number + 1))
        if number % a_slot == a_slot - 1:
            net.tick()
    net.finalize()
    return signatures


async def found(rpc: Rpc, wallet: Pubkey, floor: int = 0, **options: Any) -> list[str]:
    rows = await rows_since(rpc, str(ata(wallet)), floor, commitment=FINALIZED, **options)
    assert [row.slot for row in rows] == sorted(row.slot for row in rows)
    return [row.signature for row in rows]


async def moved(
    rpc: Rpc, signature: str, account: Pubkey, commitment: Commitment = FINALIZED
) -> Movement | None:
    return await movement(rpc, signature, str(account), str(USDC), commitment=commitment)


async def delta(rpc: Rpc, signature: str, account: Pubkey) -> int:
    movement = await moved(rpc, signature, account)
    assert movement is not None
    assert movement.signature == signature
    return movement.delta


# -- Rows


async def test_an_account_without_a_history_has_no_rows(rpc: Rpc, wallet: Pubkey) -> None:
    assert await found(rpc, wallet) == []


@pytest.mark.parametrize("a_slot", [1, 2, 5, 100])
async def test_every_row_is_found_whatever_the_pages(net: Localnet, rpc: Rpc, a_slot: int) -> None:
    """Oldest first, each once, at page ends inside of slots and between them."""
    for count in (1, 2, 3, 4, 11, 12, 13, 24):
        wallet = Keypair().pubkey()
        signatures = deposits(net, wallet, count, a_slot)
        for page_rows in (3, 4, 12, 13):
            assert await found(rpc, wallet, page_rows=page_rows) == signatures


@pytest.mark.parametrize("kind", [Kind.DUPLICATE_ROWS, Kind.REORDER_ROWS])
@pytest.mark.parametrize(("a_slot", "page_rows"), [(7, 50), (60, 40), (1, 30)])
async def test_pages_with_repeated_or_reordered_rows_lose_none(
    net: Localnet, rpc: Rpc, wallet: Pubkey, kind: Kind, a_slot: int, page_rows: int
) -> None:
    """A page that repeats its rows has half of them; reordered, a page's last row is no end."""
    signatures = deposits(net, wallet, 300, a_slot)
    net.faults.add(Fault(kind, count=FOR_EVER))
    if kind is Kind.DUPLICATE_ROWS:
        halve_pages(net)
    rows = await found(rpc, wallet, page_rows=page_rows)

    assert sorted(rows) == sorted(signatures)


def halve_pages(net: Localnet) -> None:
    """Keep rows that come twice within the limit, as a node does."""
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]

    def halved(params: list[Any]) -> Any:
        return inner([params[0], {**params[1], "limit": params[1]["limit"] // 2}])

    node._methods["getSignaturesForAddress"] = halved


async def test_a_burst_of_more_than_a_thousand_is_found_in_full(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """With pages as large as nodes allow, and some of the rows in another order."""
    signatures = deposits(net, wallet, 1_200, a_slot=150)
    net.faults.add(Fault(Kind.REORDER_ROWS))

    assert sorted(await found(rpc, wallet)) == sorted(signatures)


async def test_only_what_is_new_is_read(net: Localnet, rpc: Rpc, wallet: Pubkey) -> None:
    """From the floor's own slot on; and one page is enough when it reaches below the floor."""
    deposits(net, wallet, 30, a_slot=3)
    newer = deposits(net, wallet, 6, a_slot=3)
    rows = await rows_since(rpc, str(ata(wallet)), 0, commitment=FINALIZED)
    floor = rows[-6].slot
    asked = counted(net)

    assert await found(rpc, wallet, floor, page_rows=10) == newer
    assert len(asked) == 1
    assert await found(rpc, wallet, floor, page_rows=4) == newer
    assert await found(rpc, wallet, floor + 1, page_rows=10) == newer[3:]
    assert await found(rpc, wallet, rows[-1].slot + 1) == []
    # Whoever answers the second page must know what is on the first.
    (_, first), (_, second) = asked[1:3]
    assert "minContextSlot" not in first
    assert second["minContextSlot"] == rows[-1].slot


def counted(net: Localnet) -> list[Any]:
    """What the first node is asked for rows from now on."""
    node = net.endpoints[0].node
    inner, asked = node._methods["getSignaturesForAddress"], []

    def counting(params: list[Any]) -> Any:
        asked.append(params)
        return inner(params)

    node._methods["getSignaturesForAddress"] = counting
    return asked


async def test_what_is_not_final_yet_comes_when_it_is_asked_for(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    signature = net.faucet(wallet, 1)
    net.tick(2)
    (row,) = await rows_since(rpc, str(ata(wallet)), 0, commitment=CONFIRMED)

    assert (row.signature, row.commitment) == (signature, CONFIRMED)
    assert await found(rpc, wallet) == []


async def test_rows_that_one_answer_leaves_out_come_with_the_next(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """Nobody can know of rows that are missing; the caller's overlap finds them later."""
    signatures = deposits(net, wallet, 9, a_slot=2)
    net.faults.add(Fault(Kind.MISSING_ROWS))
    some = await found(rpc, wallet, page_rows=5)

    assert set(some) < set(signatures)
    assert await found(rpc, wallet, page_rows=5) == signatures


async def test_a_node_that_lost_a_page_is_not_taken_for_the_end(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """The second page comes from a node that does not know where it begins: it is empty."""
    signatures = deposits(net, wallet, 40)
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: (
        [] if params[1].get("before") else inner(params)
    )
    with pytest.raises(RpcBehind):
        await found(rpc, wallet, page_rows=15)
    node._methods["getSignaturesForAddress"] = inner

    assert await found(rpc, wallet, page_rows=15) == signatures


async def test_a_node_that_passes_over_where_a_page_begins_is_not_believed(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """It answers with the newest page again, of which everything is known."""
    deposits(net, wallet, 60)
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]
    node._methods["getSignaturesForAddress"] = lambda params: inner(
        [params[0], {key: value for key, value in params[1].items() if key != "before"}]
    )

    with pytest.raises(RpcGarbage):
        await found(rpc, wallet, page_rows=15)


async def test_a_page_from_a_node_that_is_behind_is_not_wanted(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """The first node goes away after a page; the second does not have the newest rows yet."""
    signatures = deposits(net, wallet, 40)
    net.endpoints[1].node.lag = 20
    node = net.endpoints[0].node
    inner = node._methods["getSignaturesForAddress"]

    def once(params: list[Any]) -> Any:
        net.faults.add(Fault(Kind.UNAVAILABLE, "getSignaturesForAddress", count=FOR_EVER))
        return inner(params)

    node._methods["getSignaturesForAddress"] = once
    with pytest.raises(RpcUnavailable):
        await found(rpc, wallet, page_rows=15)
    net.endpoints[1].node.lag = 0

    assert await found(rpc, wallet, page_rows=15) == signatures


async def test_a_history_that_is_too_long_says_where_to_go_on(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    signatures = deposits(net, wallet, 100)
    with pytest.raises(HistoryTooLong) as more:
        await found(rpc, wallet, rows_max=40, page_rows=20)
    rest = await found(rpc, wallet, page_rows=20, before=more.value.before)

    newest = [row.signature for row in more.value.rows]
    assert newest == signatures[-len(newest) :]
    assert 40 <= len(newest) < 60
    assert rest == signatures[: len(rest)]
    assert set(newest) | set(rest) == set(signatures)


@pytest.mark.parametrize("rows_max", [1, 3, 20, 50, 1_000])
async def test_a_long_history_comes_in_parts(
    net: Localnet, rpc: Rpc, wallet: Pubkey, rows_max: int
) -> None:
    """The newest part first, each row once, the last one down to the floor."""
    deposits(net, wallet, 20)
    old = await rows_since(rpc, str(ata(wallet)), 0, commitment=FINALIZED)
    signatures = deposits(net, wallet, 150)
    parts = [
        [row.signature for row in part]
        async for part in parts_since(
            rpc,
            str(ata(wallet)),
            old[-1].slot + 1,
            commitment=FINALIZED,
            rows_max=rows_max,
            page_rows=20,
        )
    ]

    assert [each for part in reversed(parts) for each in part] == signatures
    assert all(len(part) < rows_max + 20 for part in parts)
    assert (len(parts) == 1) == (rows_max == 1_000)


def signature_of(number: int) -> str:
    return str(Signature.from_bytes(bytes([number + 1] * 64)))


async def test_a_node_whose_history_never_ends_is_given_up() -> None:
    """Each page has one row, which is new, and goes nowhere."""
    pages = [scripted.result([sound.row(signature_of(number), 90)]) for number in range(200)]
    async with scripted.node(getSignaturesForAddress=pages) as node, scripted.port(node) as rpc:
        with pytest.raises(RpcGarbage):
            await rows_since(rpc, sound.ADDRESS, 0, commitment=FINALIZED, rows_max=20, page_rows=10)

    assert node.count("getSignaturesForAddress") == 30


async def test_pages_have_a_middle(rpc: Rpc, wallet: Pubkey) -> None:
    with pytest.raises(ValueError, match="page"):
        await found(rpc, wallet, page_rows=2)


ROW_KINDS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=12
)  # Which signature, and in which slot.


@given(st.lists(ROW_KINDS, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_whatever_the_pages_are_it_ends_in_rows_or_a_fault(
    pages: list[list[tuple[int, int]]],
) -> None:
    """Rows that contradict each other included: each signature once, none below the floor."""
    steps = [
        scripted.result(
            [
                sound.row(str(Signature.from_bytes(bytes([number + 1] * 64))), slot)
                for number, slot in page
            ]
        )
        for page in pages
    ]
    async with scripted.node(getSignaturesForAddress=steps) as node, scripted.port(node) as rpc:
        try:
            rows = await rows_since(rpc, sound.ADDRESS, 10, commitment=FINALIZED, page_rows=12)
        except (RpcError, HistoryTooLong):
            return
    assert len({row.signature for row in rows}) == len(rows)
    assert all(row.slot >= 10 for row in rows)


# -- Movements


async def test_a_deposit_moves_what_it_says_once_it_is_there(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    signature = net.faucet(wallet, 2_500_000)
    before = await moved(rpc, signature, ata(wallet), CONFIRMED)
    net.tick(2)
    seen = await moved(rpc, signature, ata(wallet), CONFIRMED)
    hidden = await moved(rpc, signature, ata(wallet))
    net.finalize()
    landed = net.chain.landed(signature)
    assert landed is not None

    expected = Movement(
        signature, landed.slot, 2_500_000, failed=False, block_time=landed.block_time
    )
    assert (before, hidden) == (None, None)
    assert seen == expected
    assert await moved(rpc, signature, ata(wallet)) == expected


async def test_dust_moves_one_unit(net: Localnet, rpc: Rpc, wallet: Pubkey) -> None:
    (signature,) = deposits(net, wallet, 1)

    assert await delta(rpc, signature, ata(wallet)) == 1


async def sent(net: Localnet, payer: Payer, *instructions: Instruction) -> str:
    """Land a payer's transaction, also one that fails."""
    transaction = payer.signed(list(instructions), net.chain.blockhash(net.chain.tip))
    net.chain.submit(transaction)
    net.finalize()
    return str(transaction.signatures[0])


def plain_transfer(payer: Payer, destination: Pubkey, amount: int) -> Instruction:
    return transfer(
        TransferParams(
            program_id=TOKEN_PROGRAM_ID,
            source=payer.account,
            dest=destination,
            owner=payer.vault.pubkey(),
            amount=amount,
        )
    )


async def test_a_plain_transfer_counts_like_a_checked_one(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    """It names neither the mint nor the wallet; several in one transaction add up."""
    payer = funded(net)
    deposits(net, wallet, 1)
    signature = await sent(
        net,
        payer,
        plain_transfer(payer, ata(wallet), 30),
        payer.transfer(wallet, 12),
    )

    assert await delta(rpc, signature, ata(wallet)) == 42
    assert await delta(rpc, signature, payer.account) == -42
    assert (await found(rpc, wallet))[-1] == signature


async def test_what_a_program_moves_inside_counts(net: Localnet, rpc: Rpc) -> None:
    """The ATA program gives back what was paid to a token account as if that were a wallet."""
    owner, program = Keypair(), ASSOCIATED_TOKEN_PROGRAM_ID
    mint = net.chain.create_mint()
    net.finalize()
    account = ata(owner.pubkey(), mint)
    nested, home = ata(account), ata(owner.pubkey())
    net.faucet(owner.pubkey(), 5, mint)
    net.faucet(account, 7)
    net.faucet(owner.pubkey(), 1)
    net.finalize()
    accounts = [
        AccountMeta(nested, is_signer=False, is_writable=True),
        AccountMeta(USDC, is_signer=False, is_writable=False),
        AccountMeta(home, is_signer=False, is_writable=True),
        AccountMeta(account, is_signer=False, is_writable=False),
        AccountMeta(mint, is_signer=False, is_writable=False),
        AccountMeta(owner.pubkey(), is_signer=True, is_writable=True),
        AccountMeta(TOKEN_PROGRAM_ID, is_signer=False, is_writable=False),
    ]
    signature = done(net, [Instruction(program, bytes([2]), accounts)], owner)

    assert await delta(rpc, signature, home) == 7
    assert await delta(rpc, signature, nested) == -7


async def test_a_failed_transaction_moves_nothing(net: Localnet, rpc: Rpc) -> None:
    payer, other = funded(net), funded(net)
    signature = await sent(net, payer, payer.transfer(other.vault.pubkey(), 10_000_001))
    movement = await moved(rpc, signature, other.account)
    rows = await rows_since(rpc, str(other.account), 0, commitment=FINALIZED)

    assert movement is not None
    assert (movement.delta, movement.failed) == (0, True)
    assert rows[-1].signature == signature
    assert rows[-1].err is not None


async def test_paying_oneself_moves_nothing(net: Localnet, rpc: Rpc) -> None:
    payer = funded(net)
    signature = await sent(net, payer, payer.transfer(payer.vault.pubkey(), 5))

    assert await delta(rpc, signature, payer.account) == 0


@pytest.mark.parametrize("program", [TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID])
async def test_other_mints_move_nothing(
    net: Localnet, rpc: Rpc, wallet: Pubkey, program: Pubkey
) -> None:
    """Neither in the wallet's USDC account nor in the account that the other mint has."""
    mint = net.chain.create_mint(6, program)
    net.finalize()
    signature = net.faucet(wallet, 1_000_000, mint)
    net.finalize()

    assert await delta(rpc, signature, ata(wallet)) == 0
    assert await delta(rpc, signature, ata(wallet, mint, program)) == 0


async def test_with_other_mints_in_one_transaction_only_usdc_counts(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    mint = net.chain.create_mint(6)
    net.finalize()
    payer = funded(net)
    net.faucet(payer.vault.pubkey(), 1_000, mint)
    net.faucet(wallet, 1, mint)
    net.faucet(wallet, 1)
    net.finalize()
    signature = await sent(net, payer, payer.transfer(wallet, 500, mint), payer.transfer(wallet, 3))

    assert await delta(rpc, signature, ata(wallet)) == 3


async def test_a_first_deposit_counts_in_full(net: Localnet, rpc: Rpc) -> None:
    """The account did not exist before: it has no balance to begin with."""
    payer, recipient = funded(net), Keypair().pubkey()
    opening = create_idempotent_associated_token_account(
        payer.fees.pubkey(), recipient, USDC, TOKEN_PROGRAM_ID
    )
    signature = await sent(net, payer, opening, payer.transfer(recipient, 77))

    assert await delta(rpc, signature, ata(recipient)) == 77


# -- Nodes that lag, lie, or are away


async def test_one_node_alone_neither_invents_nor_hides_money(wallet: Pubkey) -> None:
    """Two chains that pose as one: what is on one of them only is not decided on."""
    async with (
        localnet.running(None, manual=True) as one,
        localnet.running(None, manual=True) as two,
    ):
        (signature,) = deposits(one, wallet, 1)
        two.finalize()
        for urls in ((one.url, two.url), (two.url, one.url)):
            async with opened(*urls) as rpc:
                with pytest.raises(RpcDisagreed):
                    await moved(rpc, signature, ata(wallet))
                with pytest.raises(RpcDisagreed):
                    await holdings(rpc, str(ata(wallet)), MAINNET_USDC_MINT)
        async with opened(one.url) as rpc:
            assert await delta(rpc, signature, ata(wallet)) == 1
        async with opened(one.url, two.url) as rpc:
            seen = await moved(rpc, signature, ata(wallet), CONFIRMED)
            assert seen is not None
            assert seen.delta == 1


def changed(path: list[str | int], value: object) -> dict[str, Any]:
    """A sound transaction but for one thing."""
    transaction = sound.transaction()
    *parents, last = path
    inner: Any = transaction
    for step in parents:
        inner = inner[step]
    inner[last] = value
    return transaction


async def asked_twice(first: object, second: object) -> Movement | None:
    """What two nodes that answer so say together."""
    slots = [scripted.result(100)]
    async with (
        scripted.node(getSlot=slots, getTransaction=[scripted.result(first)]) as one,
        scripted.node(getSlot=slots, getTransaction=[scripted.result(second)]) as two,
        scripted.port(one, two) as rpc,
    ):
        return await movement(
            rpc, sound.SIGNATURE, sound.ADDRESS, DEVNET_USDC_MINT, commitment=FINALIZED
        )


@pytest.mark.parametrize(
    "other",
    [
        changed(["slot"], 91),
        changed(["meta", "err"], "AccountInUse"),
        changed(["meta", "postTokenBalances", 0], sound.balance(1, "5500001")),
        None,
    ],
)
async def test_nodes_must_agree_on_slot_amount_and_success(other: object) -> None:
    good = await asked_twice(sound.transaction(), sound.transaction())

    assert good is not None
    assert good.delta == 5_500_000
    with pytest.raises(RpcDisagreed):
        await asked_twice(sound.transaction(), other)
    with pytest.raises(RpcDisagreed):
        await asked_twice(other, sound.transaction())


@pytest.mark.parametrize(
    "rows",
    [
        [sound.balance(1, "5500000") | {"programId": TOKEN_2022_PROGRAM}],
        [sound.balance(1, "5500000", mint=MAINNET_USDC_MINT)],
        [sound.balance(2, "5500000")],
    ],
)
async def test_what_is_not_usdc_in_this_account_is_nothing(rows: list[Any]) -> None:
    transaction = changed(["meta", "postTokenBalances"], rows)
    movement = await asked_twice(transaction, transaction)

    assert movement is not None
    assert movement.delta == 0


async def test_what_cannot_be_judged_is_not_taken_for_nothing() -> None:
    """Without a program it might be another token; with an account twice, anything."""
    bare = sound.balance(1, "5500000")
    del bare["programId"]
    nameless = changed(["meta", "postTokenBalances"], [bare])
    twice = sound.transaction()
    twice["transaction"]["message"]["accountKeys"].append(sound.ADDRESS)
    twice["meta"]["postTokenBalances"] = [sound.balance(1, "5"), sound.balance(2, "6")]

    for odd in (nameless, twice):
        with pytest.raises(RpcUnavailable):
            await asked_twice(odd, odd)


async def test_a_failure_moves_nothing_whatever_the_balances_are() -> None:
    failed = changed(["meta", "err"], "AccountInUse")
    movement = await asked_twice(failed, failed)

    assert movement is not None
    assert (movement.delta, movement.failed) == (0, True)


async def test_a_node_that_is_away_keeps_a_movement_undecided(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    (signature,) = deposits(net, wallet, 1)
    net.endpoints[1].faults.add(Fault(Kind.UNAVAILABLE, "getTransaction", count=FOR_EVER))
    with pytest.raises(RpcUnavailable):
        await moved(rpc, signature, ata(wallet))
    net.endpoints[1].faults.clear()

    assert await delta(rpc, signature, ata(wallet)) == 1


# -- Holdings


async def test_an_account_shows_what_it_holds_and_who_may_move_it(net: Localnet, rpc: Rpc) -> None:
    payer, other = funded(net, 7), Keypair().pubkey()
    address, owner = str(payer.account), payer.vault.pubkey()
    plain = await holdings(rpc, address, MAINNET_USDC_MINT)
    approving = ApproveParams(
        program_id=TOKEN_PROGRAM_ID, source=payer.account, delegate=other, owner=owner, amount=5
    )
    closing = SetAuthorityParams(
        program_id=TOKEN_PROGRAM_ID,
        account=payer.account,
        authority=AuthorityType.CLOSE_ACCOUNT,
        current_authority=owner,
        new_authority=other,
    )
    done(net, [approve(approving), set_authority(closing)], payer.vault)
    frozen(net, payer.account)
    changed = await holdings(rpc, address, MAINNET_USDC_MINT)

    assert plain == Holdings(plain.slot, 7, str(owner), None, None, frozen=False, exists=True)
    assert changed == Holdings(
        changed.slot, 7, str(owner), str(other), str(other), frozen=True, exists=True
    )
    assert changed.slot > plain.slot


async def test_what_is_not_there_holds_nothing_and_says_what_is_instead(
    net: Localnet, rpc: Rpc, wallet: Pubkey
) -> None:
    mint = net.chain.create_mint(6)
    modern = net.chain.create_mint(6, TOKEN_2022_PROGRAM_ID)
    net.finalize()
    net.faucet(wallet, 5, mint)
    net.faucet(wallet, 5, modern)
    net.airdrop(wallet, 10**9)
    net.finalize()
    places = {
        str(ata(wallet)): None,
        str(ata(wallet, mint)): f"a token account of the mint {mint}",
        str(ata(wallet, modern, TOKEN_2022_PROGRAM_ID)): TOKEN_2022_PROGRAM,
        str(wallet): SYSTEM_PROGRAM,
    }
    for address, instead in places.items():
        seen = await holdings(rpc, address, MAINNET_USDC_MINT)
        assert (seen.amount, seen.exists, seen.owner, seen.frozen) == (0, False, None, False)
        assert (seen.instead is None) == (instead is None)
        assert instead is None or instead in (seen.instead or "")
        assert seen.slot == net.chain.slot(localnet.chain.Commitment.FINALIZED)


async def test_holdings_are_what_is_final(net: Localnet, rpc: Rpc, wallet: Pubkey) -> None:
    deposits(net, wallet, 1)
    net.faucet(wallet, 100)
    net.tick(3)

    assert (await holdings(rpc, str(ata(wallet)), MAINNET_USDC_MINT)).amount == 1


async def held(account: object, slot: int = 100) -> Holdings:
    """What a node that is at slot 100 and answers as of `slot` makes of an account."""
    async with (
        scripted.node(
            getSlot=[scripted.result(100)], getAccountInfo=[scripted.seen(account, slot)]
        ) as one,
        scripted.port(one) as rpc,
    ):
        return await holdings(rpc, sound.ADDRESS, DEVNET_USDC_MINT)


async def test_the_right_mint_of_another_program_is_not_usdc() -> None:
    usdc = await held(sound.account(sound.token_data()))
    other = await held(sound.account(sound.token_data(), TOKEN_2022_PROGRAM))

    assert (usdc.exists, usdc.amount) == (True, 5_000_000)
    assert (other.exists, other.amount) == (False, 0)
    assert TOKEN_2022_PROGRAM in (other.instead or "")


async def test_holdings_from_before_the_nodes_own_slot_do_not_count() -> None:
    with pytest.raises(RpcUnavailable):
        await held(sound.account(sound.token_data()), slot=99)


# -- Garbage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)


@given(junk=JSON, key=st.sampled_from(["slot", "meta", "transaction", "blockTime"]) | st.none())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_garbage_moves_nothing(junk: object, key: str | None) -> None:
    """A transaction of which a part is anything, and answers that are anything."""
    answer = junk if key is None else sound.transaction() | {key: junk}
    try:
        movement = await asked_twice(answer, answer)
    except RpcError:
        return
    assert movement is None or (movement.delta, movement.failed) == (5_500_000, False)


@given(junk=JSON, wrapped=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_garbage_holds_nothing(junk: object, wrapped: bool) -> None:
    step = scripted.seen(junk) if wrapped else scripted.result(junk)
    async with (
        scripted.node(getSlot=[scripted.result(100)], getAccountInfo=[step]) as one,
        scripted.port(one) as rpc,
    ):
        try:
            seen = await holdings(rpc, sound.ADDRESS, DEVNET_USDC_MINT)
        except RpcError:
            return
        assert (seen.exists, seen.amount) == (False, 0)
