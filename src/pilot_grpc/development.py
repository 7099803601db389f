"""What Pilot brings by itself when no database is configured: one of its own, and a wrapping key.

Good for a first run and for tests on one's own machine. The key lies beside the data that it
seals, so mainnet is refused with it.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pilot_grpc import embedded
from pilot_grpc.settings import DEVELOPMENT_KEY_ID, WRAPPING_KEY_BYTES, Settings, WrappingKey


@contextmanager
def provided(settings: Settings) -> Iterator[Settings]:
    """Settings with a database to connect to, which runs at least while the context lasts.

    With DATABASE_URL they are the settings that were given.

    Raises EmbeddedPostgresError.
    """
    if not settings.uses_embedded_database:
        yield settings
        return
    with embedded.running(settings.data_dir) as url:
        yield replace(
            settings,
            database_url=url,
            database_direct_url=url,
            wrapping_key=settings.wrapping_key or wrapping_key(settings.data_dir),
        )


def wrapping_key(data_dir: Path) -> WrappingKey:
    """The key of a data directory, made the first time; only its owner can read the file."""
    path = data_dir / "wrapping.key"
    if not path.exists():
        _create(path, base64.b64encode(secrets.token_bytes(WRAPPING_KEY_BYTES)))
    return WrappingKey(id=DEVELOPMENT_KEY_ID, secret=base64.b64decode(path.read_bytes()))


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
