"""Group commit: spends that wait together share one transaction.

A vault is one row that all its spends change, so one spend a transaction caps it near
one a disk flush. A lane takes whatever has arrived while its previous batch was being
committed, decides it in order, and commits it once. A vault always goes to the same
lane of a process; other processes wait for the vault's lock.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from zlib import crc32

from pilot_grpc import errors
from pilot_grpc.db.connection import BEGIN_BRIEF, Database, Locked
from pilot_grpc.domain.book import Book
from pilot_grpc.domain.ids import VaultId
from pilot_grpc.domain.ledger import Command, Event
from pilot_grpc.services.books import Books
from pilot_grpc.services.declines import Declines

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
SETTLE_COST: Final = 100
LOCK_SECONDS_MAX: Final = 4.0
# One vault may fill half of a queue; the other half is for the others.
VAULT_SHARE: Final = 2
APART_AT_ONCE_MAX: Final = 2
CONNECTIONS_PER_LANE: Final = 1 + APART_AT_ONCE_MAX

# What an item comes to: its events, what refuses it, or None while its vault is locked.
_Outcome: TypeAlias = list[Event] | Exception | None


@dataclass(slots=True, eq=False)
class _Item:
    """Commands of one vault that one caller waits for, decided together or not at all."""

    vault_id: VaultId
    commands: Sequence[Command]
    future: "asyncio.Future[list[Event]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    since: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def cost(self) -> int:
        """How much of a batch it takes; settling a vault takes something, too."""
        return len(self.commands) or SETTLE_COST


class Lanes:
    """The queues in front of the vaults, and the tasks that empty them."""

    def __init__(
        self,
        database: Database,
        books: Books,
        declines: Declines,
        committed: Callable[[Iterable[VaultId]], None],
        *,
        count: int,
        batch_max: int,
        queue_max: int,
    ) -> None:
        """Make `count` lanes; the limits count commands. `start` sets them going.

        `committed` is told which vaults have changed.
        """
        self._lanes = [
            _Lane(database, books, declines, committed, self._tell_paid, batch_max, queue_max)
            for _ in range(count)
        ]
        # Called when there are new payments for the chain; whoever works on those sets it.
        self.on_their_way: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to decide."""
        self._tasks = [asyncio.create_task(lane.run()) for lane in self._lanes]

    def _tell_paid(self) -> None:
        self.on_their_way()

    async def decide(self, command: Command) -> Event:
        """Wait for the decision of one command.

        Raises what refuses it, Overloaded when too many wait, or DatabaseUnavailable.
        """
        return (await self.decide_all(command.vault_id, (command,)))[0]

    async def decide_all(self, vault_id: VaultId, commands: Sequence[Command]) -> list[Event]:
        """Wait for the decisions of commands on one vault: all are decided, or none."""
        lane = self._lanes[crc32(vault_id.encode()) % len(self._lanes)]
        return await lane.put(_Item(vault_id, commands))

    async def settle(self, vault_id: VaultId) -> None:
        """Settle the holds of a vault that are overdue."""
        await self.decide_all(vault_id, ())

    async def close(self) -> None:
        """Decide what waits, then stop."""
        for lane in self._lanes:
            lane.close()
        await asyncio.gather(*self._tasks)


class _Lane:
    """One queue and the batches it is decided in.

    A batch mixes vaults and never waits for a lock: a vault that somebody else has
    locked is set apart with all that waits for it, and decided by itself once the lock
    is free. While it waits, it takes turns with the others that wait.
    """

    def __init__(
        self,
        database: Database,
        books: Books,
        declines: Declines,
        committed: Callable[[Iterable[VaultId]], None],
        on_their_way: Callable[[], None],
        batch_max: int,
        queue_max: int,
    ) -> None:
        self._database = database
        self._books = books
        self._declines = declines
        self._committed = committed
        self._on_their_way = on_their_way
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._queue: deque[_Item] = deque()
        self._waiting = 0
        self._waiting_of: Counter[VaultId] = Counter()
        self._awake = asyncio.Event()
        self._closed = False
        self._apart: dict[VaultId, deque[_Item]] = {}
        self._apart_slots = asyncio.Semaphore(APART_AT_ONCE_MAX)
        self._apart_tasks: set[asyncio.Task[None]] = set()

    async def put(self, item: _Item) -> list[Event]:
        if self._closed:
            raise errors.ServerDraining(retry_after=RETRY_SECONDS)
        cost, of_vault = item.cost, self._waiting_of[item.vault_id]
        if (
            self._waiting + cost > self._queue_max
            or of_vault + cost > self._queue_max // VAULT_SHARE
        ):
            raise errors.Overloaded(retry_after=RETRY_SECONDS)
        self._append(self._apart.get(item.vault_id, self._queue), item)
        self._awake.set()
        return await item.future

    def close(self) -> None:
        self._closed = True
        self._awake.set()

    async def run(self) -> None:
        while self._queue or not self._closed:
            await self._awake.wait()
            batch = self._take(self._queue)
            if batch:
                await self._decide(batch, wait=False)
            if not self._queue and not self._closed:
                self._awake.clear()
        await asyncio.gather(*self._apart_tasks)

    def _append(self, queue: deque[_Item], item: _Item) -> None:
        queue.append(item)
        self._waiting += item.cost
        self._waiting_of[item.vault_id] += item.cost

    def _take(self, queue: deque[_Item]) -> list[_Item]:
        """Take what waits, up to a full batch; who has stopped waiting is left out."""
        batch: list[_Item] = []
        room = self._batch_max
        while queue and (not batch or queue[0].cost <= room):
            item = queue.popleft()
            self._waiting -= item.cost
            self._waiting_of[item.vault_id] -= item.cost
            if not self._waiting_of[item.vault_id]:
                del self._waiting_of[item.vault_id]
            if not item.future.done():
                batch.append(item)
                room -= item.cost
        return batch

    def _set_apart(self, item: _Item) -> None:
        """Let an item wait for its vault alone, for a while."""
        if asyncio.get_running_loop().time() - item.since > LOCK_SECONDS_MAX:
            item.future.set_exception(errors.Overloaded(retry_after=RETRY_SECONDS))
            return
        if item.vault_id not in self._apart:
            self._apart[item.vault_id] = deque()
            task = asyncio.create_task(self._run_apart(item.vault_id))
            self._apart_tasks.add(task)
            task.add_done_callback(self._apart_tasks.discard)
        self._append(self._apart[item.vault_id], item)

    async def _run_apart(self, vault_id: VaultId) -> None:
        """Decide what waits for one vault; between attempts, others get the connections."""
        queue = self._apart[vault_id]
        while queue:
            async with self._apart_slots:
                batch = self._take(queue)
                if batch:
                    await self._decide(batch, wait=True)
        del self._apart[vault_id]

    async def _decide(self, batch: list[_Item], *, wait: bool) -> None:
        """Decide a batch. Whatever happens, everybody in it gets an answer."""
        outcomes: list[_Outcome]
        try:
            outcomes = await self._commit(batch, wait=wait)
        except Locked:
            outcomes = [None] * len(batch)
        except (errors.DatabaseUnavailable, errors.Overloaded) as error:
            # Where nobody knows whether a commit arrived, nobody decides again.
            outcomes = [type(error)(retry_after=error.retry_after) for _ in batch]
        except Exception as error:  # noqa: BLE001 - whoever waits must get an answer
            if len(batch) > 1:
                log.warning("a batch of %d failed; deciding one by one", len(batch))
                for item in batch:
                    await self._decide([item], wait=True)
                return
            outcomes = [error]
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue
            if outcome is None:
                self._set_apart(item)
            elif isinstance(outcome, Exception):
                item.future.set_exception(outcome)
            else:
                item.future.set_result(outcome)

    async def _commit(self, batch: list[_Item], *, wait: bool) -> list[_Outcome]:
        vault_ids = {item.vault_id for item in batch}
        commands = [command for item in batch for command in item.commands]
        async with self._database.transaction(BEGIN_BRIEF) as conn:
            book = await self._books.open(conn, vault_ids, commands, wait=wait)
            book.decline_rooms = self._declines.rooms(book.spenders)
            outcomes = [
                _outcome(book, item) if wait or item.vault_id in book.vaults else None
                for item in batch
            ]
            await self._books.write(conn, book)
        self._committed(book.vaults)
        for event in book.created.values():
            if event.decline is not None and event.agent_id is not None:
                self._declines.count(event.agent_id)
        if any(event.is_on_its_way for event in book.created.values()):
            self._on_their_way()
        return outcomes


def _outcome(book: Book, item: _Item) -> _Outcome:
    try:
        return book.answer_all(item.commands)
    except errors.PilotError as refusal:
        return refusal
