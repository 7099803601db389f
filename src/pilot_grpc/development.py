"""What Pilot brings by itself when nothing is configured: a database, a wrapping key, a chain.

Good for a first run and for tests on one's own machine. The key lies beside the data that it
seals, and the chain gives money to anybody who asks, so mainnet is refused with them.
"""

from __future__ import annotations

import base64
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from pilot_grpc import embedded
from pilot_grpc.settings import DEVELOPMENT_KEY_ID, WRAPPING_KEY_BYTES, Settings, WrappingKey

# A block is final after a second, and a blockhash good for 30: a process may well stand still for
# some seconds before it sends what it has signed.
SLOT_MS: Final = 200
FINALIZED_SLOTS: Final = 4
# Whoever has just taken the chain takes a moment until it answers, and until it is gone.
CHAIN_SECONDS_MAX: Final = 10.0
CHAIN_PAUSE_SECONDS: Final = 0.05


class EmbeddedChainError(RuntimeError):
    """The embedded chain cannot be opened or served; the message has its own words."""


@contextmanager
def provided(settings: Settings, *, chain: bool = False) -> Iterator[Settings]:
    """Settings with a database to connect to, which runs at least while the context lasts.

    With `chain`, and where settings.uses_embedded_chain, they have the URL of a chain, too. The
    first process that asks for the chain of a data directory runs it, in a thread, and the others
    use it. When that process leaves, their chain is away until they are started anew; the first of
    them then runs it. Nothing that was on it is lost: while nobody runs it, it stands still.

    With DATABASE_URL they are the settings that were given.

    Raises EmbeddedPostgresError, EmbeddedChainError.
    """
    if not settings.uses_embedded_database:
        yield settings
        return
    with ExitStack() as stack:
        url = stack.enter_context(embedded.running(settings.data_dir))
        urls = settings.solana_rpc_urls
        if chain and settings.uses_embedded_chain:
            urls = (_find_or_run_chain(stack, chain_home(settings)),)
        yield replace(
            settings,
            database_url=url,
            database_direct_url=url,
            solana_rpc_urls=urls,
            wrapping_key=settings.wrapping_key or wrapping_key(settings.data_dir),
        )


def chain_home(settings: Settings) -> Path:
    """Where the embedded chain keeps itself, and says where it answers."""
    return settings.data_dir / "localnet"


def wrapping_key(data_dir: Path) -> WrappingKey:
    """The key of a data directory, made the first time; only its owner can read the file."""
    path = data_dir / "wrapping.key"
    if not path.exists():
        _create(path, base64.b64encode(secrets.token_bytes(WRAPPING_KEY_BYTES)))
    return WrappingKey(id=DEVELOPMENT_KEY_ID, secret=base64.b64decode(path.read_bytes()))


def _find_or_run_chain(stack: ExitStack, home: Path) -> str:
    """Answer where the chain of a directory answers; when nobody runs it, the stack does."""
    from pilot_grpc.solana import localnet  # noqa: PLC0415 - it is slow, and few commands need it

    give_up = time.monotonic() + CHAIN_SECONDS_MAX
    while True:
        found = localnet.address(home)
        if found is not None:
            return found
        ours = localnet.in_thread(home, slot_ms=SLOT_MS, finalized_slots=FINALIZED_SLOTS)
        try:
            return stack.enter_context(ours)
        except localnet.LocalnetInUse as error:
            if time.monotonic() > give_up:
                raise EmbeddedChainError(f"{error}, which does not say where it answers") from error
        except localnet.LocalnetError as error:
            raise EmbeddedChainError(str(error)) from error
        time.sleep(CHAIN_PAUSE_SECONDS)


def _create(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; of two processes at once, the first one's stays."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
