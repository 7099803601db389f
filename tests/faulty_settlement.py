"""`pilot serve`, but it dies or freezes at a chosen moment of a payment, and waits for nobody long.

The moment is the text of the file that it is started with. Of several processes that share one the
first that comes so far takes the file away, and it alone is struck.
"""

import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from pilot_grpc import cli
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.domain.ledger import ConfirmTransfer, FailTransfer, Settle, Spend, Withdraw
from pilot_grpc.services import lanes, transfers
from pilot_grpc.solana import payments, rpc
from pilot_grpc.solana.endpoint import Patience
from tests import faulty

# What is safe does not depend on how long anybody waits.
HURRIED: Final[tuple[tuple[Any, str, Any], ...]] = (
    (transfers, "IDLE_SECONDS", 0.05),
    (transfers, "RENEW_SECONDS", 0.1),
    (transfers, "RESEND_SECONDS", 0.05),
    (transfers, "RETRY_SECONDS_MIN", 0.02),
    (transfers, "RETRY_SECONDS_MAX", 0.1),
    (rpc, "Patience", partial(Patience, request_seconds=1.0, rest_seconds=0.1)),
)
LEASE: Final = timedelta(seconds=0.5)

RESERVED: Final = "reserved"
CLAIMED: Final = "claimed"
SIGNED: Final = "signed"
STORED: Final = "stored"
SENT: Final = "sent"
RECORDING: Final = "recording"
RECORDED: Final = "recorded"
ANEW: Final = "signed anew"
FAILING: Final = "failing"
MOMENTS: Final = (RESERVED, CLAIMED, SIGNED, STORED, SENT, RECORDING, RECORDED)

# Before the moment: it freezes instead of dying.
FREEZE: Final = "freeze when "


class Strike:
    """What comes over a process when it has come so far."""

    def __init__(self, order: Path) -> None:
        self._order = order

    def __call__(self, moment: str) -> None:
        try:
            text = self._order.read_text()
            if text.removeprefix(FREEZE) != moment:
                return
            self._order.unlink()
        except FileNotFoundError:
            return
        faulty.myself(signal.SIGSTOP if text.startswith(FREEZE) else signal.SIGKILL)


def after(strike: Strike, moment: str, work: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty_work(*args: Any, **options: Any) -> Any:
        done = await work(*args, **options)
        strike(moment)
        return done

    return faulty_work


def after_reserving(strike: Strike, commit: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty_commit(self: Any, batch: Any, **options: Any) -> Any:
        outcomes = await commit(self, batch, **options)
        commands = [command for item in batch for command in item.commands]
        if any(isinstance(c, Spend | Withdraw | Settle) and c.recipient for c in commands):
            strike(RESERVED)
        return outcomes

    return faulty_commit


def before_going_on(strike: Strike, go_on: Callable[..., Any]) -> Callable[..., Any]:
    def faulty_go_on(self: Any, claimed: Any) -> None:
        if claimed:
            strike(CLAIMED)
        go_on(self, claimed)

    return faulty_go_on


def around_recording(strike: Strike, decide: Callable[..., Any]) -> Callable[..., Any]:
    """Whoever finds out first what the chain has decided, worker or history, records it."""

    async def faulty_decide(self: Any, command: Any) -> Any:
        if isinstance(command, ConfirmTransfer):
            strike(RECORDING)
        if isinstance(command, FailTransfer):
            strike(FAILING)
        event = await decide(self, command)
        if isinstance(command, ConfirmTransfer):
            strike(RECORDED)
        return event

    return faulty_decide


def main() -> int:
    faulty.be_impatient()
    for module, name, value in (*HURRIED, (transfers, "LEASE", LEASE)):
        setattr(module, name, value)
    strike = Strike(Path(sys.argv[1]))
    worker: Any = transfers.Transfers
    worker._go_on = before_going_on(strike, worker._go_on)
    worker._store = after(strike, STORED, worker._store)
    worker._send = after(strike, SENT, worker._send)
    signing: Any = payments
    signing.prepare = after(strike, SIGNED, signing.prepare)
    ending: Any = transfers_db
    ending.begin_next_attempt = after(strike, ANEW, ending.begin_next_attempt)
    lane: Any = lanes._Lane
    lane._commit = after_reserving(strike, lane._commit)
    everything: Any = lanes.Lanes
    everything.decide = around_recording(strike, everything.decide)
    return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
