"""`pilot demo`: it walks through a first run, again and again, and says what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from pilot_grpc import demo, probe, seed
from pilot_grpc.demo import DemoError
from pilot_grpc.probe import Target
from pilot_grpc.settings import SolanaCluster
from pilot_grpc.solana import localnet
from pilot_grpc.solana.faults import RpcRejected
from pilot_grpc.solana.localnet.client import USDC, Client, new_wallet
from tests import make
from tests.processes import address_in, first_run
from tests.rpc.serving import Pilot, serving
from tests.test_probe import self_signed
from tests.test_seed import OWNER

SLOT_MS: Final = 20
POLL: Final = timedelta(milliseconds=20)
NOWHERE: Final = "127.0.0.1:1"


def pilot_demo(home: Path, address: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `pilot demo`, as in the terminal beside that of a first run."""
    return subprocess.run(
        [sys.executable, "-m", "pilot_grpc", "demo", "--address", address],
        env={"PATH": os.defpath, "PILOT_DATA_DIR": str(home / "data"), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass
class Stage:
    """A server in this process, and what a walk through it has said."""

    server: Pilot
    chain_url: str
    said: list[str] = field(default_factory=list)

    async def walk(self, chain_url: str | None = None) -> bool:
        target = Target(self.server.address)
        return await demo.walk(target, chain_url or self.chain_url, self.said.append)


@asynccontextmanager
async def staged(database: str, **settings: Any) -> AsyncIterator[Stage]:
    """Serve on a database with the demo in it, and on a chain unless the settings say otherwise."""
    async with localnet.running(None, slot_ms=SLOT_MS, finalized_slots=4) as net:
        settings = {"solana_rpc_urls": (net.url,), "solana_poll": POLL, **settings}
        async with serving(database, duties=True, **settings) as server:
            await seed.seed(server.app.database, make.settings(database))
            yield Stage(server, net.url)


def test_a_first_run_is_walked_through_again_and_again(home: Path) -> None:
    """Each time another wallet is paid, and the vault has what the last one left there."""
    with first_run(home) as announcement:
        first = pilot_demo(home, address_in(announcement))
        second = pilot_demo(home, address_in(announcement))

    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    for said in (first.stdout, second.stdout):
        assert "WRONG" not in said
        assert said.endswith("All 9 checks hold.\n")
    assert "holds $0.00 (0)." in first.stdout
    assert "holds $23.75 (23750000)." in second.stdout
    paid = {re.findall(r"may pay (\w+)\.", said)[0] for said in (first.stdout, second.stdout)}
    assert len(paid) == 2


@pytest.mark.full
async def test_the_stream_is_shown_as_it_comes(database: str) -> None:
    """The deposit before the payment, and each until it is final; and the decline."""
    async with staged(database) as stage:
        assert await stage.walk()

    lines = [line for line in stage.said if line.startswith("  #")]
    assert [int(line.split()[0][1:]) for line in lines] == list(range(1, len(lines) + 1))
    final = [line for line in lines if "pending" not in line]
    assert [line.split()[1] for line in final] == ["deposit", "transfer", "transfer"]
    assert "confirmed; vault $25.00 (25000000)" in final[0]
    assert "confirmed; vault $23.75 (23750000)" in final[1]
    assert "failed, RECIPIENT_NOT_ALLOWED; vault $23.75 (23750000)" in final[2]


@pytest.mark.full
async def test_the_project_that_the_readme_walks_through_stays_as_it_is(database: str) -> None:
    async with staged(database) as stage:
        before = await stage.server.app.vaults.get(OWNER, seed.VAULT)
        agents = await stage.server.app.agents.list(OWNER, seed.PROJECT, None, 100)
        await stage.walk()

        assert await stage.server.app.vaults.get(OWNER, seed.VAULT) == before
        assert await stage.server.app.agents.list(OWNER, seed.PROJECT, None, 100) == agents


@pytest.mark.full
async def test_a_server_that_speaks_tls_is_walked_through(database: str, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    tls = {"tls_certificate_file": certificate, "tls_key_file": key}
    async with staged(database, **tls) as stage:
        target = probe.target(make.settings(database, **tls), stage.server.address)

        assert await demo.walk(target, stage.chain_url, stage.said.append)


async def test_a_check_that_does_not_hold_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain says that a minor unit is missing; all else is still looked at."""

    async def units(_: Client, wallet: str) -> int:
        return demo.PAYMENT - 1

    monkeypatch.setattr(Client, "units", units)
    async with staged(database) as stage:
        holds = await stage.walk()

    assert not holds
    wrong = "  WRONG  the recipient has $1.249999 (1249999): it is 1249999, and should be 1250000"
    assert wrong in stage.said
    assert stage.said[-1] == "1 of 9 checks do not hold."


@pytest.mark.full
async def test_money_on_another_chain_does_not_arrive(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WAIT_SECONDS", 1.0)
    async with localnet.running(None) as other, staged(database) as stage:
        with pytest.raises(DemoError, match="did not happen within 1 seconds"):
            await stage.walk(other.url)


@pytest.mark.full
async def test_a_chain_that_is_away_is_told(database: str) -> None:
    async with staged(database) as stage:
        with pytest.raises(DemoError, match="the chain has no answer"):
            await stage.walk(f"http://{NOWHERE}")


async def test_a_server_without_the_demo_user_is_refused(database: str) -> None:
    async with serving(database) as server:
        stage = Stage(server, f"http://{NOWHERE}")

        with pytest.raises(DemoError, match="the demo user"):
            await stage.walk()


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"solana_rpc_urls": ()}, "the server works on no chain"),
        (
            {
                "solana_cluster": SolanaCluster.LOCALNET,
                "solana_usdc_mint": USDC,
                "solana_rpc_urls": make.NOWHERE,
                "settlement_enabled": False,
            },
            "the server works on localnet: the demo is for the embedded chain",
        ),
    ],
    ids=["no chain", "another cluster"],
)
async def test_nothing_is_done_on_another_chain(
    database: str, settings: dict[str, Any], reason: str
) -> None:
    async with staged(database, **settings) as stage:
        with pytest.raises(DemoError, match=reason):
            await stage.walk()

        projects = await stage.server.app.projects.list(OWNER, None, 100)

    assert [project.id for project in projects] == [seed.PROJECT]


def test_without_a_server_the_demo_says_how_to_start_one(home: Path) -> None:
    refused = pilot_demo(home, NOWHERE)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"pilot: no server serves at {NOWHERE} (UNAVAILABLE): `make run` starts one, in another"
        " terminal\n"
    )


@pytest.mark.full
async def test_the_demo_asks_only_for_the_embedded_chain(home: Path, database: str) -> None:
    """Of this environment's data directory, and on no other cluster."""
    devnet = {"PILOT_SOLANA_CLUSTER": "devnet", "PILOT_SOLANA_RPC_URLS": "http://127.0.0.1:1"}
    with first_run(home) as announcement:
        address = address_in(announcement)
        elsewhere = pilot_demo(home / "elsewhere", address)
        on_devnet = pilot_demo(home, address, **devnet)

    assert (elsewhere.returncode, on_devnet.returncode) == (1, 1)
    assert f"no chain runs in {home}/elsewhere/data/localnet" in elsewhere.stderr
    assert "PILOT_SOLANA_CLUSTER is devnet" in on_devnet.stderr


async def test_the_balance_of_a_wallet_that_has_none_is_no_answer() -> None:
    async with localnet.running(None, slot_ms=SLOT_MS) as net:
        client = Client(net.url)

        with pytest.raises(RpcRejected, match="could not find account"):
            await client.units(new_wallet())

        await client.close()


@pytest.mark.parametrize(
    ("units", "written"),
    [
        (0, "$0.00 (0)"),
        (1, "$0.000001 (1)"),
        (1_250_000, "$1.25 (1250000)"),
        (-1_250_000, "-$1.25 (-1250000)"),
        (1_234_567_800_000, "$1,234,567.80 (1234567800000)"),
    ],
)
def test_money_is_written_in_dollars_and_in_minor_units(units: int, written: str) -> None:
    assert demo.money(units) == written
