"""Payments on chain: judged, signed, stored, sent, sent again, and confirmed or failed.

A spend with a recipient is reserved in the ledger when its caller has the answer; all else
happens here. Any number of processes share the work, and each of them may die at any line:

- What is to be sent is stored before it is sent, once for each attempt, by whoever comes
  first. What is sent, also again, are those bytes and no others.
- Nothing is signed anew, and no payment is failed, before the chain says that the transaction
  failed or can no longer land, and two nodes say so.
- A lease keeps two processes from working on the same payment at the same time. Nothing but
  effort is lost where it does not.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pilot_grpc import errors
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.transfers import Sent, Transfer
from pilot_grpc.domain.ids import EventId
from pilot_grpc.domain.ledger import (
    ConfirmTransfer,
    Event,
    EventStatus,
    FailTransfer,
    FailureReason,
    SightTransfer,
)
from pilot_grpc.services.chain import Chain, Complaints, Signers
from pilot_grpc.services.lanes import Lanes
from pilot_grpc.solana import payments
from pilot_grpc.solana.answers import Commitment, Status
from pilot_grpc.solana.faults import RpcError
from pilot_grpc.solana.payments import (
    FeePayerTooLow,
    FeePolicy,
    Payment,
    PaymentRefused,
    RecentPrices,
    Refusal,
    Signed,
)
from pilot_grpc.solana.rpc import SIGNATURES_MAX
from pilot_grpc.solana.signing import SigningFailed

log = logging.getLogger(__name__)

HELD_MAX: Final = 4 * SIGNATURES_MAX
AT_ONCE_MAX: Final = 16
LEASE: Final = timedelta(seconds=15)
RENEW_SECONDS: Final = 4.0
# What another process left is found so late at most, beside the lease.
IDLE_SECONDS: Final = 1.0
# A transaction that nobody has seen is sent again so often.
RESEND_SECONDS: Final = 2.0
# So many times as often as else, the chain is asked about what was just sent; when there is
# much of it all the time, less often.
HASTE: Final = 10
HASTE_OF_MANY: Final = 2
FEW_MAX: Final = 4
# Nodes remember as much without their history.
RECENT_SECONDS: Final = 45.0
RETRY_SECONDS_MIN: Final = 0.5
RETRY_SECONDS_MAX: Final = 15.0
# A payment that could not be signed for so long is given back.
UNSENT_MAX: Final = timedelta(minutes=10)
ATTEMPTS_MAX: Final = 3
# To end one takes half a dozen questions to each node, which are not to be had for hundreds.
ENDED_AT_ONCE_MAX: Final = 4
# Behind one URL there may be several nodes, of which one is behind: a transaction is given up
# only so many blocks after the last one in which it could land.
EXPIRY_MARGIN_BLOCKS: Final = 150

_REASONS: Final = {
    Refusal.RECIPIENT_NOT_A_WALLET: FailureReason.RECIPIENT_NOT_A_WALLET,
    Refusal.RECIPIENT_IS_THE_VAULT: FailureReason.RECIPIENT_IS_THE_VAULT,
    Refusal.RECIPIENT_HAS_NO_ACCOUNT: FailureReason.RECIPIENT_HAS_NO_ACCOUNT,
    Refusal.ACCOUNT_FROZEN: FailureReason.ACCOUNT_FROZEN,
    Refusal.VAULT_HAS_TOO_LITTLE: FailureReason.TRANSFER_REJECTED,
    Refusal.REJECTED: FailureReason.TRANSFER_REJECTED,
}


@dataclass(slots=True)
class _Followed:
    """A signed payment, and when what was last done about it, by the loop's clock."""

    transfer: Transfer
    sent: Sent
    since: float
    sent_at: float
    sighted: bool = False

    @property
    def given_up_after(self) -> int:
        """The block height after which it is certain that it never lands."""
        return self.sent.last_valid_block_height + EXPIRY_MARGIN_BLOCKS


class _NoAccount(Exception):
    """This payment may not make its recipient's account. Another one may be about to."""

    def __init__(self, is_on_its_way: bool) -> None:
        super().__init__()
        self.is_on_its_way = is_on_its_way


@dataclass(slots=True)
class _Work:
    """What this process has taken: what is being signed, and what is followed."""

    begun: set[EventId] = field(default_factory=set)
    followed: dict[EventId, _Followed] = field(default_factory=dict)

    @property
    def ids(self) -> set[EventId]:
        return self.begun | self.followed.keys()


class Transfers:
    """Works on the payments that are on their way."""

    def __init__(
        self,
        database: Database,
        lanes: Lanes,
        chain: Chain,
        signers: Signers,
        *,
        worker: str,
        policy: FeePolicy,
        accounts_per_day: int,
        poll: timedelta,
    ) -> None:
        """Take a name that no other process has, and how often to ask the chain.

        For so many recipients a day the fee payer makes an account.
        """
        self._database = database
        self._lanes = lanes
        self._chain = chain
        self._signers = signers
        self._worker = worker
        self._policy = policy
        self._accounts_per_day = accounts_per_day
        self._poll_seconds = poll.total_seconds()
        self._prices = RecentPrices()
        self._complain = Complaints(log)
        self._work = _Work()
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._is_news = False
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work."""
        self._main = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Learn that there is a new payment."""
        self._is_news = True
        self._awake.set()

    async def close(self) -> None:
        """Stop, and give back what was taken, so that others go on at once."""
        tasks = [*self._tasks] + ([self._main] if self._main is not None else [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with self._database.transaction() as conn:
                await transfers_db.release(conn, self._worker)
        except errors.PilotError as error:
            log.warning("payments were not given back: %s", error.message)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        claimed_at = renewed_at = float("-inf")
        while True:
            self._awake.clear()
            try:
                now = loop.time()
                if now - renewed_at >= RENEW_SECONDS:
                    renewed_at = now
                    await self._renew()
                if self._is_news or now - claimed_at >= IDLE_SECONDS:
                    claimed_at, self._is_news = now, False
                    await self._claim()
                await self._follow()
            except errors.PilotError as error:
                self._complain("payments wait: %s", error.message)
            except RpcError as fault:
                self._complain("payments wait for the chain: %s", fault)
            except Exception:
                log.exception("payments wait")
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._pause_seconds()):
                await self._awake.wait()
        except TimeoutError:
            return
        # Those that come together are claimed together.
        await asyncio.sleep(0)

    def _pause_seconds(self) -> float:
        """Say when to ask again: what was just sent is likely to land soon."""
        followed = self._work.followed.values()
        if not followed:
            return IDLE_SECONDS
        youngest = asyncio.get_running_loop().time() - max(each.since for each in followed)
        haste = HASTE if len(followed) <= FEW_MAX else HASTE_OF_MANY
        return min(max(youngest / 2, self._poll_seconds / haste), self._poll_seconds)

    async def _renew(self) -> None:
        ids = self._work.ids
        if not ids:
            return
        async with self._database.transaction() as conn:
            kept = await transfers_db.renew(conn, ids, self._worker, LEASE)
        for event_id in ids - kept:
            self._work.followed.pop(event_id, None)

    async def _claim(self) -> None:
        room = HELD_MAX - len(self._work.ids)
        if room <= 0:
            return
        async with self._database.transaction() as conn:
            ids = await transfers_db.claim(conn, self._worker, LEASE, room)
            transfers = await transfers_db.select_transfers(conn, ids, self._worker) if ids else []
        self._go_on(transfers)

    async def _take(self, event_id: EventId) -> None:
        """Look anew at a payment that this process has."""
        async with self._database.transaction() as conn:
            transfers = await transfers_db.select_transfers(conn, [event_id], self._worker)
        self._go_on(transfers)

    def _go_on(self, transfers: Iterable[Transfer]) -> None:
        """Go on with payments, wherever this or another process has stopped."""
        for transfer in transfers:
            if transfer.sent is None:
                self._begin(transfer)
            elif transfer.event_id not in self._work.followed:
                # Nobody knows whether it was ever sent.
                self._follow_up(transfer, transfer.sent, sent_at=float("-inf"))

    def _begin(self, transfer: Transfer) -> None:
        if transfer.event_id not in self._work.begun:
            self._work.begun.add(transfer.event_id)
            self._spawn(self._pay(transfer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Until it is sent.

    async def _pay(self, transfer: Transfer) -> None:
        """Sign a payment and send it, or fail it, or put it off."""
        try:
            async with self._slots:
                await self._sign_and_send(transfer)
        except PaymentRefused as refused:
            log.warning("payment %s is refused: %s", transfer.event_id, refused)
            await self._fail(transfer, _REASONS[refused.refusal], None)
        except FeePayerTooLow as error:
            log.error("payment %s waits: %s", transfer.event_id, error)  # noqa: TRY400 - no defect
            await self._put_off(transfer)
        except (RpcError, SigningFailed, errors.PilotError) as error:
            log.warning("payment %s waits: %s", transfer.event_id, error)
            await self._put_off(transfer)
        except Exception:
            log.exception("payment %s waits", transfer.event_id)
            await self._put_off(transfer)
        finally:
            self._work.begun.discard(transfer.event_id)

    async def _sign_and_send(self, transfer: Transfer) -> None:
        if transfer.is_stopped:
            return await self._fail(transfer, FailureReason.VAULT_STOPPED, None)
        if transfer.age > UNSENT_MAX:
            reason = FailureReason.TRANSFER_NOT_SENT
            if transfer.attempt > 1:
                reason = FailureReason.TRANSFER_EXPIRED
            return await self._fail(transfer, reason, None)
        payment = Payment(
            event_id=transfer.event_id,
            vault=transfer.address,
            recipient=transfer.recipient,
            amount=transfer.amount,
            mint=self._chain.usdc_mint,
        )
        rpc = self._chain.rpc
        judgement = await payments.judge(
            rpc,
            payment,
            may_make_account=transfer.is_trusted and self._accounts_per_day > 0,
        )
        signed = await payments.prepare(
            rpc,
            payment,
            judgement,
            await self._signers.of(transfer.vault_id),
            await self._signers.of_fees(),
            self._policy,
            self._prices,
        )
        try:
            sent = await self._store(transfer, signed, makes_account=judgement.needs_account)
        except _NoAccount as found:
            if not found.is_on_its_way:
                await payments.judge(rpc, payment, may_make_account=False)
            # Somebody else has made the recipient's account, or is about to.
            await self._put_off(transfer)
            return None
        if sent is None:
            # Somebody else was faster, or the vault was stopped: begin anew with what is there.
            await self._put_off(transfer, at_once=True)
            return None
        now = asyncio.get_running_loop().time()
        await self._send(self._follow_up(transfer, sent, sent_at=now))
        self._awake.set()
        return None

    async def _store(
        self, transfer: Transfer, signed: Signed, *, makes_account: bool
    ) -> Sent | None:
        """Write down what is to be sent; None when it must not be. Raises _NoAccount."""
        sent = Sent(
            signed.signature, signed.transaction, signed.last_valid_block_height, signed.slot
        )
        async with self._database.transaction() as conn:
            if makes_account and not await transfers_db.insert_account(
                conn, transfer.recipient, transfer.event_id, self._accounts_per_day
            ):
                raise _NoAccount(await transfers_db.is_account_on_its_way(conn, transfer.recipient))
            stored = await transfers_db.insert_signature(
                conn, transfer.event_id, transfer.attempt, sent, signed.blockhash
            )
        return sent if stored else None

    async def _put_off(self, transfer: Transfer, *, at_once: bool = False) -> None:
        """Give a payment back for a while, which is longer the longer it has waited."""
        wait = min(max(transfer.age.total_seconds() / 4, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
        try:
            async with self._database.transaction() as conn:
                await transfers_db.postpone(
                    conn,
                    transfer.event_id,
                    self._worker,
                    timedelta(0) if at_once else timedelta(seconds=wait),
                )
        except errors.PilotError as error:
            # Its lease ends by itself.
            log.warning("payment %s was not given back: %s", transfer.event_id, error.message)

    # Once it is sent.

    def _follow_up(self, transfer: Transfer, sent: Sent, *, sent_at: float) -> _Followed:
        now = asyncio.get_running_loop().time()
        followed = self._work.followed[transfer.event_id] = _Followed(transfer, sent, now, sent_at)
        return followed

    async def _follow(self) -> None:
        """Ask the chain about all that is followed, in few questions, and act on its answers."""
        followed = [*self._work.followed.values()]
        for at in range(0, len(followed), SIGNATURES_MAX):
            await self._follow_some(followed[at : at + SIGNATURES_MAX])

    async def _follow_some(self, followed: Sequence[_Followed]) -> None:
        now = asyncio.get_running_loop().time()
        statuses = await self._chain.rpc.statuses(
            [each.sent.signature for each in followed],
            search_history=any(now - each.since > RECENT_SECONDS for each in followed),
            counts=self._chain.commitment,
        )
        pairs = [*zip(followed, statuses, strict=True)]
        await asyncio.gather(*(self._act(each, status) for each, status in pairs))
        missing = [
            each
            for each, status in pairs
            if status is None and each.transfer.event_id in self._work.followed
        ]
        await self._care_for_missing(missing, now)

    async def _act(self, each: _Followed, status: Status | None) -> None:
        """Take what the chain says about a payment. Below finalized, a failure says nothing yet."""
        if status is None:
            return
        if status.err is None and (status.finalized or self._counts(status.commitment)):
            await self._confirm(each, status.slot)
        elif status.err is not None and status.finalized:
            log.warning("payment %s failed on chain: %s", each.transfer.event_id, status.err)
            await self._fail(each.transfer, FailureReason.TRANSFER_FAILED, each.sent.signature)
        elif status.err is None and not each.sighted:
            each.sighted = True
            self._spawn(self._sight(each))

    async def _sight(self, each: _Followed) -> None:
        """Show where a payment is; the chain is asked meanwhile whether it is final."""
        transfer = each.transfer
        try:
            await self._lanes.decide(
                SightTransfer(transfer.vault_id, transfer.event_id, each.sent.signature)
            )
        except errors.PilotError as error:
            each.sighted = False
            self._complain("payments are not shown: %s", error.message)
        except Exception:
            each.sighted = False
            log.exception("payment %s is not shown", transfer.event_id)

    def _counts(self, commitment: Commitment) -> bool:
        return commitment is Commitment.CONFIRMED and commitment is self._chain.commitment

    async def _confirm(self, each: _Followed, slot: int) -> None:
        transfer = each.transfer
        await self._decided(
            await self._lanes.decide(
                ConfirmTransfer(transfer.vault_id, transfer.event_id, each.sent.signature, slot)
            )
        )

    async def _fail(self, transfer: Transfer, reason: FailureReason, signature: str | None) -> None:
        """Give a payment back, unless it has another signature by now."""
        try:
            event = await self._lanes.decide(
                FailTransfer(transfer.vault_id, transfer.event_id, reason, signature)
            )
        except errors.PilotError as error:
            log.warning("payment %s waits: %s", transfer.event_id, error.message)
            await self._put_off(transfer)
        else:
            await self._decided(event)

    async def _decided(self, event: Event) -> None:
        """Let go of a payment that is decided, and look anew at one that is not."""
        self._work.followed.pop(event.id, None)
        if event.status is EventStatus.PENDING:
            await self._take(event.id)

    async def _care_for_missing(self, missing: Sequence[_Followed], now: float) -> None:
        """End what can no longer land, and send again what nobody has seen."""
        due = [each for each in missing if now - each.sent_at >= RESEND_SECONDS]
        if not due:
            return
        height = await self._chain.rpc.block_height()
        alive = [each for each in due if height <= each.sent.last_valid_block_height]
        expired = [each for each in due if height > each.given_up_after]
        ended = sorted(expired, key=lambda each: each.sent_at)[:ENDED_AT_ONCE_MAX]
        await asyncio.gather(*map(self._send, alive), *map(self._end_or_wait, ended))

    async def _send(self, each: _Followed) -> None:
        """Send the stored bytes. Whatever comes back, only the status decides."""
        each.sent_at = asyncio.get_running_loop().time()
        try:
            await self._chain.rpc.send(
                each.sent.transaction,
                preflight_commitment=payments.PREFLIGHT_COMMITMENT,
                skip_preflight=True,
            )
        except RpcError as fault:
            log.info("payment %s may not have been sent: %s", each.transfer.event_id, fault)

    async def _end_or_wait(self, each: _Followed) -> None:
        """End a payment, now or the next time; what goes wrong with it delays no other."""
        each.sent_at = asyncio.get_running_loop().time()
        try:
            await self._end(each)
        except RpcError as fault:
            log.warning("payment %s waits for the chain: %s", each.transfer.event_id, fault)

    async def _end(self, each: _Followed) -> None:
        """Sign anew, or fail, what is not on chain and can no longer get there."""
        sent, transfer = each.sent, each.transfer
        fate = await self._chain.rpc.fate(sent.signature, each.given_up_after, since_slot=sent.slot)
        if not fate.expired:
            await self._act(each, fate.status)
            return
        if transfer.attempt >= ATTEMPTS_MAX:
            await self._fail(transfer, FailureReason.TRANSFER_EXPIRED, sent.signature)
            return
        async with self._database.transaction() as conn:
            attempt = await transfers_db.begin_next_attempt(conn, transfer.event_id, sent.signature)
        log.warning(
            "payment %s did not land in time; attempt %s begins", transfer.event_id, attempt
        )
        self._work.followed.pop(transfer.event_id, None)
        await self._take(transfer.event_id)
