"""Wrapping keys: whose seals are stored, and how all of them come under the current one.

Servers go on meanwhile: they open what names an older key as well as what names the
current one, as long as they were given both.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pilot_grpc.db import keys as keys_db
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.db.keys import Count, Place, Rewrapped, StoredSeal
from pilot_grpc.sealing import SealBroken, Sealer
from pilot_grpc.services.webhooks import PURPOSE as WEBHOOK_SECRET
from pilot_grpc.solana.custody import PURPOSE as VAULT_KEY

SEALS_PER_BATCH_MAX: Final = 200
# The last pass finds nothing to do, unless servers go on sealing with another key.
PASSES_MAX: Final = 20
BROKEN_NAMED_MAX: Final = 20


@dataclass
class Tally:
    """What became of the seals of one kind. Of those that do not open, the first are named.

    `opened` counts what is under the current key in the end, and opens. `is_whole` is
    false when others seal with another key all the time.
    """

    kind: str
    rewrapped: int = 0
    opened: int = 0
    broken: int = 0
    broken_named: list[str] = field(default_factory=list)
    is_whole: bool = False

    @property
    def current(self) -> int:
        """How many were under the current key before, or came there by somebody else."""
        return max(0, self.opened - self.rewrapped)

    def forget_broken(self) -> None:
        """Begin to count those that do not open anew."""
        self.broken, self.broken_named = 0, []

    def add_broken(self, seal: StoredSeal, error: SealBroken) -> None:
        """Count a seal that does not open."""
        self.broken += 1
        if len(self.broken_named) < BROKEN_NAMED_MAX:
            self.broken_named.append(f"{self.kind} of {seal.place[0]}: {error}")


Select: TypeAlias = Callable[[Connection, Place, str, bool, int], Awaitable[list[StoredSeal]]]
Update: TypeAlias = Callable[[Connection, str, Collection[Rewrapped]], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """A table of seals, and the place before its first."""

    kind: str
    start: Place
    select: Select
    update: Update


SHELVES: Final = (
    Shelf(VAULT_KEY, ("",), keys_db.select_vault_seals, keys_db.update_vault_seals),
    Shelf(WEBHOOK_SECRET, ("", ""), keys_db.select_webhook_seals, keys_db.update_webhook_seals),
)


class Keys:
    """What the command line does with wrapping keys."""

    def __init__(
        self, database: Database, sealer: Sealer, batch_max: int = SEALS_PER_BATCH_MAX
    ) -> None:
        """Take who opens and seals, and how many seals are written at a time."""
        self._database = database
        self._sealer = sealer
        self._batch_max = batch_max

    async def count(self) -> list[Count]:
        """Count the seals by their wrapping keys."""
        async with self._database.snapshot() as conn:
            return await keys_db.count_seals(conn)

    async def rewrap(self) -> list[Tally]:
        """Bring every data key under the current wrapping key; what was sealed stays as it is.

        A batch is written at once, and each of its seals was opened before, so this can
        end anywhere and begin again, also twice at the same time. In the end all that is
        under the current key is opened, so whoever changed a key and not its id finds out
        here. What does not open stays as it was.
        """
        return [await self._rewrap(shelf) for shelf in SHELVES]

    async def _rewrap(self, shelf: Shelf) -> Tally:
        tally = Tally(shelf.kind)
        for _ in range(PASSES_MAX):
            tally.forget_broken()
            tally.is_whole = True
            place: Place | None = shelf.start
            while place is not None:
                place = await self._rewrap_batch(shelf, place, tally)
            if tally.is_whole:
                break
        place = shelf.start
        while place is not None:
            place = await self._check_batch(shelf, place, tally)
        return tally

    async def _rewrap_batch(self, shelf: Shelf, after: Place, tally: Tally) -> Place | None:
        """Make seals anew, but for those that another process has made meanwhile.

        Returns where to go on.
        """
        seals = await self._select(shelf, after, is_current=False)
        anew = []
        for seal in seals:
            try:
                made = self._sealer.rewrap(seal.sealed, shelf.kind, *seal.owner)
            except SealBroken as error:
                tally.add_broken(seal, error)
            else:
                before = seal.sealed.wrapping_key_id
                anew.append(Rewrapped(seal.place, before, made.wrapped_data_key))
        if anew:
            tally.is_whole = False
            async with self._database.transaction() as conn:
                tally.rewrapped += await shelf.update(conn, self._sealer.wrapping_key_id, anew)
        return seals[-1].place if len(seals) == self._batch_max else None

    async def _check_batch(self, shelf: Shelf, after: Place, tally: Tally) -> Place | None:
        """Open seals that need no change; return where to go on."""
        seals = await self._select(shelf, after, is_current=True)
        for seal in seals:
            try:
                self._sealer.open(seal.sealed, shelf.kind, *seal.owner)
            except SealBroken as error:
                tally.add_broken(seal, error)
            else:
                tally.opened += 1
        return seals[-1].place if len(seals) == self._batch_max else None

    async def _select(self, shelf: Shelf, after: Place, *, is_current: bool) -> list[StoredSeal]:
        current = self._sealer.wrapping_key_id
        async with self._database.transaction() as conn:
            return await shelf.select(conn, after, current, is_current, self._batch_max)
