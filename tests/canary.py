"""Wallets that everybody knows, and every way in which their secrets could be told."""

import base64
import hashlib
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from linecache import getline
from pathlib import Path
from traceback import format_exception, walk_tb
from types import FrameType
from typing import Any, Final

from solders.keypair import Keypair
from solders.pubkey import Pubkey

KEYPAIR: Final = Keypair.from_seed(hashlib.sha256(b"pilot canary").digest())
ADDRESS: Final = str(KEYPAIR.pubkey())
# It pays the fees where the vault does not pay them itself.
FEE_PAYER: Final = Keypair.from_seed(hashlib.sha256(b"pilot canary of the fees").digest())

TESTS: Final = Path(__file__).parent

# A part gives the whole away, and a repr may be cut short.
PART_BYTES: Final = 12
PART_CHARACTERS: Final = 20


def traces(secret: bytes) -> set[str]:
    """How so many of the first bytes of a secret look in a text without spaces."""
    part = secret[:PART_BYTES]
    # Wherever in a longer text, base64 begins at one of three places.
    shifted = [secret[n : n + PART_BYTES] for n in range(3)]
    return {
        part.hex(),
        part.hex().upper(),
        # PostgreSQL's older way to write bytes, as itself and within a string.
        *(as_octal(part, backslash) for backslash in ("\\", "\\\\")),
        repr(part)[2:-1],
        ",".join(map(str, part)),
        ",".join(map(hex, part)),
        *(base64.b64encode(each).decode() for each in shifted),
        *(base64.urlsafe_b64encode(each).decode() for each in shifted),
    }


def as_octal(part: bytes, backslash: str) -> str:
    """Printable ASCII as it is, and three octal digits for the rest."""
    return "".join(
        chr(byte) if 0x20 < byte < 0x7F and byte != ord("\\") else f"{backslash}{byte:03o}"
        for byte in part
    )


def traces_of_keypair(keypair: Keypair) -> set[str]:
    """The same for a keypair: its base58, too, whole and of the seed alone."""
    whole = bytes(keypair)
    seed_in_base58 = str(Pubkey.from_bytes(whole[:32]))
    return traces(whole) | {str(keypair)[:PART_CHARACTERS], seed_in_base58[:PART_CHARACTERS]}


def found(text: str, told: set[str]) -> set[str]:
    """Return what of a secret a text tells."""
    dense = re.sub(r"\s", "", text)
    return {trace for trace in told if trace in dense}


class Known:
    """Makes well-known keypairs instead of new ones: these in turn, and the last for ever."""

    from_bytes = Keypair.from_bytes

    def __init__(self, *keypairs: Keypair) -> None:
        """Take what is made."""
        self._keypairs = list(keypairs)

    def __call__(self) -> Keypair:
        return self._keypairs.pop(0) if len(self._keypairs) > 1 else self._keypairs[0]


def all_of(error: BaseException) -> str:
    """All that can be learned from an error, variables of every frame included.

    Also of what it was raised from or in spite of, which Python itself would not show.
    """
    return "".join(_said_by(each) + "".join(_variables(each)) for each in _with_causes(error))


def _said_by(error: BaseException) -> str:
    shown = "".join(format_exception(error, chain=False))
    return f"{shown}{error!r} {error} {error.args!r} {vars(error)!r}"


def _with_causes(error: BaseException) -> list[BaseException]:
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        waiting += [each.__cause__, each.__context__]
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return seen


def _variables(error: BaseException) -> Iterator[str]:
    """Show them as error trackers do, which live with a repr that fails.

    Not those of the tests, which know the secrets.
    """
    for frame, line in walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).is_relative_to(TESTS):
            continue
        for name, value in frame.f_locals.items():
            try:
                yield f"{line}: {name} = {value!r}\n"
            except Exception as failed:  # noqa: BLE001 - of an object that is half made, say
                yield f"{line}: {name} cannot be shown: {failed!r}\n"


class Sabotage(Exception):
    """What goes wrong."""


def sabotaged(work: Callable[[], object], *files: str) -> Iterator[BaseException]:
    """Do something again and again, and let each of its steps in some files fail once."""
    step = 0
    while True:
        step += 1
        try:
            with _failing_at(step, files, _each_event):
                work()
        except BaseException as error:  # noqa: BLE001 - whatever became of it
            yield error
        else:
            return


async def sabotaged_services(
    work: Callable[[], Awaitable[object]], *files: str
) -> AsyncIterator[BaseException | None]:
    """The same with what waits, and lives with errors: gives those that it raised all the same.

    Only lines fail here: nothing that waits survives an error in spite of which it goes on.
    Whatever else runs in this thread fails, too, when it is in these files.
    """
    step, reached = 0, True
    while reached:
        step += 1
        error: BaseException | None = None
        with _failing_at(step, files, _begins_line) as failing:
            try:
                await work()
            except Exception as raised:  # noqa: BLE001 - whatever became of it
                error = raised
        reached = failing.reached
        if reached:
            yield error


@dataclass
class _Failing:
    """Counts the steps down to the one that fails."""

    left: int

    @property
    def reached(self) -> bool:
        return self.left <= 0


def _each_event(_: FrameType, __: str) -> bool:
    return True


def _begins_line(frame: FrameType, event: str) -> bool:
    """Say whether a line begins; not that of a `with`, which would not end if it failed there."""
    line = getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return event == "line" and not line.startswith(("with ", "async with "))


@contextmanager
def _failing_at(
    step: int, files: tuple[str, ...], is_step: Callable[[FrameType, str], bool]
) -> Iterator[_Failing]:
    failing = _Failing(step)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(files):
            return None
        if not is_step(frame, event):
            return trace
        failing.left -= 1
        if failing.left == 0:
            raise Sabotage(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield failing
    finally:
        sys.settrace(before)
