"""Deliveries: each agent's changes, posted to its webhook_url in order, until they are taken.

There is no queue but the changes themselves, and a cursor an agent. Whoever delivers for
an agent holds its lease, by the database's clock, and renews all of its leases in one
statement, which also writes how far the cursors are. A process that dies loses its leases
within seconds, and another goes on at the cursor: what was sent since it was written is
sent again, and nothing is left out.

After a failure the lease is given back and the time of the next attempt written down, so
that an endpoint that is dead occupies nobody while it waits. One that is slow gives its
turn to others as well, and of one user's no more than a few are called at a time.

A restore can take back changes that were delivered. The cursor has the check value of its
change, so that this is found out, told to the owner, and gone on from.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol
from weakref import WeakValueDictionary

from pilot_grpc import errors
from pilot_grpc.db import webhooks as webhooks_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.webhooks import Job, Progress
from pilot_grpc.domain.ids import AgentId, UserId, VaultId
from pilot_grpc.domain.stream import Head, Update
from pilot_grpc.domain.webhooks import DELETED_KEPT, Attempt, backoff, message_id
from pilot_grpc.sealing import Sealer
from pilot_grpc.services.webhooks import Sender, Signer

log = logging.getLogger(__name__)

# What one process holds at a time; of agents whose last attempt failed, fewer, and of one
# user's so many that another claim would be too much.
HELD_MAX: Final = 1_000
HELD_FAILING_MAX: Final = 128
HELD_FAILING_SHARE: Final = 8
CLAIMED_AT_ONCE_MAX: Final = 200

# Requests on their way: to agents that answer promptly, to those that are known not to,
# and of one user in all. Together with HELD_FAILING_MAX and the test messages they are
# fewer than the connections of `outbound`.
SENDING_MAX: Final = 64
SLOW_MAX: Final = 80
SENDING_SHARE_MAX: Final = 16
PROMPT_SECONDS: Final = 2.0

CLOSE_SECONDS_MAX: Final = 5.0

_RANDOM: Final = random.SystemRandom()
_BROKEN: Final = "Pilot could not make the request; its log says why"

Encode = Callable[[Update], bytes]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often what is done, in seconds."""

    claim: float = 1.0
    renew: float = 2.0
    lease: float = 10.0
    # Without a change for so long an agent is given back, until it has one.
    idle: float = 60.0
    # Where there are more agents than are held, each has so long, and then others have.
    turn: float = 10.0


class Subscription(Protocol):
    """One agent's changes, in order; see `services/stream.py`."""

    async def next_updates(self, seconds: float) -> list[Update]: ...

    def place(self, vault_id: VaultId) -> Head: ...

    def close(self) -> None: ...


class Streams(Protocol):
    """Where changes come from."""

    async def follow_agent(
        self,
        user_id: UserId,
        vault_id: VaultId,
        agent_id: AgentId,
        after: int,
        digest: bytes | None = None,
    ) -> Subscription: ...


@dataclass(slots=True, eq=False)
class _Held:
    """An agent that this process delivers for, and what it has not written down yet."""

    job: Job
    signer: Signer
    begun: float
    lease_ends: float
    cursor: int
    # The check value of the change at the cursor, if it is known.
    digest: bytes | None
    attempts: int
    delivered: int | None = None
    has_succeeded: bool = False
    # A request is on its way, or what became of it is being written.
    is_busy: bool = False
    # The last answer took its time.
    is_slow: bool = False
    # The owner has changed something: finish what is on its way, and begin anew.
    is_stale: bool = False
    # The lease was lost or given back: there is nothing to write any more.
    is_over: bool = False
    task: "asyncio.Task[None]" = field(init=False)

    def progress(self) -> Progress:
        """Return what is to be written down."""
        return Progress(
            self.job.agent_id,
            self.job.edition,
            self.cursor,
            self.digest,
            self.delivered,
            self.has_succeeded,
        )

    def pass_by(self, place: Head) -> None:
        """Put the cursor at a change, unless it is further already."""
        if place.revision >= self.cursor:
            self.cursor, self.digest = place

    def forget(self) -> None:
        """Write down nothing more of a history that was undone: the database knows better."""
        self.cursor, self.digest = 0, None
        self.delivered, self.has_succeeded = None, False

    def stop(self) -> None:
        """End the task, after the request that is on its way."""
        self.is_stale = True
        if not self.is_busy:
            self.task.cancel()

    def lose(self) -> None:
        """End the task at once: somebody else may deliver from here on."""
        self.is_over = True
        self.task.cancel()


class Deliveries:
    """Delivers what is due, as one process of several."""

    def __init__(
        self,
        database: Database,
        streams: Streams,
        sender: Sender,
        sealer: Sealer,
        encode: Encode,
        holder: str,
        *,
        pace: Pace = Pace(),
        chance: Callable[[], float] = _RANDOM.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where changes come from, who writes and sends one, and a name for the leases."""
        self._database = database
        self._streams = streams
        self._sender = sender
        self._sealer = sealer
        self._encode = encode
        self._holder = holder
        self._pace = pace
        self._chance = chance
        self._monotonic = monotonic
        self._held: dict[AgentId, _Held] = {}
        self._sending = asyncio.Semaphore(SENDING_MAX)
        self._slow = asyncio.Semaphore(SLOW_MAX)
        self._shares: WeakValueDictionary[UserId, asyncio.Semaphore] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._duties: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        """Begin to deliver."""
        self._duties = (
            asyncio.create_task(self._keep_claiming()),
            asyncio.create_task(self._keep_renewing()),
        )

    async def close(self) -> None:
        """Let the requests on their way be answered, for a time, and give the leases back."""
        claiming, renewing = self._duties
        claiming.cancel()
        await asyncio.wait([claiming])
        for held in tuple(self._held.values()):
            held.stop()
        tasks = tuple(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS_MAX)
            for task in late:
                task.cancel()
        renewing.cancel()
        await asyncio.wait([renewing, *tasks])

    async def clean(self) -> None:
        """Remove what is kept of agents that were deleted a while ago."""
        async with self._database.transaction() as conn:
            await webhooks_db.delete_finished(conn, DELETED_KEPT)

    # --- leases -----------------------------------------------------------------------

    async def _keep_claiming(self) -> None:
        while True:
            try:
                await self._claim()
            except errors.PilotError as error:
                log.warning("no webhooks are claimed: %s", error.message)
            except Exception:
                log.exception("claiming webhooks failed")
            await asyncio.sleep(self._pace.claim)

    async def _claim(self) -> None:
        """Lease agents that have something to deliver, and begin with them."""
        healthy = sum(held.attempts == 0 for held in self._held.values())
        if healthy >= HELD_MAX:
            self._make_room()
        limit = min(CLAIMED_AT_ONCE_MAX, HELD_MAX - healthy)
        await self._claim_some(limit, failing=False)
        # In small steps: one user may have more that fail than all others together.
        for _ in range(HELD_FAILING_MAX // HELD_FAILING_SHARE):
            failing = Counter(held.job.user_id for held in self._held.values() if held.attempts)
            limit = min(HELD_FAILING_SHARE, HELD_FAILING_MAX - failing.total())
            served = [user_id for user_id, n in failing.items() if n >= HELD_FAILING_SHARE]
            if await self._claim_some(limit, served, failing=True) < HELD_FAILING_SHARE:
                return

    async def _claim_some(
        self, limit: int, served: Collection[UserId] = (), *, failing: bool
    ) -> int:
        """Lease up to so many agents, and begin with them; say how many that are."""
        if limit <= 0:
            return 0
        lease = timedelta(seconds=self._pace.lease)
        begun = self._monotonic()
        lease_ends = begun + self._pace.lease
        async with self._database.transaction() as conn:
            claimed = await webhooks_db.claim_webhooks(
                conn, self._holder, lease, limit, served, failing=failing
            )
            if not claimed:
                return 0
            jobs = await webhooks_db.select_jobs(conn, claimed)
            secrets = await webhooks_db.select_secrets(conn, claimed)
        for job in jobs:
            signer = Signer(self._sealer, job.agent_id, secrets.get(job.agent_id, ()))
            at = job.cursor_revision, job.cursor_digest
            held = _Held(job, signer, begun, lease_ends, *at, job.attempts)
            before = self._held.get(job.agent_id)
            if before is not None:
                # Its lease ran out unnoticed, and this is its next one. It ends first.
                before.stop()
                continue
            self._held[job.agent_id] = held
            held.task = asyncio.create_task(self._run(held))
            self._tasks.add(held.task)
            held.task.add_done_callback(self._tasks.discard)
        return len(claimed)

    def _make_room(self) -> None:
        """Give back those that were held longest; whoever waits longest is claimed next."""
        turn_ends = self._monotonic() - self._pace.turn
        for held in tuple(self._held.values())[:CLAIMED_AT_ONCE_MAX]:
            if held.begun <= turn_ends:
                held.stop()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(min(self._pace.renew, self._lease_left()))
            try:
                async with asyncio.timeout(self._lease_left()):
                    await self._renew()
            except errors.PilotError as error:
                log.warning("the leases of webhooks are not renewed: %s", error.message)
            except TimeoutError:
                log.warning("the leases of webhooks were not renewed in time")
            except Exception:
                log.exception("renewing the leases of webhooks failed")
            now = self._monotonic()
            for held in tuple(self._held.values()):
                if held.lease_ends <= now:
                    held.lose()

    def _lease_left(self) -> float:
        """Say for how many seconds all leases last."""
        ends = [held.lease_ends for held in self._held.values() if not held.is_over]
        return max(0.0, min(ends) - self._monotonic()) if ends else self._pace.lease

    async def _renew(self) -> None:
        """Renew all leases, and write how far the cursors are."""
        holding = tuple(held for held in self._held.values() if not held.is_over)
        if not holding:
            return
        lease = timedelta(seconds=self._pace.lease)
        lease_ends = self._monotonic() + self._pace.lease
        written = [held.progress() for held in holding]
        async with self._database.transaction() as conn:
            editions = await webhooks_db.write_progress(conn, self._holder, lease, written)
        for held, progress in zip(holding, written, strict=True):
            agent_id = held.job.agent_id
            if self._held.get(agent_id) is not held:
                continue
            if agent_id not in editions:
                held.lose()
                continue
            edition = editions[agent_id]
            if edition is None:
                continue
            held.lease_ends = lease_ends
            if progress.delivered_revision == held.delivered:
                held.has_succeeded = False
            if edition != held.job.edition:
                held.stop()

    # --- deliveries -------------------------------------------------------------------

    async def _run(self, held: _Held) -> None:
        """Deliver for one agent until something ends that, and give its lease back."""
        try:
            await self._deliver(held)
        except errors.HistoryUndone as undone:
            held.forget()
            log.warning("agent %s: deliveries begin anew: %s", held.job.agent_id, undone.message)
        except errors.PilotError as error:
            log.warning("agent %s: deliveries stop: %s", held.job.agent_id, error.message)
        except Exception:
            log.exception("agent %s: deliveries failed", held.job.agent_id)
            with suppress(errors.PilotError):
                await self._write_failure(held, _BROKEN, None)
        finally:
            del self._held[held.job.agent_id]
            if not held.is_over:
                with suppress(errors.PilotError):
                    await self._give_back(held)

    async def _give_back(self, held: _Held) -> None:
        async with self._database.transaction() as conn:
            await webhooks_db.lock_webhook(conn, held.job.agent_id)
            await webhooks_db.write_progress(conn, self._holder, None, [held.progress()])

    async def _deliver(self, held: _Held) -> None:
        """Follow the agent's changes, and deliver one after another."""
        job = held.job
        subscription = await self._follow(held)
        try:
            idle_from = self._monotonic()
            while not held.is_stale:
                updates = await subscription.next_updates(self._pace.renew)
                for update in updates:
                    if not await self._deliver_next(held, update):
                        return
                held.pass_by(subscription.place(job.vault_id))
                if job.final_revision is not None and held.cursor >= job.final_revision:
                    return
                if updates:
                    idle_from = self._monotonic()
                elif self._monotonic() - idle_from >= self._pace.idle:
                    return
        finally:
            subscription.close()

    async def _follow(self, held: _Held) -> Subscription:
        """Follow the agent after its cursor, or after what is missing behind it."""
        job = held.job
        scope = job.user_id, job.vault_id, job.agent_id
        try:
            return await self._streams.follow_agent(*scope, held.cursor, held.digest)
        except errors.ChangesTrimmed as gone:
            cursor = int(gone.metadata["oldest_revision"]) - 1
            loss = f"changes {held.cursor + 1} to {cursor} were trimmed before they were delivered"
        except errors.HistoryUndone as undone:
            cursor = int(undone.metadata["newest_revision"])
            loss = (
                f"the vault was restored to before change {held.cursor}; changes since then may"
                " be missing here: re-deliver from the revision you need"
            )
        held.forget()
        log.warning("agent %s: %s", job.agent_id, loss)
        async with self._database.transaction() as conn:
            await webhooks_db.write_loss(conn, self._holder, job, cursor, loss)
        held.cursor = cursor
        return await self._streams.follow_agent(*scope, cursor)

    async def _deliver_next(self, held: _Held, update: Update) -> bool:
        """Deliver a change, and say whether the next one may follow."""
        final = held.job.final_revision
        if final is not None and update.revision > final:
            if held.cursor < final:
                held.cursor, held.digest = final, None
            return False
        try:
            attempt = await self._send(held, update)
            if attempt is None:
                return False
            if attempt.error is not None:
                await self._write_failure(held, attempt.error, attempt.retry_after)
                return False
        finally:
            held.is_busy = False
        held.pass_by(Head(update.revision, update.digest))
        held.delivered = update.revision
        held.attempts = 0
        held.has_succeeded = True
        return not held.is_stale

    async def _send(self, held: _Held, update: Update) -> Attempt | None:
        """Send a change when it is its turn; None when by then nothing may be sent any more.

        Those that failed before take turns with others of their user only: no more than a
        few are held at all.
        """
        new_share = asyncio.Semaphore(SENDING_SHARE_MAX)
        async with self._shares.setdefault(held.job.user_id, new_share):
            if held.attempts:
                return await self._send_now(held, update)
            if held.is_slow:
                async with self._slow:
                    return await self._send_now(held, update)
            return await self._send_promptly(held, update)

    async def _send_promptly(self, held: _Held, update: Update) -> Attempt | None:
        """Send a change, and make room for others if it is not answered promptly.

        Where there are too many such already, room is made from the next change on.
        """
        async with self._sending:
            sending = asyncio.create_task(self._send_now(held, update))
            try:
                await asyncio.wait([sending], timeout=PROMPT_SECONDS)
            except BaseException:
                sending.cancel()
                raise
            if sending.done() or self._slow.locked():
                return await sending
            await self._slow.acquire()
        try:
            return await sending
        finally:
            self._slow.release()

    async def _send_now(self, held: _Held, update: Update) -> Attempt | None:
        if held.is_stale or self._monotonic() >= held.lease_ends:
            return None
        held.is_busy = True
        attempt = await self._sender.send(
            held.job.url,
            message_id(update.vault_id, update.revision, update.digest),
            self._encode(update),
            held.signer,
        )
        held.is_slow = attempt.took.total_seconds() >= PROMPT_SECONDS
        return attempt

    async def _write_failure(self, held: _Held, error: str, retry_after: float | None) -> None:
        """Write why an attempt failed and when the next one is due; the lease ends with it."""
        held.attempts += 1
        wait = timedelta(seconds=backoff(held.attempts, self._chance(), retry_after))
        async with self._database.transaction() as conn:
            held.is_over = await webhooks_db.write_failure(
                conn, self._holder, held.progress(), held.attempts, error, wait
            )
