"""Feeds: the last changes of every vault that somebody follows, read once for all of them.

One task polls how far those vaults are, and reads what is new; a commit of this process
wakes it at once. Nothing is notified inside a money transaction. A vault's numbers are
taken under its lock, so whoever sees change n sees all before it: to poll is enough.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Protocol

from pilot_grpc import errors
from pilot_grpc.db import stream as stream_db
from pilot_grpc.db.connection import Database
from pilot_grpc.domain.ids import AgentId, UserId, VaultId
from pilot_grpc.domain.stream import Head, Update

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.02
# Of thousands of vaults, to look how far each is takes its time, too.
POLL_SECONDS_PER_VAULT: Final = 0.00001
# Commits come by the hundred a second, and a few milliseconds make one read of many.
POLL_SPACING_SECONDS: Final = 0.005
# To tell a follower takes some 60 microseconds. Before all are told, nothing new is read:
# then it comes to them in fewer, larger messages.
TELL_SECONDS: Final = 0.00006
RETRY_SECONDS: Final = 0.25

POLL_UPDATES_MAX: Final = 2_000
POLL_UPDATES_MIN: Final = 10

# What is kept of a vault for those that follow it; of many vaults, less of each. The
# bytes are those on the wire: as objects they take five times as much.
RING_CHANGES_MAX: Final = 1_024
RING_BYTES_MAX: Final = 512 << 10
RING_BYTES_MIN: Final = 16 << 10
RINGS_BYTES_MAX: Final = 16 << 20

# A change on the wire without its metadata, roughly.
_CHANGE_BYTES: Final = 500

# A database that is away for longer may come back with another history.
AWAY_SECONDS_MAX: Final = 1.0

Encode = Callable[[Update, bool], bytes]
"""Writes a change for its readers; the second argument is whether they are an agent."""


class Entry:
    """A change, and what it is on the wire: written once, when somebody first needs it."""

    __slots__ = ("_for_agent", "_for_owner", "size", "update")

    def __init__(self, update: Update) -> None:
        self.update = update
        self.size = _CHANGE_BYTES
        if update.metadata is not None:
            self.size += len(update.metadata.encode())
        self._for_owner: bytes | None = None
        self._for_agent: bytes | None = None

    def written(self, encode: Encode, *, for_agent: bool) -> bytes:
        """Return the change as owners, or as agents, get it."""
        if for_agent:
            if self._for_agent is None:
                self._for_agent = encode(self.update, True)  # noqa: FBT003 - a plain callable
            return self._for_agent
        if self._for_owner is None:
            self._for_owner = encode(self.update, False)  # noqa: FBT003 - a plain callable
        return self._for_owner


class Follower(Protocol):
    """Who follows vaults."""

    def fall_behind(self, cursor: "Cursor") -> None:
        """Learn that there is something to read at a cursor, which stood at its feed's head."""

    def lose(self, cursor: "Cursor", error: errors.PilotError) -> None:
        """Learn that a feed ended."""


class UserFollower(Protocol):
    """Who follows all vaults of a user."""

    def join(self, vault_id: VaultId, head: Head) -> None:
        """Learn that the user has a vault, which stands at `head`."""


class Cursor:
    """Where a follower stands in one vault.

    At the head of the feed it costs nothing to stay there while changes pass that are of
    no interest: those of other agents, for one who follows an agent.
    """

    __slots__ = ("_at", "agent_id", "feed", "follower", "page")

    def __init__(
        self, feed: "Feed", follower: Follower, agent_id: AgentId | None, at: Head
    ) -> None:
        """Stand still at a change; `place` sets it going."""
        self.feed = feed
        self.follower = follower
        self.agent_id = agent_id
        self.page: deque[Entry] = deque()
        self._at: Head | None = at

    @property
    def at(self) -> Head:
        """The last change that was passed."""
        return self.feed.head if self._at is None else self._at

    @property
    def is_behind(self) -> bool:
        """Whether there is something to read."""
        return self._at is not None

    def place(self) -> None:
        """Follow the feed if this is its head, else be behind it."""
        if self.at == self.feed.head:
            self._at = None
            self.feed.follow(self)
        else:
            self.follower.fall_behind(self)

    def fall_behind(self, at: Head) -> None:
        """Stay where the feed was."""
        self._at = at
        self.follower.fall_behind(self)

    def pass_by(self, update: Update) -> None:
        """Go one change further; at the head of the feed, follow it from now on."""
        self._at = Head(update.revision, update.digest)
        if self._at.revision == self.feed.head.revision:
            self._at = None
            self.feed.follow(self)

    def next_entries(self, limit: int) -> Sequence[Entry]:
        """Return what comes next and is at hand; empty when it has to be read first."""
        if self.page:
            return list(islice(self.page, limit))
        return self.feed.after(self.at.revision, limit)

    def must_read(self) -> bool:
        """Say whether what comes next has to be read from the database."""
        return self.is_behind and not self.page and not self.feed.reaches(self.at.revision)


class Feed:
    """The last changes of one vault, and who follows it."""

    def __init__(self, vault_id: VaultId, head: Head) -> None:
        """Begin at the vault's head, with nothing."""
        self.vault_id = vault_id
        self.head = head
        self.cursors: set[Cursor] = set()
        self._ring: deque[Entry] = deque()
        self._size = 0
        self._following: dict[AgentId | None, set[Cursor]] = {}

    def follow(self, cursor: Cursor) -> None:
        """Tell a cursor of the next change that it is interested in."""
        self._following.setdefault(cursor.agent_id, set()).add(cursor)

    def reaches(self, revision: int) -> bool:
        """Say whether the ring has all that came after a change."""
        return self.head.revision - len(self._ring) <= revision

    def after(self, revision: int, limit: int) -> Sequence[Entry]:
        """Return what the ring has after a change; empty if it does not reach back to it."""
        skip = revision - (self.head.revision - len(self._ring))
        return list(islice(self._ring, skip, skip + limit)) if skip >= 0 else ()

    def extend(self, updates: Iterable[Update], room: int) -> int:
        """Take the next changes, and tell those who follow; say how many that are.

        Raises ValueError on a gap.
        """
        told = 0
        for update in updates:
            if update.revision != self.head.revision + 1:
                raise ValueError(
                    f"vault {self.vault_id}: change {update.revision} after {self.head.revision}"
                )
            for whose in {None, update.agent_id}:
                followers = self._following.pop(whose, ())
                told += len(followers)
                for cursor in followers:
                    cursor.fall_behind(self.head)
            self.head = Head(update.revision, update.digest)
            entry = Entry(update)
            self._ring.append(entry)
            self._size += entry.size
            if len(self._ring) > RING_CHANGES_MAX:
                self._size -= self._ring.popleft().size
        self.shrink(room)
        return told

    def shrink(self, room: int) -> None:
        """Keep no more of the last changes than fits."""
        while self._size > room:
            self._size -= self._ring.popleft().size

    def restart(self, head: Head) -> None:
        """Forget the ring and go on at a head; whoever followed is behind it."""
        for cursors in self._following.values():
            for cursor in cursors:
                cursor.fall_behind(self.head)
        self._following.clear()
        self._ring.clear()
        self._size = 0
        self.head = head

    def release(self, cursor: Cursor) -> None:
        """Let a cursor go."""
        self.cursors.discard(cursor)
        following = self._following.get(cursor.agent_id)
        if following is not None:
            following.discard(cursor)
            if not following:
                del self._following[cursor.agent_id]


class _User:
    """Who follows all vaults of a user, and which vaults they were told of."""

    def __init__(self) -> None:
        self.followers: set[UserFollower] = set()
        self.new_followers: set[UserFollower] = set()
        self.vault_ids: set[VaultId] = set()

    def tell(self, asked: set[UserFollower], heads: dict[VaultId, Head]) -> None:
        """Tell those who were there when the database was asked."""
        for vault_id, head in heads.items():
            is_new = vault_id not in self.vault_ids
            for follower in asked & (self.followers if is_new else self.new_followers):
                follower.join(vault_id, head)
        self.vault_ids = set(heads)
        self.new_followers -= asked


class Feeds:
    """All feeds of this process, and the task that keeps them fresh."""

    def __init__(self, database: Database) -> None:
        """Take the database to poll."""
        self._database = database
        self._feeds: dict[VaultId, Feed] = {}
        self._users: dict[UserId, _User] = {}
        self._away_since: float | None = None
        self._changed: set[VaultId] = set()
        self._all_wanted = False
        self._awake = asyncio.Event()
        self._polled = asyncio.Event()

    def attach(
        self, follower: Follower, vault_id: VaultId, head: Head, agent_id: AgentId | None, at: Head
    ) -> Cursor:
        """Put a cursor into a vault that stands at `head`; it waits there to be placed."""
        feed = self._feeds.get(vault_id)
        if feed is None:
            feed = self._feeds[vault_id] = Feed(vault_id, head)
            self._awake.set()
        cursor = Cursor(feed, follower, agent_id, at)
        feed.cursors.add(cursor)
        return cursor

    def detach(self, cursor: Cursor) -> None:
        """Let a cursor go, and its feed when it was the last."""
        feed = cursor.feed
        feed.release(cursor)
        if not feed.cursors and self._feeds.get(feed.vault_id) is feed:
            del self._feeds[feed.vault_id]

    def follow_user(self, user_id: UserId, follower: UserFollower) -> None:
        """Tell a follower of all vaults of a user, those that come later, too."""
        user = self._users.setdefault(user_id, _User())
        user.followers.add(follower)
        user.new_followers.add(follower)
        self._all_wanted = True
        self._awake.set()

    def leave_user(self, user_id: UserId, follower: UserFollower) -> None:
        """Tell a follower no more."""
        user = self._users.get(user_id)
        if user is None:
            return
        user.followers.discard(follower)
        user.new_followers.discard(follower)
        if not user.followers:
            del self._users[user_id]

    def wake(self, vault_ids: Iterable[VaultId]) -> None:
        """Look at once: this process has committed changes of vaults."""
        changed = self._feeds.keys() & set(vault_ids)
        if changed:
            self._changed |= changed
            self._awake.set()

    async def polled(self) -> None:
        """Wait for the next look at all vaults, whether it succeeds or not."""
        self._all_wanted = True
        self._awake.set()
        await self._polled.wait()

    async def run(self) -> None:
        """Keep the feeds fresh for ever; without any, wait.

        All vaults are looked at every so often, and those that this process has changed
        at once.
        """
        loop = asyncio.get_running_loop()
        all_due = loop.time()
        while True:
            await self._pause(all_due)
            self._awake.clear()
            changed, self._changed = self._changed, set()
            told = 0
            try:
                if self._all_wanted or loop.time() >= all_due:
                    self._all_wanted = False
                    told = await self._poll(self._feeds, self._users)
                    self._tell_polled()
                    pause = max(POLL_SECONDS, POLL_SECONDS_PER_VAULT * len(self._feeds))
                    all_due = loop.time() + pause
                else:
                    told = await self._poll(changed, ())
                self._away_since = None
            except errors.PilotError as error:
                log.warning("the feeds wait for the database: %s", error.message)
                self._be_without_database()
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("the feeds failed, and try again")
                self._be_without_database()
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(max(POLL_SPACING_SECONDS, told * TELL_SECONDS))

    async def _pause(self, until: float) -> None:
        if not self._feeds and not self._users:
            await self._awake.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._awake.wait()

    def _be_without_database(self) -> None:
        """End the feeds when the database has been away for too long."""
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since > AWAY_SECONDS_MAX:
            for feed in tuple(self._feeds.values()):
                self._end(feed, errors.DatabaseUnavailable(retry_after=RETRY_SECONDS))
        self._all_wanted = True
        self._tell_polled()

    async def _poll(self, vault_ids: Iterable[VaultId], user_ids: Iterable[UserId]) -> int:
        """Read what is new of some, and tell those who follow; say how many that are."""
        # Whoever comes while the database is asked has seen more than this look will.
        feeds = {each: self._feeds[each] for each in vault_ids if each in self._feeds}
        users = {each: set(self._users[each].followers) for each in user_ids}
        heads: dict[VaultId, Head] = {}
        async with self._database.transaction() as conn:
            of_users = await stream_db.select_heads_of_users(conn, users) if users else {}
            for vaults in of_users.values():
                heads |= vaults
            others = feeds.keys() - heads.keys()
            if others:
                heads |= await stream_db.select_heads(conn, others)
            late = {
                vault_id: feed.head.revision
                for vault_id, feed in feeds.items()
                if vault_id in heads and heads[vault_id].revision > feed.head.revision
            }
            # Is it still the same history? A restore, or a replica that took over, can have
            # come further than what was seen, and a pooler hides that it happened.
            now = await stream_db.select_digests(conn, late) if late else {}
            limit = max(POLL_UPDATES_MIN, POLL_UPDATES_MAX // max(1, len(late)))
            updates = await stream_db.select_updates(conn, late, limit) if late else {}
        told = 0
        for vault_id, feed in feeds.items():
            if self._feeds.get(vault_id) is feed:
                told += self._refresh(
                    feed,
                    heads.get(vault_id),
                    updates.get(vault_id, []),
                    is_undone=now.get(vault_id, feed.head) != feed.head,
                )
                if len(updates.get(vault_id, ())) == limit:
                    self.wake([vault_id])
        for user_id, followers in users.items():
            if user_id in self._users:
                self._users[user_id].tell(followers, of_users[user_id])
        return told

    def _tell_polled(self) -> None:
        self._polled.set()
        self._polled = asyncio.Event()

    def _refresh(
        self, feed: Feed, head: Head | None, updates: Sequence[Update], *, is_undone: bool
    ) -> int:
        """Bring a feed up to what was read of its vault."""
        if head is None:
            self._end(feed, errors.NotFound(resource="vault", id=feed.vault_id))
            return 0
        if (
            is_undone
            or head.revision < feed.head.revision
            or (head.revision == feed.head.revision and head.digest != feed.head.digest)
        ):
            self._end(feed, undone(feed.vault_id, feed.head.revision, head.revision))
            return 0
        room = max(RING_BYTES_MIN, min(RING_BYTES_MAX, RINGS_BYTES_MAX // len(self._feeds)))
        # What was trimmed before it was read is told to whoever needs it, when reading it.
        if not updates and head.revision > feed.head.revision:
            log.warning("vault %s: no change after %d", feed.vault_id, feed.head.revision)
            feed.restart(head)
        if not updates:
            feed.shrink(room)
            return 0
        try:
            return feed.extend(updates, room)
        except ValueError as gap:
            log.warning("%s", gap)
            feed.restart(head)
            return 0

    def _end(self, feed: Feed, error: errors.PilotError) -> None:
        del self._feeds[feed.vault_id]
        for cursor in tuple(feed.cursors):
            cursor.follower.lose(cursor, error)


def undone(vault_id: VaultId, revision: int, newest: int) -> errors.HistoryUndone:
    """Say that a vault was restored to before a change that was delivered."""
    return errors.HistoryUndone(vault_id=vault_id, revision=revision, newest_revision=newest)
