"""Where the chain of a directory answers, for other processes: in the file `url` beside it.

The file is there only as a whole, and whoever runs the chain holds a lock on it, which ends with
its process, whatever ended that: so what is left by a process that was killed is no address.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

FILE: Final = "url"


@contextmanager
def published(home: Path, url: str) -> Iterator[None]:
    """Say where the chain answers while the context lasts. Only who has the chain may."""
    draft = home / f"{FILE}.new"
    with draft.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{url}\n")
        file.flush()
        draft.replace(home / FILE)
        try:
            yield
        finally:
            (home / FILE).unlink(missing_ok=True)


def address(home: Path) -> str | None:
    """Answer the URL of the chain of a directory; None when nobody runs it."""
    with suppress(FileNotFoundError), (home / FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip()
    return None
