"""`pilot serve`, but it dies or freezes at a chosen moment of a batch, and waits for nobody long.

The moment is named by the metadata of a spend, so that everything else goes as ever. Called with
`sound` it never fails itself, and still waits for no frozen process longer than a second.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from pilot_grpc import cli
from pilot_grpc.db import connection, ledger
from pilot_grpc.services import books, expiry, lanes

DIE_BEFORE_COMMIT = '"die before commit"'
DIE_AFTER_COMMIT = '"die after commit"'
FREEZE_BEFORE_COMMIT = '"freeze before commit"'
FREEZE_WHILE_WRITING = '"freeze while writing"'

# A frozen process loses its locks after 15 seconds; no test waits as long.
FROZEN_MAX = timedelta(seconds=1)


def myself(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def names(events: Iterable[Any], moment: str) -> bool:
    return any(getattr(event, "metadata", None) == moment for event in events)


def after_write(write: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty(self: Any, conn: Any, book: Any) -> None:
        await write(self, conn, book)
        if names(book.created.values(), DIE_BEFORE_COMMIT):
            myself(signal.SIGKILL)
        if names(book.created.values(), FREEZE_BEFORE_COMMIT):
            myself(signal.SIGSTOP)

    return faulty


def after_commit(commit: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty(self: Any, batch: Any, **options: Any) -> Any:
        outcomes = await commit(self, batch, **options)
        if names((c for item in batch for c in item.commands), DIE_AFTER_COMMIT):
            myself(signal.SIGKILL)
        return outcomes

    return faulty


def while_writing(insert: Callable[..., Any]) -> Callable[..., Any]:
    """Freeze once the server waits for the rows; where it never does, before they are sent."""

    async def faulty(conn: Any, events: Any) -> None:
        if not names(events, FREEZE_WHILE_WRITING):
            await insert(conn, events)
            return
        kind: Any = connection._Connection
        copy = kind.copy_records_to_table

        async def freezing(self: Any, table: str, *, records: Any, **options: Any) -> Any:
            return await copy(self, table, records=frozen(records), **options)

        kind.copy_records_to_table = freezing
        await insert(conn, events)
        kind.copy_records_to_table = copy

    return faulty


def frozen(records: Iterable[Any]) -> Iterator[Any]:
    myself(signal.SIGSTOP)
    yield from records


def be_impatient() -> None:
    """Wait for no frozen process longer than a second."""
    here: Any = connection
    patience = f"session_timeout = '{FROZEN_MAX.seconds}s'"
    begin = here.BEGIN.replace("session_timeout = '15s'", patience)
    brief = here.BEGIN_BRIEF.replace(here.BEGIN, begin)
    assert here.BEGIN not in {begin, brief}
    here.Database.transaction.__wrapped__.__defaults__ = (begin,)
    duties: Any = expiry
    duties.FROZEN_MAX = FROZEN_MAX
    modules: tuple[Any, ...] = (here, lanes)
    for module in modules:
        module.BEGIN_BRIEF = brief


def main() -> int:
    be_impatient()
    if sys.argv[1:] != ["sound"]:
        for kind, name, wrap in (
            (books.Books, "write", after_write),
            (lanes._Lane, "_commit", after_commit),
            (ledger, "insert_events", while_writing),
        ):
            setattr(kind, name, wrap(getattr(kind, name)))
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
