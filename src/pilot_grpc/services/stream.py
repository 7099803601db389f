"""The stream: subscribers that stand somewhere in the changes of vaults, and go on.

A subscriber is a cursor a vault, not a queue. What is next comes from the ring that all
followers of the vault share, or, behind the ring, from the table, a page at a time. One
that is slow costs its own next page and nothing else; it delays nobody.
"""

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple, TypeVar

from pilot_grpc import errors
from pilot_grpc.db import stream as stream_db
from pilot_grpc.db.connection import Connection, Database
from pilot_grpc.db.stream import Span
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import AgentId, ProjectId, UserId, VaultId
from pilot_grpc.domain.stream import Head, Scope, Stand, Start, Tokens, Update, Wanted
from pilot_grpc.services.agents import Homes
from pilot_grpc.services.feeds import Cursor, Entry, Feeds, undone

# Clients refuse a message above 4 MiB, and one that does not read must not cost much.
MESSAGE_CHANGES_MAX: Final = 1_000
MESSAGE_BYTES_MAX: Final = 256 << 10
# What one vault may take of a message while others wait, and what is looked at for one.
VAULT_SHARE: Final = 250
EXAMINED_MAX: Final = 5_000

# A page fits one message, so that nothing of it waits for a subscriber that does not read.
PAGE_CHANGES_MAX: Final = 500
PAGE_BYTES_MAX: Final = MESSAGE_BYTES_MAX
PAGE_VAULTS_MAX: Final = 100
# Then the others get their turn on the event loop.
PREPARED_AT_ONCE: Final = 50

# So many subscribers have their next page read while the last is on its way to them. One
# that does not read keeps that page, so these are few.
READ_AHEAD_MAX: Final = 16

# Pages that are read at the same time, for subscribers and for webhooks; the feeds always
# have a connection of their own.
CATCH_UP_AT_ONCE_MAX: Final = 3
OWN_CATCH_UP_AT_ONCE_MAX: Final = 1
CONNECTIONS: Final = CATCH_UP_AT_ONCE_MAX + OWN_CATCH_UP_AT_ONCE_MAX + 1

T = TypeVar("T")

LIMITED_RETRY_SECONDS: Final = 2.0
# One agent, which may be misled, leaves the streams of its user to others.
STREAMS_PER_AGENT_MAX: Final = 20
_KEY_BYTES: Final = 32


class Topic(NamedTuple):
    """What a caller asks to follow: at most one of them; none means all that it may."""

    vault_id: VaultId | None = None
    project_id: ProjectId | None = None
    agent_id: AgentId | None = None


class Streams:
    """Who is subscribed to what."""

    def __init__(
        self, database: Database, feeds: Feeds, homes: Homes, *, limit: int, limit_per_user: int
    ) -> None:
        """Take a database of its own; the limits count the streams that are open."""
        self._database = database
        self._feeds = feeds
        self._homes = homes
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._open: Counter[UserId] = Counter()
        self._open_of_agents: Counter[AgentId] = Counter()
        self._reads = asyncio.Semaphore(CATCH_UP_AT_ONCE_MAX)
        self._own_reads = asyncio.Semaphore(OWN_CATCH_UP_AT_ONCE_MAX)
        self._ahead: set[Subscription] = set()
        self._tokens: Tokens | None = None

    @asynccontextmanager
    async def subscription(
        self,
        caller: Caller,
        topic: Topic,
        start: Start | str,
        wanted: Wanted,
        prepare: Callable[[Entry], object] = lambda _: None,
    ) -> AsyncIterator["Subscription"]:
        """Follow something while the block runs, from a `Start` or after a resume token.

        `prepare` is called for what is read from the table, while it is this
        subscriber's turn: what takes its time is done here, and not all at once.

        Raises NotFound, ResumeTokenInvalid, ResumeTokenOfAnotherScope, ChangesTrimmed,
        HistoryUndone, QuotaExceeded, Overloaded.
        """
        with self._counted(caller):
            subscription = await self._subscribe(caller, topic, start, wanted, prepare)
            try:
                yield subscription
            finally:
                subscription.close()

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        """Count a stream while it is open. Raises Overloaded, QuotaExceeded."""
        user_id, agent_id = caller.user_id, caller.agent_id
        if self._open.total() >= self._limit:
            raise errors.Overloaded(retry_after=LIMITED_RETRY_SECONDS)
        _must_be_below(self._limit_per_user, self._open[user_id])
        if agent_id is not None:
            _must_be_below(STREAMS_PER_AGENT_MAX, self._open_of_agents[agent_id])
            self._open_of_agents[agent_id] += 1
        self._open[user_id] += 1
        try:
            yield
        finally:
            _count_down(self._open, user_id)
            if agent_id is not None:
                _count_down(self._open_of_agents, agent_id)

    async def _subscribe(
        self,
        caller: Caller,
        topic: Topic,
        start: Start | str,
        wanted: Wanted,
        prepare: Callable[[Entry], object],
    ) -> "Subscription":
        scope, spans, tokens, at = await self._locate(caller, topic, start)
        subscription = self._subscription(scope, wanted, tokens, prepare)
        try:
            await subscription.begin(spans, at)
        except BaseException:
            subscription.close()
            raise
        return subscription

    def _subscription(
        self,
        scope: Scope,
        wanted: Wanted,
        tokens: Tokens | None,
        prepare: Callable[[Entry], object],
        reads: asyncio.Semaphore | None = None,
    ) -> "Subscription":
        return Subscription(
            self._database,
            self._feeds,
            reads or self._reads,
            self._ahead,
            scope,
            wanted,
            tokens,
            prepare,
        )

    async def _locate(
        self, caller: Caller, topic: Topic, start: Start | str
    ) -> tuple[Scope, Mapping[VaultId, Span], Tokens, dict[VaultId, Head]]:
        """Say what a subscription covers and where it begins, as of one moment."""
        topic = await self._resolve(caller, topic)
        async with self._reads:
            tokens = await self._known_tokens()
            async with self._database.snapshot() as conn:
                spans = await stream_db.select_spans(
                    conn, caller.user_id, topic.vault_id, topic.project_id
                )
                scope = _scope(caller, topic, spans)
                if start is Start.LATEST:
                    at = {vault_id: span.head for vault_id, span in spans.items()}
                elif start is Start.EARLIEST:
                    at = {vault_id: span.trimmed for vault_id, span in spans.items()}
                else:
                    stands = tokens.read(scope, start, spans)
                    if scope.vault_id is not None and scope.vault_id not in stands:
                        raise errors.ResumeTokenInvalid
                    at = await _places(conn, tokens, spans, stands)
        return scope, spans, tokens, at

    async def _resolve(self, caller: Caller, topic: Topic) -> Topic:
        """Name the vault of an agent; an agent follows itself, whatever it calls that."""
        if caller.agent_id is not None:
            own = (
                ("vault", topic.vault_id, caller.vault_id),
                ("project", topic.project_id, caller.project_id),
                ("agent", topic.agent_id, caller.agent_id),
            )
            for resource, asked, its_own in own:
                if asked not in {None, its_own}:
                    raise errors.NotFound(resource=resource, id=asked)
            return Topic(vault_id=caller.vault_id, agent_id=caller.agent_id)
        if topic.agent_id is not None:
            home = (await self._homes.of(caller, [topic.agent_id]))[topic.agent_id]
            return topic._replace(vault_id=home.vault_id)
        return topic

    async def _known_tokens(self) -> Tokens:
        if self._tokens is None:
            new = secrets.token_bytes(_KEY_BYTES)
            async with self._database.transaction() as conn:
                self._tokens = Tokens(await stream_db.stream_key(conn, new))
        return self._tokens

    async def token_now(self, conn: Connection, scope: Scope) -> str:
        """Make the token of where a scope of its user's stands now.

        Who lists is not to wait for those who resume, and brings a connection.
        """
        tokens = await self._known_tokens()
        spans = await stream_db.select_spans(conn, scope.user_id, scope.vault_id)
        return _token(tokens, scope, {vault_id: span.head for vault_id, span in spans.items()})

    async def follow_agent(
        self,
        user_id: UserId,
        vault_id: VaultId,
        agent_id: AgentId,
        after: int,
        digest: bytes | None = None,
    ) -> "Subscription":
        """Follow an agent for Pilot itself, after a revision; close it in the end.

        With a digest the change at that revision must have it. Raises NotFound,
        ChangesTrimmed, HistoryUndone.
        """
        scope = Scope(user_id, vault_id, agent_id)
        async with self._own_reads, self._database.snapshot() as conn:
            spans = await stream_db.select_spans(conn, user_id, vault_id)
            if vault_id not in spans:
                raise errors.NotFound(resource="vault", id=vault_id)
            span = spans[vault_id]
            if after < span.trimmed.revision:
                raise trimmed(span)
            found = await stream_db.select_digests(conn, {vault_id: after})
        known = {head.revision: head for head in (span.head, span.trimmed, Head())}
        at = found.get(vault_id) or known.get(after)
        if at is None or digest not in {None, at.digest}:
            raise undone(vault_id, after, span.head.revision)
        subscription = self._subscription(
            scope, Wanted(), None, lambda _: None, reads=self._own_reads
        )
        try:
            await subscription.begin(spans, {vault_id: at})
        except BaseException:
            subscription.close()
            raise
        return subscription


def _count_down(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _must_be_below(limit: int, count: int) -> None:
    if count >= limit:
        # One that broke counts until its connection is found dead.
        raise errors.QuotaExceeded(
            resource="stream", limit=limit, retry_after=LIMITED_RETRY_SECONDS
        )


def _scope(caller: Caller, topic: Topic, spans: Mapping[VaultId, Span]) -> Scope:
    if topic.vault_id is None and topic.project_id is None:
        return Scope(caller.user_id)
    if not spans:
        resource, missing = ("vault", topic.vault_id) if topic.vault_id else ("project", None)
        raise errors.NotFound(resource=resource, id=missing or topic.project_id)
    (vault_id,) = spans
    return Scope(caller.user_id, vault_id, topic.agent_id)


async def _places(
    conn: Connection,
    tokens: Tokens,
    spans: Mapping[VaultId, Span],
    stands: Mapping[VaultId, Stand],
) -> dict[VaultId, Head]:
    """Find where a token stands in each vault. Raises ChangesTrimmed, HistoryUndone.

    A vault that the token does not name is younger than it.
    """
    between = {
        vault_id: stand.revision
        for vault_id, stand in stands.items()
        if spans[vault_id].trimmed.revision < stand.revision < spans[vault_id].head.revision
    }
    digests = await stream_db.select_digests(conn, between) if between else {}
    places = {}
    for vault_id, span in spans.items():
        stand = stands.get(vault_id)
        revision = 0 if stand is None else stand.revision
        if revision < span.trimmed.revision:
            raise trimmed(span)
        known = (span.head, span.trimmed, digests.get(vault_id, span.head))
        place = next((head for head in known if head.revision == revision), None)
        if place is None or (stand is not None and not tokens.is_at(stand, place)):
            raise undone(vault_id, revision, span.head.revision)
        places[vault_id] = place
    return places


def trimmed(span: Span) -> errors.ChangesTrimmed:
    """Say which changes of a vault are kept."""
    return errors.ChangesTrimmed(
        vault_id=span.vault_id,
        oldest_revision=span.trimmed.revision + 1,
        newest_revision=span.head.revision,
    )


def _token(tokens: Tokens, scope: Scope, heads: Mapping[VaultId, Head]) -> str:
    return tokens.token(
        scope,
        (
            tokens.stand(vault_id, head)
            for vault_id, head in heads.items()
            # A vault that is not named stands at its beginning.
            if head.revision or scope.vault_id is not None
        ),
    )


class Subscription:
    """One subscriber: its cursors, and what it has read ahead."""

    def __init__(
        self,
        database: Database,
        feeds: Feeds,
        reads: asyncio.Semaphore,
        ahead: "set[Subscription]",
        scope: Scope,
        wanted: Wanted,
        tokens: Tokens | None,
        prepare: Callable[[Entry], object],
    ) -> None:
        """Make a subscription that covers nothing yet; `begin` sets it going."""
        self._database = database
        self._feeds = feeds
        self._reads = reads
        self._ahead = ahead
        self._scope = scope
        self._wanted = wanted
        self._tokens = tokens
        self._prepare = prepare
        self._cursors: dict[VaultId, Cursor] = {}
        # Those that have something to read, the one that waits longest first.
        self._behind: dict[Cursor, None] = {}
        self._awake = False
        self._waiting: asyncio.Future[None] | None = None
        self._ended: Exception | None = None
        self._reading: asyncio.Task[None] | None = None
        self._page_limit = PAGE_CHANGES_MAX
        self._stands: dict[VaultId, tuple[Head, bytes]] = {}

    async def begin(self, spans: Mapping[VaultId, Span], at: Mapping[VaultId, Head]) -> None:
        """Stand at these places, and go on from there."""
        self._cursors = {
            vault_id: self._feeds.attach(
                self, vault_id, spans[vault_id].head, self._scope.agent_id, place
            )
            for vault_id, place in at.items()
        }
        # A feed may not have seen yet what this subscriber has: on another server, say.
        # A vault that is deleted meanwhile is no longer among the cursors.
        while any(c.at.revision > c.feed.head.revision for c in self._cursors.values()):
            if self._ended is not None:
                raise self._ended
            await self._feeds.polled()
        for cursor in self._cursors.values():
            cursor.place()
        if self._scope.vault_id is None:
            self._feeds.follow_user(self._scope.user_id, self)

    def close(self) -> None:
        """Stop following."""
        self._ahead.discard(self)
        if self._reading is not None:
            self._reading.cancel()
        if self._scope.vault_id is None:
            self._feeds.leave_user(self._scope.user_id, self)
        for cursor in self._cursors.values():
            self._feeds.detach(cursor)
        self._cursors.clear()
        self._behind.clear()

    def join(self, vault_id: VaultId, head: Head) -> None:
        """Follow a vault of the user from its beginning, unless it is followed."""
        if vault_id in self._cursors:
            return
        cursor = self._feeds.attach(self, vault_id, head, None, Head())
        self._cursors[vault_id] = cursor
        cursor.place()

    def fall_behind(self, cursor: Cursor) -> None:
        """Learn that a cursor has something to read."""
        self._behind[cursor] = None
        self._wake()

    def lose(self, cursor: Cursor, error: errors.PilotError) -> None:
        """Learn that a feed ended; of many vaults one may be deleted."""
        vault_id = cursor.feed.vault_id
        if self._scope.vault_id is None and isinstance(error, errors.NotFound):
            self._feeds.detach(cursor)
            self._behind.pop(cursor, None)
            self._stands.pop(vault_id, None)
            del self._cursors[vault_id]
            return
        self._ended = error
        self._wake()

    @property
    def caught_up(self) -> bool:
        """Whether all that this process knows was handed out."""
        return not self._behind

    def place(self, vault_id: VaultId) -> Head:
        """Return the change up to which everything was handed out, or is of no interest."""
        return self._cursors[vault_id].at

    def position(self, vault_id: VaultId) -> int:
        """Return the revision of that change."""
        return self.place(vault_id).revision

    def token(self) -> str:
        """Make the token to resume after all that was handed out."""
        if self._tokens is None:
            raise TypeError("this subscription has no tokens")
        stands = []
        for vault_id, cursor in self._cursors.items():
            head = cursor.at
            known = self._stands.get(vault_id)
            if known is None or known[0] is not head:
                known = self._stands[vault_id] = head, self._tokens.stand(vault_id, head)
            if head.revision or self._scope.vault_id is not None:
                stands.append(known[1])
        return self._tokens.token(self._scope, stands)

    async def next_updates(self, seconds: float) -> list[Update]:
        """Wait for the next changes, so long at most; none when nothing came."""
        return [entry.update for entry in await self.next(seconds)]

    async def next(self, seconds: float) -> list[Entry]:
        """Wait for the next changes, so long at most; none when nothing came.

        Raises ChangesTrimmed, HistoryUndone, NotFound, DatabaseUnavailable, Overloaded.
        """
        until = asyncio.get_running_loop().time() + seconds
        self._ahead.discard(self)
        while True:
            if self._ended is not None:
                raise self._ended
            entries, more = self._gather()
            if entries and len(self._ahead) < READ_AHEAD_MAX and self._read_on():
                self._ahead.add(self)
            if entries or asyncio.get_running_loop().time() >= until:
                return entries
            if more:
                await asyncio.sleep(0)
            else:
                self._read_on()
                await self._wait(until)

    def _wake(self) -> None:
        """Let `next` look again."""
        self._awake = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _wait(self, until: float) -> None:
        """Wait until something happens; asyncio.timeout would cost more than the rest."""
        if not self._awake:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_at(until, self._wake)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        self._awake = False

    def _gather(self) -> tuple[list[Entry], bool]:
        """Take what is at hand of every vault, in turns; say whether there is more at hand."""
        entries: list[Entry] = []
        room, examined = MESSAGE_BYTES_MAX, 0
        share = VAULT_SHARE if len(self._behind) > 1 else MESSAGE_CHANGES_MAX
        waiting = deque(cursor for cursor in self._behind if not cursor.must_read())
        full = False
        while waiting and not full and examined < EXAMINED_MAX:
            cursor, before = waiting.popleft(), examined
            for entry in cursor.next_entries(share):
                if self._is_wanted(entry.update):
                    room -= entry.size
                    full = len(entries) == MESSAGE_CHANGES_MAX or (room < 0 and bool(entries))
                    if full:
                        break
                    entries.append(entry)
                examined += 1
                if cursor.page:
                    cursor.page.popleft()
                cursor.pass_by(entry.update)
            if examined > before:
                # To the end of those that wait, or out of them.
                del self._behind[cursor]
                if cursor.is_behind:
                    self._behind[cursor] = None
                    if not cursor.must_read():
                        waiting.append(cursor)
        return entries, full or bool(waiting)

    def _is_wanted(self, update: Update) -> bool:
        agent_id = self._scope.agent_id
        if agent_id is not None and update.agent_id != agent_id:
            return False
        return self._wanted.allows(update)

    def _read_on(self) -> bool:
        """Read the next page of what is behind its ring, if anything is, and say so.

        The rings go on meanwhile.
        """
        if self._reading is None or self._reading.done():
            late = [cursor for cursor in self._behind if cursor.must_read()][:PAGE_VAULTS_MAX]
            self._reading = asyncio.create_task(self._read(late)) if late else None
        return self._reading is not None

    async def _read(self, cursors: Iterable[Cursor]) -> None:
        try:
            await self._read_page({c.feed.vault_id: c.at for c in cursors})
        except errors.Overloaded as error:
            await asyncio.sleep(error.retry_after or 0)
        except Exception as error:  # noqa: BLE001 - whoever waits must get it
            self._ended = error
        finally:
            self._reading = None
            self._wake()

    async def _read_page(self, places: Mapping[VaultId, Head]) -> None:
        after = {vault_id: place.revision for vault_id, place in places.items()}
        limit = max(1, self._page_limit // len(after))
        async with self._reads:
            async with self._database.snapshot() as conn:
                pages = await stream_db.select_updates(conn, after, limit)
                digests = await stream_db.select_digests(conn, after)
                for vault_id, revision in after.items():
                    if digests.get(vault_id, places[vault_id]) != places[vault_id]:
                        newest = (await stream_db.select_heads(conn, [vault_id]))[vault_id]
                        raise undone(vault_id, revision, newest.revision)
                    page = pages.get(vault_id)
                    if page is None or page[0].revision != revision + 1:
                        spans = await stream_db.select_spans(conn, self._scope.user_id, vault_id)
                        if vault_id in spans and revision < spans[vault_id].trimmed.revision:
                            raise trimmed(spans[vault_id])
                        # Deleted, or restored to an earlier time: the feed finds out which.
                        pages.pop(vault_id, None)
            await self._keep(pages)
        if not pages:
            await self._feeds.polled()

    async def _keep(self, pages: Mapping[VaultId, list[Update]]) -> None:
        """Keep pages up to a size, and let the next be as long as what fitted.

        No cursor passes its feed: what that has not seen yet comes from its ring.
        """
        room, kept, whole = PAGE_BYTES_MAX, 0, True
        for vault_id, updates in pages.items():
            page: deque[Entry] = deque()
            for update in updates:
                cursor = self._cursors.get(vault_id)
                if cursor is None or update.revision > cursor.feed.head.revision:
                    break
                entry = Entry(update)
                if room < entry.size and page:
                    whole = False
                    break
                room -= entry.size
                if self._is_wanted(update):
                    self._prepare(entry)
                page.append(entry)
                if not len(page) % PREPARED_AT_ONCE:
                    await asyncio.sleep(0)
            kept += len(page)
            if vault_id in self._cursors:
                self._cursors[vault_id].page = page
        self._page_limit = min(PAGE_CHANGES_MAX, self._page_limit * 2) if whole else max(1, kept)
