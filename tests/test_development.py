"""The chain of a first run: it is shared, it keeps its money, and it survives violence.

The database that comes with it has tests of its own, in test_embedded.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from solders.pubkey import Pubkey

from pilot_grpc import development
from pilot_grpc.settings import Settings, SolanaCluster
from pilot_grpc.solana import localnet
from pilot_grpc.solana.localnet.store import Store
from tests.solana.payments import ata, connected

USER = """
import sys, pathlib
from pilot_grpc import development
from pilot_grpc.settings import Settings
with development.provided(Settings(data_dir=pathlib.Path(sys.argv[1])), chain=True) as settings:
    print(*settings.solana_rpc_urls, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has what a first run has until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def url_of(process: subprocess.Popen[str]) -> str:
    """Where its chain answers, once it does."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url
    return url


async def fund(url: str, wallet: Pubkey) -> None:
    """Give a wallet a dollar, and wait until that is final."""
    async with connected(url) as rpc:
        await rpc.finalized(await rpc.pilot("faucet", address=str(wallet), amount=1_000_000))


async def units(url: str, wallet: Pubkey) -> int:
    async with connected(url) as rpc:
        return await rpc.units(ata(wallet))


async def test_a_first_run_has_a_chain_whose_money_is_there_the_next_time(home: Path) -> None:
    wallet, settings = Pubkey.new_unique(), Settings(data_dir=home)
    with development.provided(settings, chain=True) as provided:
        (url,) = provided.solana_rpc_urls
        assert (home / "localnet" / "url").read_text() == f"{url}\n"
        await fund(url, wallet)

    assert localnet.address(home / "localnet") is None
    with development.provided(settings, chain=True) as provided:
        assert await units(provided.solana_rpc_urls[0], wallet) == 1_000_000


def test_who_does_not_ask_for_a_chain_has_none(home: Path) -> None:
    with development.provided(Settings(data_dir=home)) as provided:
        assert provided.solana_rpc_urls == ()

    assert not (home / "localnet").exists()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(database_url="postgresql://db.example.com/pilot"),
        Settings(
            database_url="postgresql://db.example.com/pilot",
            solana_cluster=SolanaCluster.MAINNET,
            solana_rpc_urls=("https://rpc.example.com",),
        ),
    ],
    ids=["database", "mainnet"],
)
def test_who_has_a_database_of_their_own_is_given_nothing(settings: Settings) -> None:
    with development.provided(settings, chain=True) as provided:
        assert provided is settings


@pytest.mark.parametrize(
    "settings",
    [
        Settings(solana_rpc_urls=("http://127.0.0.1:8899",)),
        Settings(solana_cluster=SolanaCluster.DEVNET, solana_rpc_urls=("https://rpc.example.com",)),
        Settings(solana_cluster=SolanaCluster.MAINNET),
    ],
    ids=["another chain", "devnet", "mainnet"],
)
def test_another_chain_is_not_replaced(home: Path, settings: Settings) -> None:
    """Not even where the database is ours, and where no such settings can come from."""
    ours = replace(settings, data_dir=home)

    with development.provided(ours, chain=True) as provided:
        assert provided.solana_rpc_urls == settings.solana_rpc_urls

    assert not (home / "localnet").exists()


async def test_a_second_process_uses_the_chain_of_the_first(home: Path) -> None:
    """Until the first leaves; whoever comes then runs the chain, and has what was on it."""
    wallet, settings = Pubkey.new_unique(), Settings(data_dir=home)
    with another_process(home) as first:
        url = url_of(first)
        with development.provided(settings, chain=True) as provided:
            assert provided.solana_rpc_urls == (url,)
            await fund(url, wallet)
            first.communicate()

            with development.provided(settings, chain=True) as anew:
                assert anew.solana_rpc_urls != (url,)
                assert await units(anew.solana_rpc_urls[0], wallet) == 1_000_000


def test_of_processes_that_start_together_one_runs_the_chain(home: Path) -> None:
    with ExitStack() as stack:
        together = [stack.enter_context(another_process(home)) for _ in range(3)]

        assert len({url_of(process) for process in together}) == 1


async def test_a_chain_whose_process_was_killed_opens_again(home: Path) -> None:
    """What the dead process wrote of where it answers is not believed."""
    wallet, settings = Pubkey.new_unique(), Settings(data_dir=home)
    with another_process(home) as first:
        url = url_of(first)
        await fund(url, wallet)
        first.send_signal(signal.SIGKILL)
        first.wait()

    assert (home / "localnet" / "url").read_text() == f"{url}\n"
    with development.provided(settings, chain=True) as provided:
        assert await units(provided.solana_rpc_urls[0], wallet) == 1_000_000


def test_a_chain_that_cannot_be_opened_is_told(home: Path) -> None:
    (home / "localnet").mkdir()
    (home / "localnet" / "chain.sqlite").write_bytes(b"noise" * 1_000)

    with (
        pytest.raises(development.EmbeddedChainError, match=r"chain\.sqlite"),
        development.provided(Settings(data_dir=home), chain=True),
    ):
        pass


def test_who_has_the_chain_and_does_not_say_where_is_not_waited_for_for_ever(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(development, "CHAIN_SECONDS_MAX", 0.1)
    silent = Store(home / "localnet")

    with (
        pytest.raises(development.EmbeddedChainError, match="does not say where"),
        development.provided(Settings(data_dir=home), chain=True),
    ):
        pass
    silent.close()
