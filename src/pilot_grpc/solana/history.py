"""What has happened to a token account: its transactions, what each moved, and what it holds.

How deposits are found without losing one. The caller has a cursor, a slot up to which everything
is known, and asks for all rows since some slots before it, since an index can be late with a
row. Pages come newest first, so the cursor may move only when the last page has been read:

* `rows_since` returns when it has all rows, or raises and has not read them all. What it
  returns is complete as far as the node's index was, and the cursor may move to its newest slot.
* After an outage there may be thousands. `parts_since` gives them in parts that fit into memory,
  the newest part first. Each part can be worked off as it comes, because a signature is credited
  only once; the cursor moves after the last part, to the newest slot of the first. Whoever is
  interrupted begins again where the cursor is, and finds in the ledger what was done already.
"""

from collections.abc import AsyncIterator, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pilot_grpc.solana.answers import (
    TOKEN_PROGRAM,
    Account,
    Commitment,
    SignatureRow,
    TokenBalance,
    TokenState,
    Transaction,
)
from pilot_grpc.solana.faults import RpcBehind, RpcDisagreed, RpcGarbage
from pilot_grpc.solana.rpc import SIGNATURE_ROWS_MAX, Reads, Rpc

# When so many rows have been read and the floor is not reached, the rest is for another call.
ROWS_MAX: Final = 10_000
# Two nodes are about a minute apart at most, or one of them does not tell the truth.
SLOTS_APART_MAX: Final = 150
# With three rows or more, some of them come after the one in the middle, whatever their order.
ROWS_WITH_A_MIDDLE: Final = 3


class HistoryTooLong(Exception):
    """There are more rows than wanted. Nothing may be concluded about those not yet read.

    `rows` are the newest ones, oldest first; `before` is what to give to `rows_since` to go on
    from there. Some of the rows come again then.
    """

    def __init__(self, rows: list[SignatureRow], before: str) -> None:
        """Take what has been read, and where reading goes on."""
        super().__init__(f"{len(rows)} rows were read, and there are more")
        self.rows = rows
        self.before = before


@dataclass(frozen=True, slots=True)
class Movement:
    """What a transaction did to a token account.

    `delta` is in minor units of the mint that was asked for: what the account held afterwards
    less what it held before. It is 0 when the transaction failed, or moved other mints only.
    """

    signature: str
    slot: int
    delta: int
    failed: bool
    block_time: int | None


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a token account holds as of a finalized slot, in minor units, and who may move it.

    An account of another mint or program does not exist for this purpose; `instead` then says
    what is there.
    """

    slot: int
    amount: int
    owner: str | None
    delegate: str | None
    close_authority: str | None
    frozen: bool
    exists: bool
    instead: str | None = None


async def rows_since(
    rpc: Reads,
    account: str,
    floor_slot: int,
    *,
    commitment: Commitment,
    min_context_slot: int | None = None,
    rows_max: int = ROWS_MAX,
    before: str | None = None,
    page_rows: int = SIGNATURE_ROWS_MAX,
) -> list[SignatureRow]:
    """Return every row of an account's history from floor_slot on, each once, oldest first.

    Pages overlap: a page that has none of the rows that it must share with the one before it
    comes from a node that does not know them, and would be taken for the end. `until` is not
    used: nodes that do not know it pass it over. The order inside a page does not matter.
    Reading ends below the floor or with a page that has nothing new; a short page ends nothing.

    `before` is from a HistoryTooLong, and goes on where that one stopped. rows_max may be
    exceeded by one page.

    Raises HistoryTooLong, and RpcErrors: RpcBehind for pages that do not fit together. ValueError
    for pages so small that none of their rows is in the middle.
    """
    if page_rows < ROWS_WITH_A_MIDDLE:
        raise ValueError(f"a page has {ROWS_WITH_A_MIDDLE} rows at least")
    found: dict[str, SignatureRow] = {}
    anchor: _Anchor | None = None if before is None else _Anchor(before, None, followed=True)
    while True:
        page = await rpc.signatures_for_address(
            account,
            before=anchor.signature if anchor is not None else None,
            limit=page_rows,
            commitment=commitment,
            min_context_slot=_newest_slot(found.values(), min_context_slot),
        )
        known = sum(row.signature in found for row in page)
        _check_page(page, anchor, known if found else len(page))
        if known == len(page):
            return _since(floor_slot, found)
        found |= {row.signature: found.get(row.signature, row) for row in page}
        if any(row.slot < floor_slot for row in page):
            return _since(floor_slot, found)
        anchor = _anchor(page)
        if anchor.followed and len(found) >= rows_max:
            raise HistoryTooLong(_since(floor_slot, found), anchor.signature)
        if len(found) >= rows_max + page_rows:
            raise RpcGarbage("the pages of a history are too short, and have no end")


async def parts_since(
    rpc: Reads,
    account: str,
    floor_slot: int,
    *,
    commitment: Commitment,
    min_context_slot: int | None = None,
    rows_max: int = ROWS_MAX,
    page_rows: int = SIGNATURE_ROWS_MAX,
) -> AsyncIterator[list[SignatureRow]]:
    """Give every row as `rows_since` does, in parts: the newest part first, each oldest first.

    A part is complete when the next one is asked for; all are, when there is none. Raises
    RpcErrors.
    """
    before: str | None = None
    last: set[str] = set()
    while True:
        try:
            rows = await rows_since(
                rpc,
                account,
                floor_slot,
                commitment=commitment,
                min_context_slot=min_context_slot,
                rows_max=rows_max,
                before=before,
                page_rows=page_rows,
            )
        except HistoryTooLong as more:
            rows, before = more.rows, more.before
        else:
            before = None
        yield [row for row in rows if row.signature not in last]
        if before is None:
            return
        last = {row.signature for row in rows}
        min_context_slot = _newest_slot(rows, min_context_slot)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """Before which row a page begins. `followed`: it must have rows that are known."""

    signature: str
    slot: int | None
    followed: bool


def _anchor(page: Sequence[SignatureRow]) -> _Anchor:
    """Return where the page after this one begins: before the end of it, so that they overlap.

    Rows of one slot are in any order, so which one is the last is not known. The rows of the
    oldest slot are after any row of another. Of a page with one slot the middle has some after
    it, whether the order is one or the other.
    """
    rows = list({row.signature: row for row in page}.values())
    oldest = min(row.slot for row in rows)
    if newer := [row for row in rows if row.slot > oldest]:
        anchor = min(newer, key=lambda row: row.slot)
        return _Anchor(anchor.signature, anchor.slot, followed=True)
    middle = rows[(len(rows) - 1) // 2]
    return _Anchor(middle.signature, oldest, followed=len(rows) >= ROWS_WITH_A_MIDDLE)


def _check_page(page: Sequence[SignatureRow], anchor: _Anchor | None, known: int) -> None:
    """Check that a page goes on where the last one ended, or nodes would hide what they lack."""
    if anchor is None:
        return
    if anchor.followed and not known:
        raise RpcBehind("a page of a history does not go on where the last one ended")
    if anchor.slot is not None and any(row.slot > anchor.slot for row in page):
        raise RpcGarbage("a page of a history has rows that are newer than wanted")


def _newest_slot(rows: Iterable[SignatureRow], at_least: int | None) -> int | None:
    """Return which slot a node must have seen that is to know these rows."""
    newest = max((row.slot for row in rows), default=0)
    return max(newest, at_least or 0) or None


def _since(floor_slot: int, found: dict[str, SignatureRow]) -> list[SignatureRow]:
    """Order rows that were read newest first."""
    rows = [row for row in reversed(found.values()) if row.slot >= floor_slot]
    return sorted(rows, key=lambda row: row.slot)


async def movement(
    rpc: Rpc,
    signature: str,
    account: str,
    mint: str,
    *,
    commitment: Commitment,
    counts: bool = False,
) -> Movement | None:
    """Return what a transaction did to a token account; None when the chain does not show it.

    At FINALIZED, and where it `counts` before that, two endpoints must say the same (one, if
    one is configured): which slot, how much, and whether it failed. That it is not there needs
    two as well: a node that hides a transaction, or one that lags, makes the others' word
    RpcDisagreed, and never None. Otherwise the word of any node is enough, and may change.

    Raises RpcErrors.
    """

    async def look(node: Reads, _: int) -> Movement | None:
        found = await node.transaction(signature, commitment)
        return None if found is None else _movement(found, account, mint)

    def verdict(found: Movement | None) -> Hashable:
        return "absent" if found is None else (found.slot, found.delta, found.failed)

    if counts or commitment is Commitment.FINALIZED:
        return await rpc.agreed(look, verdict)
    return await look(rpc, 0)


def _movement(found: Transaction, account: str, mint: str) -> Movement:
    failed = found.err is not None
    moved = _amount(found.after, account, mint) - _amount(found.before, account, mint)
    return Movement(
        signature=found.signature,
        slot=found.slot,
        delta=0 if failed else moved,
        failed=failed,
        block_time=found.block_time,
    )


def _amount(balances: Sequence[TokenBalance], account: str, mint: str) -> int:
    """Return what an account holds of a mint; 0 where it is not there, or of another one."""
    rows = [each for each in balances if each.account == account and each.mint == mint]
    if len(rows) > 1:
        raise RpcGarbage("an account is twice in a transaction")
    if any(each.program is None for each in rows):
        raise RpcGarbage("a token balance does not say its program")
    return sum(each.amount for each in rows if each.program == TOKEN_PROGRAM)


async def holdings(rpc: Rpc, account: str, mint: str) -> Holdings:
    """Return what a token account holds, as two endpoints see it (one, if one is configured).

    The slot is the oldest of theirs. While money moves, two nodes that are not at the same slot
    can differ: that is RpcDisagreed, as are slots too far apart, and may be tried again. Raises
    RpcErrors.
    """
    slots = []

    async def look(node: Reads, slot: int) -> Holdings:
        found = await node.account_info(account, min_context_slot=slot)
        slots.append(found.slot)
        return _holdings(found.slot, found.value, mint)

    found = await rpc.agreed(look, lambda found: replace(found, slot=0))
    if max(slots) - min(slots) > SLOTS_APART_MAX:
        raise RpcDisagreed("RPC endpoints contradict each other about the slot")
    return replace(found, slot=min(slots))


def _holdings(slot: int, account: Account | None, mint: str) -> Holdings:
    token = account.token if account is not None else None
    if token is None or (token.mint, token.program) != (mint, TOKEN_PROGRAM):
        return Holdings(
            slot=slot,
            amount=0,
            owner=None,
            delegate=None,
            close_authority=None,
            frozen=False,
            exists=False,
            instead=_instead(account),
        )
    return Holdings(
        slot=slot,
        amount=token.amount,
        owner=token.owner,
        delegate=token.delegate,
        close_authority=token.close_authority,
        frozen=token.state is TokenState.FROZEN,
        exists=True,
    )


def _instead(account: Account | None) -> str | None:
    if account is None:
        return None
    if account.token is None:
        return f"no token account, but an account of the program {account.owner}"
    return (
        f"a token account of the mint {account.token.mint} and the program {account.token.program}"
    )
