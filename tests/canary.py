"""A wallet that everybody knows, and every way in which its secret could be told."""

import base64
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from traceback import TracebackException
from types import FrameType
from typing import Any, Final

from solders.keypair import Keypair
from solders.pubkey import Pubkey

KEYPAIR: Final = Keypair.from_seed(hashlib.sha256(b"pilot canary").digest())
ADDRESS: Final = str(KEYPAIR.pubkey())

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


def all_of(error: BaseException) -> str:
    """All that can be learned from an error, variables of every frame included.

    Also of what it was raised from or in spite of, which Python itself would not show.
    """
    seen: list[BaseException] = []
    text = ""
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        waiting += [each.__cause__, each.__context__]
        told = TracebackException.from_exception(each, capture_locals=True)
        text += "".join(told.format()) + f"{each!r} {each} {each.args!r} {vars(each)!r}"
    return text


class Sabotage(Exception):
    """What goes wrong."""


def sabotaged(work: Callable[[], object], *files: str) -> Iterator[BaseException]:
    """Do something again and again, and let each of its steps in some files fail once."""
    step = 0
    while True:
        step += 1
        try:
            _fail_at(step, work, files)
        except BaseException as error:  # noqa: BLE001 - whatever became of it
            yield error
        else:
            return


def _fail_at(step: int, work: Callable[[], object], files: tuple[str, ...]) -> None:
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        left -= 1
        if left == 0:
            raise Sabotage(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
