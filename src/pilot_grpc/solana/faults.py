"""Every way in which asking a Solana node can fail. Nothing else leaves `solana.rpc`.

No text here holds a URL, a key or a header; what a node said is cut and cleaned (`clean`).
"""

from dataclasses import dataclass
from typing import Final

NODE_TEXT_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class TransactionError:
    """Why a transaction failed, or would: `err` in the answers of a node.

    `name` is the node's word (AlreadyProcessed, BlockhashNotFound, InstructionError, ...). Of an
    InstructionError there are the instruction's index, the reason (Custom, InvalidAccountData,
    ...) and the program's own number, if that is the reason. `detail` is JSON, for people.
    """

    name: str
    instruction: int | None = None
    reason: str | None = None
    custom: int | None = None
    detail: str | None = None


class RpcError(Exception):
    """A question to the chain has no answer. `retry_after` is in seconds, where it is known.

    `asked` is False when nothing was sent to any node, so that nothing can have happened.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        """Take a text for the log, and after how many seconds to try again."""
        super().__init__(message)
        self.retry_after = retry_after
        self.asked = True


class RpcUnavailable(RpcError):
    """Nobody answered. Try again later."""


class RpcBehind(RpcUnavailable):
    """The node has not yet seen the slot that was asked for, or no longer has it."""


class RpcDisagreed(RpcUnavailable):
    """Nodes contradict each other about something that decides about money. Nothing is decided."""


class RpcLimited(RpcError):
    """The node wants to be asked less often, or Pilot's own limit for it is reached."""


class RpcRejected(RpcError):
    """The node says no, and will do so again.

    A transaction that was rejected was not passed on by this node. That says nothing about an
    earlier sending of the same bytes: look at the signature's status before concluding anything.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        err: TransactionError | None = None,
        logs: tuple[str, ...] = (),
        units: int | None = None,
    ) -> None:
        """Take the node's code and cleaned text, and what a preflight found, if there was one."""
        super().__init__(f"rejected with {code}: {message}")
        self.code = code
        self.message = message
        self.err = err
        self.logs = logs
        self.units = units

    @property
    def already_processed(self) -> bool:
        """The very transaction has been executed: its status says with which result."""
        if self.err is not None:
            return self.err.name == "AlreadyProcessed"
        return self.code == PREFLIGHT_FAILED and "already been processed" in self.message


class RpcAmbiguous(RpcError):
    """A transaction may or may not be on its way. Send the same bytes again, or ask its status."""


class RpcGarbage(RpcError):
    """A node answered what no sound node answers. Nothing may be concluded from it."""


class ClusterMismatch(RpcError):
    """The endpoint belongs to another cluster than the configured one. It is never used."""


PREFLIGHT_FAILED: Final = -32002


def clean(text: str, characters_max: int = NODE_TEXT_CHARACTERS_MAX) -> str:
    """Make a stranger's text fit for a log line and a database: short, printable, one line."""
    return "".join(c if c.isprintable() else " " for c in text[:characters_max])
