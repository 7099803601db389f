"""A vault whose key everybody knows goes through all that Pilot does, and nothing tells it."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message
from solders.keypair import Keypair

from pilot_grpc import embedded
from pilot_grpc.gen.pilot.v1 import agents_pb2, ledger_pb2, projects_pb2, vaults_pb2
from pilot_grpc.logs import JsonFormatter, TextFormatter
from pilot_grpc.sealing import Sealed, Sealer
from pilot_grpc.settings import WrappingKey
from pilot_grpc.solana import custody as custody_module
from pilot_grpc.solana.custody import Custody, SealedKey, Wallet
from pilot_grpc.solana.signing import SigningFailed, VaultSigner
from tests import canary, make
from tests.conftest import Server
from tests.rpc.serving import Client, Pilot, fresh, serving
from tests.test_keys import environ

OLD: Final = make.WRAPPING_KEY
NEW: Final = WrappingKey(id="2026-12", secret=bytes(range(1, 33)))


class Known:
    """Makes the canary's keypair, whenever one is made."""

    from_bytes = Keypair.from_bytes

    def __call__(self) -> Keypair:
        return canary.KEYPAIR


class Everything:
    """All that anybody could read."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, name: str, text: str) -> None:
        """Keep a text to be looked at."""
        assert text, name
        self.texts[name] = self.texts.get(name, "") + text

    def reveals(self, told: set[str]) -> dict[str, set[str]]:
        """Say which texts tell something."""
        found = {name: canary.found(text, told) for name, text in self.texts.items()}
        return {name: traces for name, traces in found.items() if traces}


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture) -> Everything:
    caplog.set_level(logging.DEBUG)
    return Everything()


async def live(pilot: Pilot, everything: Everything) -> None:
    """Make the vault, use every RPC around it, and let some fail while its key is in hand."""
    _, user = await pilot.user()
    project = await call(everything, user, projects_pb2.CreateProjectRequest(name="P"))
    vault_id, project_id = project.project.vault_id, project.project.id
    assert canary.ADDRESS in (
        str(await call(everything, user, vaults_pb2.GetVaultRequest(vault_id=vault_id)))
    )
    # The address is taken: the second vault fails after its key was made and sealed.
    await call(everything, user, projects_pb2.CreateProjectRequest(name="Q"), "INTERNAL")
    agent = await call(
        everything, user, agents_pb2.CreateAgentRequest(project_id=project_id, name="A")
    )
    for message in (
        ledger_pb2.RecordFundingRequest(vault_id=vault_id, amount=5, request_id=fresh()),
        ledger_pb2.ListEventsRequest(vault_id=vault_id),
        ledger_pb2.VerifyLedgerRequest(vault_id=vault_id),
        agents_pb2.IssueWebhookSecretRequest(agent_id=agent.agent.id),
        agents_pb2.AddRecipientRequest(agent_id=agent.agent.id, address=make.WALLET),
        agents_pb2.ListRecipientsRequest(agent_id=agent.agent.id),
        projects_pb2.GetProjectRequest(project_id=project_id),
        projects_pb2.ListProjectsRequest(),
    ):
        await call(everything, user, message)
    refused: list[tuple[Message, str]] = [
        (ledger_pb2.RecordFundingRequest(vault_id=vault_id, request_id="x"), "INVALID_ARGUMENT"),
        (vaults_pb2.GetVaultRequest(vault_id=canary.ADDRESS), "INVALID_ARGUMENT"),
        (vaults_pb2.GetVaultRequest(vault_id=agent.agent.id), "NOT_FOUND"),
        (projects_pb2.DeleteProjectRequest(project_id=project_id), "FAILED_PRECONDITION"),
        (withdrawal(vault_id, recipient=make.WALLET), "UNIMPLEMENTED"),
        (withdrawal(vault_id, recipient="1" * 33), "INVALID_ARGUMENT"),
        (vaults_pb2.GetDepositAddressRequest(vault_id=vault_id), "UNIMPLEMENTED"),
    ]
    for request, code in refused:
        await call(everything, user, request, code)
    await call(
        everything, pilot.nobody, vaults_pb2.GetVaultRequest(vault_id=vault_id), "UNAUTHENTICATED"
    )


def withdrawal(vault_id: str, recipient: str) -> vaults_pb2.WithdrawRequest:
    return vaults_pb2.WithdrawRequest(
        vault_id=vault_id, amount=1, recipient=recipient, request_id=fresh()
    )


async def call(everything: Everything, client: Client, message: Message, code: str = "OK") -> Any:
    """Call, and keep all that the caller is told."""
    try:
        answer = await client(message)
    except grpc.aio.AioRpcError as error:
        if error.code().name != code:
            raise
        everything.add("errors", f"{error!r} {error.trailing_metadata()!r} {canary.all_of(error)}")
        return None
    assert code == "OK"
    everything.add("answers", f"{answer!r} {answer.SerializeToString()!r}")
    return answer


async def sign(everything: Everything, pilot: Pilot, key: SealedKey) -> None:
    """Sign with the vault's key, and fail to."""
    custody = pilot.app.projects.custody
    signer = VaultSigner(custody, key)
    signature = await signer.sign(b"message")
    everything.add("signing", f"{signature!r} {signature.hex()}")
    lost = Custody(Sealer(NEW))
    for fails in (lost, Custody(Sealer(WrappingKey(id=OLD.id, secret=bytes(32))))):
        with pytest.raises(SigningFailed) as failed:
            await VaultSigner(fails, key).sign(b"message")
        logging.getLogger("pilot_grpc.test").error(
            "signing failed: %s", failed.value, exc_info=failed.value
        )
        everything.add("signing", canary.all_of(failed.value))


def look_at(everything: Everything, pilot: Pilot, key: SealedKey, database: str) -> None:
    """Show every object that has to do with it, as a debugger would."""
    custody = pilot.app.projects.custody
    sealed = Sealed(key.version, key.wrapping_key_id, key.wrapped_data_key, key.sealed_secret)
    for each in (
        *(key, sealed, custody, custody._sealer, VaultSigner(custody, key)),
        *(Wallet(canary.KEYPAIR), Wallet(canary.KEYPAIR).secret(), custody._open(key)),
        *(pilot, pilot.app, pilot.app.projects, pilot.app.webhooks, pilot.app.deliveries),
        *(make.settings(database), make.WRAPPING_KEY),
    ):
        everything.add("reprs", f"{each!r} {each} {each!a} {[each]} {getattr(each, '__dict__', 0)}")


def dump(database: str) -> str:
    """The whole database, as it is backed up; bytes in both of PostgreSQL's formats."""
    program = str(embedded.binaries() / "pg_dump")
    texts = []
    for options in ("-c bytea_output=hex", "-c bytea_output=escape"):
        done = subprocess.run(
            [program, "--dbname", database, "--column-inserts"],
            env={"PATH": os.defpath, "PGOPTIONS": options},
            capture_output=True,
            text=True,
            check=True,
        )
        texts.append(done.stdout)
    return "\n".join(texts)


def pilot_says(database: str, server: Server) -> str:
    """What every command prints that opens the seals, or works where they are, at its loudest."""
    commands = ["keys status", "keys rewrap", "keys rewrap", "keys status", "db status"]
    keys: tuple[tuple[WrappingKey, ...], ...] = ((), (OLD,))
    text = ""
    for old in keys:
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "pilot_grpc", *command.split()],
                env={
                    **environ(database, server, old),
                    "PILOT_DATABASE_DIRECT_URL": server_url(database, server),
                },
                capture_output=True,
                text=True,
                check=False,
            )
            text += done.stdout + done.stderr
    return text


def server_url(database: str, server: Server) -> str:
    """The database past the pooler, if there is one."""
    return database.replace(server.url.rpartition("/")[0], server.direct_url.rpartition("/")[0])


async def test_nothing_tells_a_vaults_key(
    database: str,
    server: Server,
    everything: Everything,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No answer, error, log, repr, traceback with its variables, dump, or command."""
    monkeypatch.setattr(custody_module, "Keypair", Known())
    direct = server_url(database, server)
    async with serving(database, duties=True, database_pooler=server.pooler) as pilot:
        await live(pilot, everything)
        row = await pilot.pool.fetchrow(
            "SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret"
            "  FROM vault_keys"
        )
        assert row is not None
        key = SealedKey(**row)
        await sign(everything, pilot, key)
        look_at(everything, pilot, key, database)
        everything.add("dump", await asyncio.to_thread(dump, direct))
        everything.add("commands", await asyncio.to_thread(pilot_says, database, server))
        everything.add("dump", await asyncio.to_thread(dump, direct))
    everything.add("log", caplog.text)
    for formatter in (TextFormatter(), JsonFormatter()):
        everything.add("log", "\n".join(formatter.format(record) for record in caplog.records))
        everything.add("log", "\n".join(f"{vars(record)!r}" for record in caplog.records))

    keypair = canary.traces_of_keypair(canary.KEYPAIR)
    bound_to = f"pilot vault key 1 {key.vault_id} {key.address}".encode()
    sealed = Sealed(key.version, key.wrapping_key_id, key.wrapped_data_key, key.sealed_secret)
    data_key = canary.traces(bytes(Sealer(OLD)._unwrap(sealed, bound_to)))
    wrapping = canary.traces(OLD.secret) | canary.traces(NEW.secret)
    assert everything.reveals(keypair | data_key | wrapping) == {}
    assert set(everything.texts) == {
        *("answers", "errors", "signing", "reprs", "dump", "commands", "log")
    }
    # What was looked at is what it should be.
    assert "Traceback" in everything.texts["log"]
    assert "vaults_address_key" in everything.texts["log"]
    assert "1 re-wrapped" in everything.texts["commands"]
    assert key.sealed_secret.hex() in everything.texts["dump"]
    assert key.wrapped_data_key.hex() in everything.texts["dump"]
    assert canary.ADDRESS in everything.texts["reprs"]


def test_a_text_that_tells_is_found_by_its_name() -> None:
    everything = Everything()
    everything.add("here", f"something {canary.KEYPAIR} something")
    everything.add("there", "nothing")

    assert set(everything.reveals(canary.traces_of_keypair(canary.KEYPAIR))) == {"here"}
