"""Spends a second on one hot vault: through Pilot's gRPC, and by pgbench on the same row.

pgbench runs the best single statement we can write by hand that leaves what a spend
leaves (vault, rule, event, change, request), one spend a transaction, with 16 clients.
Pilot is asked by 64 callers, one spend a call and 100 spends a call. All sides share
this machine, and take turns; read the ratios.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

from pilot_grpc import embedded, migrations
from pilot_grpc.database_url import connect_arguments
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as pb
from tests import make

CALLERS: Final = 64
PGBENCH_CLIENTS: Final = 16
BATCH: Final = 100
SPEND: Final = "/pilot.v1.LedgerService/Spend"
BATCH_SPEND: Final = "/pilot.v1.LedgerService/BatchSpend"

ONE_STATEMENT: Final = """
WITH vault AS (
    UPDATE vaults
       SET balance = balance - 1, revision = revision + 1, last_change_at = clock_timestamp()
     WHERE id = '{vault_id}' AND balance >= 1
    RETURNING id, balance, chain_balance, held, revision, last_change_at
),
rule AS (
    UPDATE agent_budget_rules
       SET daily_spent = daily_spent + 1, monthly_spent = monthly_spent + 1
     WHERE agent_id = '{agent_id}' AND per_tx_limit >= 1 AND daily_spent + 1 <= daily_limit
    RETURNING agent_id
),
event AS (
    INSERT INTO events (
        id, type, kind, status, amount, vault_id, agent_id, created_at, updated_at, revision
    )
    SELECT 'c' || replace(gen_random_uuid()::text, '-', ''), 'spend', 'metered', 'confirmed',
           -1, vault.id, rule.agent_id, last_change_at, last_change_at, revision
      FROM vault, rule
    RETURNING id, vault_id, agent_id, revision, created_at
),
change AS (
    INSERT INTO event_changes (
        vault_id, revision, event_id, status, amount, balance_after, chain_balance_after,
        held_after, changed_at, digest
    )
    SELECT vault.id, vault.revision, event.id, 'confirmed', -1, balance, chain_balance, held,
           created_at, ''
      FROM event, vault
)
INSERT INTO event_requests (
    vault_id, scope_id, request_id, rpc, fingerprint, event_id, revision, status, amount,
    answered_at
)
SELECT vault_id, agent_id, gen_random_uuid()::text, 'Spend', 'amount:9f86d081884c7d65', id,
       revision, 'confirmed', -1, created_at
  FROM event;
"""


async def main() -> None:
    """Take turns, and print each side's median and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sides: dict[str, list[float]] = {"pgbench": [], "unary": [], "batch": []}
    with tempfile.TemporaryDirectory() as home, embedded.running(Path(home)) as url:
        await migrations.migrate(url)
        async with make.app(url) as app:
            ours, theirs = await make.agent(app), await make.agent(app)
            other = await make.agent(app)
        script = Path(home, "spend.sql")
        statement = ONE_STATEMENT.format(vault_id=theirs.vault_id, agent_id=theirs.agent_id)
        script.write_text(statement)  # noqa: ASYNC240 - nothing else runs yet
        with serving(url) as address:
            async with callers(address) as channels:
                await spends(channels, ours.key, 1.0)
                for number in range(arguments.rounds):
                    sides["pgbench"].append(pgbench(url, script, arguments.seconds))
                    sides["unary"].append(await spends(channels, ours.key, arguments.seconds))
                    sides["batch"].append(await batches(channels, other.key, arguments.seconds))
                    print(f"round {number + 1}:", {k: round(v[-1]) for k, v in sides.items()})
        async with make.app(url) as app:
            for spender in (ours, other):
                wrong = await make.verify(app, spender, page=20_000)
                print("VerifyLedger:", wrong or "agrees")
    report(sides)


def report(sides: dict[str, list[float]]) -> None:
    """Print medians and ratios."""
    medians = {name: statistics.median(values) for name, values in sides.items()}
    base = medians["pgbench"]
    print(f"\nspends a second on one hot vault, median of {len(sides['pgbench'])} turns each")
    print(f"  pgbench, one statement, {PGBENCH_CLIENTS} clients  {base:9,.0f}")
    for name, text in (("unary", "Spend"), ("batch", f"BatchSpend of {BATCH}")):
        print(
            f"  {text}, {CALLERS} callers".ljust(38),
            f"{medians[name]:9,.0f}  {medians[name] / base:5.1f} times pgbench",
        )


@contextmanager
def serving(url: str) -> Iterator[str]:
    """Run one server process, as `pilot serve` does."""
    address = "127.0.0.1:50951"
    environ = os.environ | {
        "DATABASE_URL": url,
        "PILOT_LISTEN_ADDRESS": address,
        "PILOT_WRAPPING_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "PILOT_WRAPPING_KEY_ID": "bench",
    }
    server = subprocess.Popen([sys.executable, "-m", "pilot_grpc", "serve"], env=environ)
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
        yield address
    finally:
        server.terminate()
        server.wait()


@asynccontextmanager
async def callers(address: str) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open the connections of the callers: few, as one client process has."""
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(4)
    ]
    yield channels
    for channel in channels:
        await channel.close()


async def spends(channels: list[grpc.aio.Channel], key: str, seconds: float) -> float:
    """Spend 1 a call, with CALLERS calls under way; return spends a second."""
    return await _call(channels, SPEND, key, seconds, CALLERS, 1)


async def batches(channels: list[grpc.aio.Channel], key: str, seconds: float) -> float:
    """Spend BATCH times 1 a call; return spends a second."""
    return await _call(channels, BATCH_SPEND, key, seconds, CALLERS, BATCH)


async def _call(
    channels: list[grpc.aio.Channel], method: str, key: str, seconds: float, count: int, size: int
) -> float:
    metadata = (("authorization", f"Bearer {key}"),)
    until = time.perf_counter() + seconds
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        call: Any = channels[number % len(channels)].unary_unary(method)
        turn = f"{time.time_ns()}-{number}"
        at = 0
        while time.perf_counter() < until:
            orders = [pb.SpendRequest(amount=1, request_id=f"{turn}-{at + i}") for i in range(size)]
            at += size
            request = orders[0] if size == 1 else pb.BatchSpendRequest(spends=orders)
            await call(request.SerializeToString(), metadata=metadata)
            done += size

    started = time.perf_counter()
    await asyncio.gather(*map(caller, range(count)))
    return done / (time.perf_counter() - started)


def pgbench(url: str, script: Path, seconds: float) -> float:
    """Run pgbench; return transactions a second."""
    where = connect_arguments(url)
    command = [str(embedded.binaries() / "pgbench"), "-n", "-M", "prepared", "-j", "2"]
    command += ["-c", str(PGBENCH_CLIENTS), "-T", str(int(seconds)), "-f", str(script)]
    command += ["-h", where["host"], "-p", str(where["port"]), "-U", where["user"] or ""]
    output = subprocess.run(
        [*command, where["database"]], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"tps = ([\d.]+)", output)
    if found is None:
        raise RuntimeError(output)
    return float(found[1])


if __name__ == "__main__":
    uvloop.run(main())
