"""What an installation works with on Solana: whose nodes it takes, and how often it complains."""

import logging
from typing import Any

import pytest

from pilot_grpc.services.chain import Complaints
from pilot_grpc.settings import SettingsError, SolanaCluster
from pilot_grpc.solana import localnet
from tests import make

log = logging.getLogger(__name__)


async def test_nothing_starts_on_nodes_of_another_cluster(database: str) -> None:
    """The first block says which cluster it is, and that it is not devnet."""
    async with localnet.running(None, manual=True) as net:
        settings: dict[str, Any] = {"solana_rpc_urls": (net.url,)}
        with pytest.raises(SettingsError, match="PILOT_SOLANA_CLUSTER"):
            async with make.app(database, solana_cluster=SolanaCluster.DEVNET, **settings):
                pass


async def test_a_server_starts_while_its_nodes_are_away(database: str) -> None:
    async with make.app(database, duties=True, solana_rpc_urls=make.NOWHERE) as app:
        spender = await make.agent(app)

        spent = await make.spend(app, spender, 5)

    assert spent.decline is None


def test_the_same_complaint_is_made_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its details; another one is another one."""
    now = [0.0]
    monkeypatch.setattr("pilot_grpc.services.chain.time.monotonic", lambda: now[0])
    complain = Complaints(log)

    for moment in (0.0, 30.0, 59.9, 60.0):
        now[0] = moment
        complain("the node %s is away", moment)
    complain("the node %s is behind", 60.0)

    assert caplog.messages == [
        "the node 0.0 is away",
        "the node 60.0 is away",
        "the node 60.0 is behind",
    ]
