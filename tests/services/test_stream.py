"""The stream behind the wire: rings and cursors, who reads what from where, and who waits."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import stream as stream_db
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.ids import AgentId, EventId, UserId, VaultId
from pilot_grpc.domain.ledger import EventKind, EventStatus, EventType
from pilot_grpc.domain.stream import Head, Start, Update, Wanted
from pilot_grpc.services import feeds, stream
from pilot_grpc.services.feeds import RING_BYTES_MIN, RING_CHANGES_MAX, Cursor, Entry, Feed
from pilot_grpc.services.stream import Subscription, Topic
from tests import make
from tests.make import Spender

VAULT = VaultId("v")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOM = 10**9

# No test waits for it; it only ends a test that hangs.
SECONDS = 30.0


# --- one feed ---------------------------------------------------------------------------


def digest(revision: int) -> bytes:
    return f"digest {revision}".encode()


def head(revision: int) -> Head:
    return Head(revision, digest(revision))


def update(revision: int, agent_id: str | None = None, metadata: str | None = None) -> Update:
    return Update(
        *(VAULT, revision, EventId(f"e{revision}"), None, EventStatus.CONFIRMED, 1, None, None),
        *(0, 0, 0, NOW, digest(revision)),
        *(agent_id and AgentId(agent_id), EventType.SPEND, EventKind.METERED),  # type: ignore[arg-type]
        *(None, None, None, metadata, None, None, None, NOW),  # type: ignore[arg-type]
    )


def updates(first: int, last: int, **fields: Any) -> list[Update]:
    return [update(revision, **fields) for revision in range(first, last + 1)]


@dataclass
class Reader:
    """A follower that only notes what it is told."""

    behind: list[Cursor] = field(default_factory=list)
    lost: list[tuple[Cursor, errors.PilotError]] = field(default_factory=list)

    def fall_behind(self, cursor: Cursor) -> None:
        self.behind.append(cursor)

    def lose(self, cursor: Cursor, error: errors.PilotError) -> None:
        self.lost.append((cursor, error))


def cursor_at(feed: Feed, at: int, agent_id: str | None = None) -> tuple[Cursor, Reader]:
    reader = Reader()
    cursor = Cursor(feed, reader, agent_id and AgentId(agent_id), head(at))  # type: ignore[arg-type]
    cursor.place()
    return cursor, reader


def revisions(entries: Iterable[Entry]) -> list[int]:
    return [entry.update.revision for entry in entries]


def test_a_ring_keeps_the_last_changes_and_knows_how_far_it_reaches() -> None:
    feed = Feed(VAULT, head(10))
    feed.extend(updates(11, 10 + RING_CHANGES_MAX), ROOM)
    assert feed.reaches(10)

    feed.extend(updates(11 + RING_CHANGES_MAX, 15 + RING_CHANGES_MAX), ROOM)

    assert [feed.reaches(revision) for revision in (14, 15, 15 + RING_CHANGES_MAX)] == [
        *(False, True, True)
    ]
    assert revisions(feed.after(15, ROOM)) == list(range(16, 16 + RING_CHANGES_MAX))
    assert revisions(feed.after(20, 3)) == [21, 22, 23]
    assert revisions(feed.after(14, ROOM)) == []
    assert revisions(feed.after(feed.head.revision, ROOM)) == []


def test_a_ring_takes_no_more_bytes_than_it_has_room_for() -> None:
    """Large metadata leaves fewer changes; counted as on the wire, in bytes of UTF-8."""
    feed = Feed(VAULT, head(0))
    feed.extend(updates(1, 200, metadata="é" * 4_000), RING_BYTES_MIN * 4)
    kept = feed.after(200 - len(feed._ring), ROOM)

    assert revisions(kept) == list(range(201 - len(kept), 201))
    assert 0 < sum(entry.size for entry in kept) <= RING_BYTES_MIN * 4
    assert sum(entry.size for entry in kept) == feed._size
    assert all(entry.size > 8_000 for entry in kept)


def test_a_change_that_is_larger_than_the_ring_is_read_from_the_table() -> None:
    feed = Feed(VAULT, head(0))
    cursor, _ = cursor_at(feed, 0)

    feed.extend([update(1, metadata="a" * RING_BYTES_MIN)], RING_BYTES_MIN)

    assert (len(feed._ring), feed._size) == (0, 0)
    assert (cursor.must_read(), cursor.at) == (True, head(0))


def test_all_rings_together_stay_within_their_bytes() -> None:
    """Of as many vaults as there may be streams, each keeps little; few keep much."""
    for count in (1, 10, 100, 1_000):
        room = max(RING_BYTES_MIN, min(feeds.RING_BYTES_MAX, feeds.RINGS_BYTES_MAX // count))
        assert room * count <= max(feeds.RINGS_BYTES_MAX, RING_BYTES_MIN * count)
        assert room <= feeds.RING_BYTES_MAX


def test_a_gap_is_never_passed_over() -> None:
    """What came before it is kept; the feed stays there until it is started again."""
    feed = Feed(VAULT, head(0))
    cursor, reader = cursor_at(feed, 0)

    with pytest.raises(ValueError, match="change 4 after 2"):
        feed.extend([*updates(1, 2), update(4)], ROOM)

    assert feed.head == head(2)
    assert (reader.behind, cursor.at) == ([cursor], head(0))


def test_after_a_restart_everybody_reads_from_the_table_where_they_were() -> None:
    """Those at the head, those of an agent, and those behind: nobody is moved on."""
    feed = Feed(VAULT, head(0))
    late, late_reader = cursor_at(feed, 0)
    feed.extend(updates(1, 5), ROOM)
    cursors = [(late, late_reader), cursor_at(feed, 5), cursor_at(feed, 5, "a")]

    feed.restart(head(9))

    assert feed.head == head(9)
    assert [cursor.at for cursor, _ in cursors] == [head(0), head(5), head(5)]
    assert all(cursor.must_read() for cursor, _ in cursors)
    assert all(reader.behind == [cursor] for cursor, reader in cursors)
    assert not any(feed._following.values())


def test_an_agents_cursor_moves_past_its_siblings_for_nothing() -> None:
    feed = Feed(VAULT, head(0))
    cursor, reader = cursor_at(feed, 0, "mine")

    feed.extend(updates(1, 50, agent_id="sibling"), ROOM)
    feed.extend(updates(51, 60), ROOM)
    assert (reader.behind, cursor.at) == ([], head(60))
    feed.extend([update(61, "sibling"), update(62, "mine"), update(63, "sibling")], ROOM)

    assert reader.behind == [cursor]
    assert cursor.at == head(61)
    assert revisions(cursor.next_entries(10)) == [62, 63]


def test_a_cursor_is_told_once_until_it_has_caught_up() -> None:
    feed = Feed(VAULT, head(0))
    cursor, reader = cursor_at(feed, 0)

    feed.extend(updates(1, 3), ROOM)
    feed.extend(updates(4, 6), ROOM)
    assert reader.behind == [cursor]
    for entry in cursor.next_entries(10):
        cursor.pass_by(entry.update)
    assert not cursor.is_behind
    feed.extend(updates(7, 8), ROOM)

    assert reader.behind == [cursor, cursor]
    assert cursor.at == head(6)


def test_a_cursor_that_is_let_go_is_told_nothing() -> None:
    feed = Feed(VAULT, head(0))
    cursor, reader = cursor_at(feed, 0, "a")
    stays, stayed = cursor_at(feed, 0, "a")

    feed.release(cursor)
    feed.extend([update(1, "a")], ROOM)

    assert (reader.behind, stayed.behind) == ([], [stays])
    feed.release(stays)
    feed.release(stays)
    assert not feed._following


# --- subscriptions ----------------------------------------------------------------------


@asynccontextmanager
async def following(
    app: App,
    spender: Spender,
    start: Start | str = Start.EARLIEST,
    *,
    topic: Topic | None = None,
    wanted: Wanted | None = None,
    caller: Caller | None = None,
) -> AsyncIterator[Subscription]:
    """Follow a spender's vault, unless another topic is named."""
    about = Topic(vault_id=spender.vault_id) if topic is None else topic
    who = caller or spender.owner
    async with asyncio.timeout(SECONDS * 3):
        async with app.streams.subscription(who, about, start, wanted or Wanted()) as found:
            yield found


def of_agent(spender: Spender) -> Topic:
    return Topic(agent_id=spender.agent_id)


async def take(subscription: Subscription, count: int) -> list[Update]:
    """Read until so many changes came, and no more."""
    taken: list[Update] = []
    async with asyncio.timeout(SECONDS):
        while len(taken) < count:
            taken += await subscription.next_updates(SECONDS)
    assert len(taken) == count
    return taken


def numbers(taken: Iterable[Update]) -> list[int]:
    return [each.revision for each in taken]


async def spend_many(app: App, spender: Spender, count: int, **fields: Any) -> None:
    """Spend by batches of a thousand at most."""
    for size in [1_000] * (count // 1_000) + [count % 1_000] * (count % 1_000 > 0):
        orders = [make.order(spender, 1, **fields) for _ in range(size)]
        await app.ledger.batch_spend(spender.caller, orders)


async def feed_sees(app: App, spender: Spender) -> None:
    """Return once the feed of a vault is where the vault is."""
    revision = (await make.vault(app, spender)).revision
    async with asyncio.timeout(SECONDS):
        while app.feeds._feeds[spender.vault_id].head.revision < revision:
            await app.feeds.polled()


class Poller:
    """A process's look at the database, which a test can stop."""

    def __init__(self, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
        self._look = app.feeds._poll
        self._may_look = asyncio.Event()
        self._may_look.set()
        self._looking = asyncio.Lock()
        monkeypatch.setattr(app.feeds, "_poll", self.poll)

    async def poll(self, vault_ids: Iterable[VaultId], user_ids: Iterable[UserId]) -> int:
        await self._may_look.wait()
        async with self._looking:
            return await self._look(vault_ids, user_ids)

    async def stop(self) -> None:
        """Let the process see nothing new."""
        self._may_look.clear()
        async with self._looking:
            pass

    def go_on(self) -> None:
        self._may_look.set()


@pytest.fixture
def poller(app: App, monkeypatch: pytest.MonkeyPatch) -> Poller:
    return Poller(app, monkeypatch)


async def test_a_cursor_never_passes_its_feed(app: App, poller: Poller) -> None:
    """A page of the table has what the feed has not seen; it comes from the ring, once."""
    agent = await make.agent(app)
    async with following(app, agent, Start.LATEST):
        await spend_many(app, agent, 20)
        await feed_sees(app, agent)
        await poller.stop()
        await spend_many(app, agent, 10)
        app.feeds._feeds[agent.vault_id].restart(app.feeds._feeds[agent.vault_id].head)

        async with following(app, agent) as late:
            assert numbers(await take(late, 21)) == list(range(1, 22))
            assert late.caught_up
            assert await late.next_updates(0) == []
            poller.go_on()
            assert numbers(await take(late, 10)) == list(range(22, 32))
            assert await late.next_updates(0) == []


async def test_a_subscriber_that_begins_ahead_of_the_feed_gets_nothing_twice(
    app: App, poller: Poller
) -> None:
    """Its token, or its `latest`, is of a change that this process has not seen yet."""
    agent = await make.agent(app)
    async with following(app, agent, Start.LATEST) as first:
        await poller.stop()
        await spend_many(app, agent, 3)
        late = following(app, agent, Start.LATEST)
        entering = asyncio.create_task(late.__aenter__())
        await asyncio.sleep(0.1)
        assert not entering.done()

        poller.go_on()
        second = await entering
        await make.spend(app, agent, 1)

        assert numbers(await take(second, 1)) == [5]
        assert numbers(await take(first, 4)) == [2, 3, 4, 5]
        await late.__aexit__(None, None, None)


async def test_catching_up_while_many_spend_is_ordered_and_complete(app: App) -> None:
    """Again and again from the beginning, while the end moves."""
    agent = await make.agent(app)
    await spend_many(app, agent, 300)
    done = asyncio.Event()

    async def keep_spending() -> None:
        while not done.is_set():
            await make.spend(app, agent, 1)

    spending = [asyncio.create_task(keep_spending()) for _ in range(3)]
    for _ in range(20):
        async with following(app, agent) as subscription:
            end = (await make.vault(app, agent)).revision
            seen: list[int] = []
            while len(seen) < end:
                seen += numbers(await subscription.next_updates(SECONDS))
            assert seen == list(range(1, len(seen) + 1))
    done.set()
    await asyncio.gather(*spending)


async def test_what_another_process_commits_comes_too(app: App, other: App) -> None:
    agent = await make.agent(app)
    async with following(app, agent) as subscription:
        for _ in range(5):
            await make.spend(other, agent, 1)

        assert numbers(await take(subscription, 6)) == [1, 2, 3, 4, 5, 6]


async def test_one_that_does_not_read_gets_everything_later_and_delays_nobody(
    app: App,
) -> None:
    """Five thousand changes later it reads them from the table; another had them all along."""
    agent = await make.agent(app)
    async with following(app, agent) as slow, following(app, agent) as quick:
        assert numbers(await take(slow, 1)) == numbers(await take(quick, 1)) == [1]

        async def read_along() -> list[int]:
            seen: list[int] = []
            while len(seen) < 5_000:
                seen += numbers(await quick.next_updates(SECONDS))
            return seen

        reading = asyncio.create_task(read_along())
        await spend_many(app, agent, 5_000)
        assert await reading == list(range(2, 5_002))

        (cursor,) = slow._cursors.values()
        assert (len(cursor.page), cursor.at.revision) == (0, 1)
        assert len(cursor.feed._ring) <= RING_CHANGES_MAX
        seen: list[int] = []
        while len(seen) < 5_000:
            seen += numbers(await slow.next_updates(SECONDS))
            assert len(cursor.page) <= stream.PAGE_CHANGES_MAX
        assert seen == list(range(2, 5_002))
        assert slow.caught_up


async def test_a_quiet_vault_does_not_wait_behind_a_large_backlog(app: App) -> None:
    """Of a user with both, a change of the quiet one comes with the next responses."""
    busy = await make.agent(app)
    _, _, quiet = await make.project(app, busy.owner)
    await spend_many(app, busy, 4_000)
    async with following(app, busy, topic=Topic()) as subscription:
        seen = numbers(await subscription.next_updates(SECONDS))
        await make.fund(app, busy.owner, quiet, 5)
        async with asyncio.timeout(SECONDS):
            while not app.feeds._feeds[quiet].head.revision:
                await app.feeds.polled()

        vaults: list[VaultId] = []
        while quiet not in vaults:
            batch = await subscription.next_updates(SECONDS)
            vaults += [each.vault_id for each in batch]
            seen += numbers(each for each in batch if each.vault_id == busy.vault_id)

        assert len(seen) < 2_500
        while len(seen) < 4_001:
            seen += numbers(await subscription.next_updates(SECONDS))
        assert seen == list(range(1, 4_002))

        # The same where all of it is in the rings: the busy one does not fill the response.
        await spend_many(app, busy, 1_000)
        await feed_sees(app, busy)
        await make.fund(app, busy.owner, quiet, 5)
        async with asyncio.timeout(SECONDS):
            while app.feeds._feeds[quiet].head.revision < 2:
                await app.feeds.polled()
        batch = await subscription.next_updates(SECONDS)
        assert {each.vault_id for each in batch} == {busy.vault_id, quiet}
        assert len(batch) < 1_001


async def test_who_got_no_room_in_a_message_is_the_first_in_the_next(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three busy vaults, of which a message holds two: the quiet one waits for one message."""
    monkeypatch.setattr(stream, "VAULT_SHARE", 2)
    monkeypatch.setattr(stream, "MESSAGE_CHANGES_MAX", 4)
    owner, follower = await make.owner(app), await make.agent(app)
    *busy, quiet = [(await make.project(app, owner))[2] for _ in range(4)]
    async with following(app, follower, Start.LATEST, topic=Topic(), caller=owner) as subscription:

        async def fund(vault_id: VaultId, times: int) -> None:
            for _ in range(times):
                await make.fund(app, owner, vault_id, 1)
            async with asyncio.timeout(SECONDS):
                while app.feeds._feeds[vault_id].head.revision < times:
                    await app.feeds.polled()

        for vault_id in busy:
            await fund(vault_id, 10)
        await fund(quiet, 1)

        messages = [await subscription.next_updates(SECONDS) for _ in range(8)]

    vaults = [[each.vault_id for each in message] for message in messages]
    assert [len(message) for message in vaults] == [4] * 7 + [3]
    assert vaults[0] == [busy[0]] * 2 + [busy[1]] * 2
    assert vaults[1][:3] == [busy[2]] * 2 + [quiet]
    for vault_id in busy:
        own = [each for message in messages for each in message if each.vault_id == vault_id]
        assert numbers(own) == list(range(1, 11))


async def test_many_vaults_behind_at_once_are_all_read_to_the_end(app: App) -> None:
    """More vaults than one page reads, each with a few changes; each in its order."""
    owner = await make.owner(app)
    vault_ids = [(await make.project(app, owner))[2] for _ in range(stream.PAGE_VAULTS_MAX + 20)]
    for _ in range(3):
        await asyncio.gather(*(make.fund(app, owner, vault_id, 1) for vault_id in vault_ids))
    spender = await make.agent(app)
    async with following(app, spender, topic=Topic(), caller=owner) as subscription:
        taken = await take(subscription, 3 * len(vault_ids))

        by_vault = {v: numbers(u for u in taken if u.vault_id == v) for v in vault_ids}
        assert set(map(tuple, by_vault.values())) == {(1, 2, 3)}
        assert subscription.caught_up


async def test_a_message_holds_no_more_than_its_changes_and_bytes(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two vaults at once, from the table and from the rings; then with large metadata."""
    monkeypatch.setattr(stream, "MESSAGE_CHANGES_MAX", 10)
    first = await make.agent(app)
    _, _, second = await make.project(app, first.owner)
    async with following(app, first, topic=Topic()) as live:
        await spend_many(app, first, 25)
        for _ in range(25):
            await make.fund(app, first.owner, second, 1)
        await feed_sees(app, first)
        async with following(app, first, topic=Topic()) as late:
            for subscription in (live, late):
                sizes: list[int] = []
                while sum(sizes) < 51:
                    sizes.append(len(await subscription.next_updates(SECONDS)))
                assert max(sizes) == 10
                assert sum(sizes) == 51


async def test_large_changes_come_in_small_messages_and_small_pages(app: App) -> None:
    """With 16 KiB of metadata each, live and from the table."""
    agent = await make.agent(app)
    metadata = f'"{"a" * 16_382}"'
    async with following(app, agent) as live:
        for _ in range(2):
            await spend_many(app, agent, 100, metadata=metadata)
        await feed_sees(app, agent)
        feed = app.feeds._feeds[agent.vault_id]
        assert feed._size <= feeds.RING_BYTES_MAX
        async with following(app, agent) as late:
            for subscription in (live, late):
                seen: list[int] = []
                while len(seen) < 201:
                    batch = await subscription.next(SECONDS)
                    assert sum(entry.size for entry in batch) <= stream.MESSAGE_BYTES_MAX
                    (cursor,) = subscription._cursors.values()
                    assert sum(entry.size for entry in cursor.page) <= stream.PAGE_BYTES_MAX
                    seen += revisions(batch)
                assert seen == list(range(1, 202))


async def test_a_change_is_written_once_for_all_who_get_it(app: App) -> None:
    """Thirty owners and three agents follow; each change is encoded once for either kind."""
    agent = await make.agent(app)
    calls: Counter[tuple[int, bool]] = Counter()

    def encode(change: Update, for_agent: bool) -> bytes:
        calls[change.revision, for_agent] += 1
        return b"%d;" % change.revision

    async def follow(caller: Caller, topic: Topic, ready: asyncio.Semaphore) -> bytes:
        got = b""
        async with following(app, agent, Start.LATEST, topic=topic, caller=caller) as found:
            ready.release()
            while got.count(b";") < 40:
                for entry in await found.next(SECONDS):
                    got += entry.written(encode, for_agent=caller.agent_id is not None)
        return got

    ready = asyncio.Semaphore(0)
    whole = Topic(vault_id=agent.vault_id)
    callers = [(agent.owner, whole)] * 30 + [(agent.caller, Topic())] * 3
    tasks = [asyncio.create_task(follow(*each, ready)) for each in callers]
    for _ in tasks:
        await ready.acquire()
    for _ in range(4):
        await spend_many(app, agent, 10)

    assert set(await asyncio.gather(*tasks)) == {b"".join(b"%d;" % n for n in range(2, 42))}
    assert set(calls) == {(n, kind) for n in range(2, 42) for kind in (True, False)}
    assert set(calls.values()) == {1}


async def test_a_filter_lets_the_position_move_on(app: App) -> None:
    agent = await make.agent(app)
    wanted = Wanted(statuses=frozenset({EventStatus.FAILED}))
    async with following(app, agent, wanted=wanted) as subscription:
        token = subscription.token()
        await spend_many(app, agent, 600)
        await feed_sees(app, agent)
        assert await subscription.next_updates(0.5) == []

        assert subscription.position(agent.vault_id) == 601
        assert subscription.token() != token
    async with following(app, agent, subscription_token := token) as again:
        assert numbers(await take(again, 500))[0] == 1
        assert subscription_token == token


async def test_an_agent_is_followed_by_pilot_itself_after_a_revision(app: App) -> None:
    """Only its own changes come; the position moves past those of its siblings."""
    agent = await make.agent(app)
    sibling = await make.agent(app, beside=agent)
    await make.spend(app, agent, 1)
    await make.spend(app, sibling, 1)
    await make.spend(app, agent, 1)
    ids = agent.owner.user_id, agent.vault_id, agent.agent_id

    subscription = await app.streams.follow_agent(*ids, 2)
    try:
        (update_,) = await take(subscription, 1)
        assert (update_.revision, update_.agent_id) == (4, agent.agent_id)
        assert subscription.position(agent.vault_id) == 4
        await spend_many(app, sibling, 1_500)
        await feed_sees(app, agent)
        assert await subscription.next_updates(0) == []
        assert subscription.position(agent.vault_id) == 1_504
        await make.spend(app, agent, 1)
        assert numbers(await take(subscription, 1)) == [1_505]
    finally:
        subscription.close()
    from_beginning = await app.streams.follow_agent(*ids, 0)
    try:
        assert numbers(await take(from_beginning, 3)) == [2, 4, 1_505]
        assert from_beginning.position(agent.vault_id) == 1_505
    finally:
        from_beginning.close()
    assert agent.vault_id not in app.feeds._feeds


async def test_an_agent_cannot_be_followed_from_where_there_is_nothing(app: App) -> None:
    agent, stranger = await make.agent(app), await make.agent(app)
    ids = agent.owner.user_id, agent.vault_id, agent.agent_id

    with pytest.raises(errors.HistoryUndone):
        await app.streams.follow_agent(*ids, 2)
    with pytest.raises(errors.NotFound):
        await app.streams.follow_agent(stranger.owner.user_id, *ids[1:], 0)
    await spend_many(app, agent, 5)
    await trim(app, agent, 3)
    with pytest.raises(errors.ChangesTrimmed) as trimmed:
        await app.streams.follow_agent(*ids, 2)
    assert trimmed.value.metadata == {
        "vault_id": agent.vault_id,
        "oldest_revision": "4",
        "newest_revision": "6",
    }
    subscription = await app.streams.follow_agent(*ids, 3)
    try:
        assert numbers(await take(subscription, 3)) == [4, 5, 6]
    finally:
        subscription.close()


async def trim(app: App, agent: Spender, floor: int) -> None:
    """Let the changes up to a floor be gone, as trimming leaves them."""
    async with app.database.transaction() as conn:
        await conn.execute(
            "INSERT INTO change_checkpoints"
            " (vault_id, revision, balance, chain_balance, held, digest, changed_at)"
            " SELECT vault_id, revision, balance_after, chain_balance_after, held_after, digest,"
            "        changed_at FROM event_changes WHERE vault_id = $1 AND revision = $2",
            agent.vault_id,
            floor,
        )
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "DELETE FROM event_changes WHERE vault_id = $1 AND revision <= $2",
            agent.vault_id,
            floor,
        )


@pytest.mark.parametrize("at_once", [2, 5, 1_000])
async def test_changes_that_were_trimmed_before_they_were_read_are_told(
    app: App, poller: Poller, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """The feed goes on after the gap; whoever needs what is gone learns that it is.

    A process that was frozen for long may have missed more than it reads at once.
    """
    monkeypatch.setattr(feeds, "POLL_UPDATES_MAX", at_once)
    monkeypatch.setattr(feeds, "POLL_UPDATES_MIN", at_once)
    agent = await make.agent(app)
    async with following(app, agent, Start.LATEST) as behind:
        await poller.stop()
        await spend_many(app, agent, 8)
        await trim(app, agent, 5)
        poller.go_on()

        with pytest.raises(errors.ChangesTrimmed) as trimmed:
            await take(behind, 1)

        assert trimmed.value.metadata["oldest_revision"] == "6"
        async with following(app, agent) as again:
            assert numbers(await take(again, 4)) == [6, 7, 8, 9]
            await make.spend(app, agent, 1)
            assert numbers(await take(again, 1)) == [10]


async def test_a_slow_subscriber_whose_changes_are_trimmed_is_told(app: App) -> None:
    agent = await make.agent(app)
    async with following(app, agent) as slow:
        assert numbers(await take(slow, 1)) == [1]
        await spend_many(app, agent, 2_000)
        await feed_sees(app, agent)
        await trim(app, agent, 500)

        with pytest.raises(errors.ChangesTrimmed):
            await take(slow, 2_000)


async def step_back(app: App, agent: Spender, revision: int) -> None:
    """Let a vault be where it was at a change, as a restore does."""
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "UPDATE vaults SET revision = changes.revision, digest = changes.digest"
            "  FROM event_changes AS changes"
            " WHERE vaults.id = $1 AND changes.vault_id = $1 AND changes.revision = $2",
            agent.vault_id,
            revision,
        )
        await conn.execute(
            "DELETE FROM event_changes WHERE vault_id = $1 AND revision > $2",
            agent.vault_id,
            revision,
        )


async def rewrite_last(app: App, agent: Spender) -> None:
    """Let the last change be another, as after a restore and a spend."""
    async with app.database.transaction() as conn:
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(
            "UPDATE event_changes AS changes SET digest = 'another'"
            "  FROM vaults WHERE vaults.id = $1 AND changes.vault_id = $1"
            "   AND changes.revision = vaults.revision",
            agent.vault_id,
        )
        await conn.execute("UPDATE vaults SET digest = 'another' WHERE id = $1", agent.vault_id)


@pytest.mark.parametrize("again", [0, 1, 2], ids=["behind", "as_far", "further"])
async def test_a_history_that_is_undone_ends_those_who_follow_it(
    app: App, poller: Poller, again: int
) -> None:
    """Wherever the other history has come when the process looks: at once, and never silently."""
    agent = await make.agent(app)
    await spend_many(app, agent, 5)
    async with following(app, agent) as one, following(app, agent, topic=Topic()) as all_of:
        assert numbers(await take(one, 6)) == numbers(await take(all_of, 6))
        token = one.token()
        await poller.stop()
        await step_back(app, agent, 5)
        await spend_many(app, agent, again)
        poller.go_on()

        for subscription in (one, all_of):
            with pytest.raises(errors.HistoryUndone) as undone:
                await take(subscription, 1)
            assert undone.value.metadata == {
                "vault_id": agent.vault_id,
                "revision": "6",
                "newest_revision": str(5 + again),
            }
    with pytest.raises(errors.HistoryUndone):
        async with following(app, agent, token):
            raise AssertionError("it was honoured")


async def test_a_subscriber_of_another_history_than_the_feeds_does_not_stop_the_process(
    app: App, poller: Poller
) -> None:
    """Between a restore and the next look both are here; both end, and nobody turns in circles."""
    agent = await make.agent(app)
    await spend_many(app, agent, 5)
    async with following(app, agent, Start.LATEST) as of_before:
        await poller.stop()
        await rewrite_last(app, agent)
        async with following(app, agent, Start.LATEST) as of_now:
            assert await of_now.next_updates(0) == []
            poller.go_on()
            for subscription in (of_before, of_now):
                with pytest.raises(errors.HistoryUndone):
                    await take(subscription, 1)
    async with following(app, agent, Start.LATEST) as fresh:
        await make.spend(app, agent, 1)
        assert numbers(await take(fresh, 1)) == [7]


async def test_a_vault_that_is_deleted_while_a_subscriber_comes_does_not_hold_it_up(
    app: App, poller: Poller
) -> None:
    """The feed never gets as far as the subscriber has seen; the other vaults go on."""
    agent = await make.agent(app)
    _, _, stays = await make.project(app, agent.owner)
    async with following(app, agent, Start.LATEST):
        await poller.stop()
        await make.spend(app, agent, 1)
        coming = following(app, agent, Start.LATEST, topic=Topic())
        entering = asyncio.create_task(coming.__aenter__())
        await asyncio.sleep(0.1)
        async with app.database.transaction() as conn:
            await conn.execute("DELETE FROM projects WHERE id = $1", agent.project_id)
        poller.go_on()

        async with asyncio.timeout(SECONDS):
            subscription = await entering
        await make.fund(app, agent.owner, stays, 1)

        assert [each.vault_id for each in await take(subscription, 1)] == [stays]
        assert subscription.caught_up
        await coming.__aexit__(None, None, None)


async def test_a_read_that_finds_no_connection_is_tried_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await make.agent(app)
    await spend_many(app, agent, 20)
    real, failures = Subscription._read_page, iter([errors.Overloaded(retry_after=0)] * 2)

    async def read_page(self: Subscription, after: Any) -> None:
        with suppress(StopIteration):
            raise next(failures)
        await real(self, after)

    monkeypatch.setattr(Subscription, "_read_page", read_page)
    async with following(app, agent) as subscription:
        assert numbers(await take(subscription, 21)) == list(range(1, 22))


async def test_a_read_that_fails_ends_its_subscriber_and_no_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await make.agent(app)
    await spend_many(app, agent, 20)

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with following(app, agent, Start.LATEST) as other_one:
        monkeypatch.setattr(Subscription, "_read_page", broken)
        async with following(app, agent) as subscription:
            with pytest.raises(ZeroDivisionError):
                await take(subscription, 1)
        await make.spend(app, agent, 1)
        assert numbers(await take(other_one, 1)) == [22]


async def test_those_who_left_leave_nothing_behind(app: App) -> None:
    """Streams that began, that were refused, and that were cancelled while they began."""
    agent = await make.agent(app)
    await spend_many(app, agent, 600)
    for start in (Start.EARLIEST, Start.LATEST):
        for topic in (Topic(), Topic(vault_id=agent.vault_id), of_agent(agent)):
            async with following(app, agent, start, topic=topic) as subscription:
                await subscription.next_updates(0)
    with pytest.raises(errors.NotFound):
        async with following(app, agent, topic=Topic(vault_id=VaultId("cnone"))):
            pass
    with pytest.raises(errors.ResumeTokenInvalid):
        async with following(app, agent, "nonsense"):
            pass

    async def come_and_go(seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), following(app, agent) as subscription:
                await subscription.next_updates(SECONDS)
                await subscription.next_updates(SECONDS)

    await asyncio.gather(*(come_and_go(n / 2_000) for n in range(60)))

    async with asyncio.timeout(SECONDS):
        pool = app.streams._database.pool
        await make.until(lambda: pool.get_idle_size() == pool.get_size())
    assert (app.feeds._feeds, app.feeds._users, app.streams._open) == ({}, {}, {})
    assert app.streams._reads._value == stream.CATCH_UP_AT_ONCE_MAX


async def test_without_followers_the_database_is_left_alone(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await make.agent(app)
    async with following(app, agent):
        pass
    looks: list[object] = []
    real = app.feeds._poll

    async def poll(vault_ids: Iterable[VaultId], user_ids: Iterable[UserId]) -> int:
        looks.append(None)
        return await real(vault_ids, user_ids)

    await app.feeds.polled()
    monkeypatch.setattr(app.feeds, "_poll", poll)
    for _ in range(10):
        await make.spend(app, agent, 1)

    assert looks == []


async def test_a_look_that_fails_is_followed_by_another(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect in one look is logged, and costs time only."""
    agent = await make.agent(app)
    async with following(app, agent, Start.LATEST) as subscription:
        with monkeypatch.context() as broken:
            failed = asyncio.Event()

            async def fail(*_: object) -> None:
                failed.set()
                raise ZeroDivisionError

            broken.setattr(stream_db, "select_heads", fail)
            await asyncio.wait_for(failed.wait(), SECONDS)
        await make.spend(app, agent, 1)

        assert numbers(await take(subscription, 1)) == [2]
        assert "ZeroDivisionError" in caplog.text
