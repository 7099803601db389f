"""A vault whose key everybody knows goes through all that Pilot does, and nothing tells it."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from pilot_grpc import embedded
from pilot_grpc.bootstrap import App, fee_payer_of
from pilot_grpc.db import transfers as transfers_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.transfers import Sent, Transfer
from pilot_grpc.domain.accounts import Caller, CredentialKind
from pilot_grpc.domain.ids import EventId, UserId, VaultId
from pilot_grpc.errors import ChainUnavailable
from pilot_grpc.gen.pilot.v1 import (
    agents_pb2,
    budgets_pb2,
    ledger_pb2,
    projects_pb2,
    vaults_pb2,
)
from pilot_grpc.logs import JsonFormatter, TextFormatter
from pilot_grpc.sealing import Sealed, Sealer
from pilot_grpc.services.chain import FEE_PAYER, sealed_fee_payer
from pilot_grpc.settings import Settings, SettingsError, WrappingKey
from pilot_grpc.solana import custody as custody_module
from pilot_grpc.solana import localnet
from pilot_grpc.solana.clusters import EMBEDDED_GENESIS_HASH
from pilot_grpc.solana.custody import Custody, SealedKey, Wallet
from pilot_grpc.solana.endpoint import EndpointSettings
from pilot_grpc.solana.localnet import Fault, Kind
from pilot_grpc.solana.payments import Payment, Signed
from pilot_grpc.solana.signing import SigningFailed, VaultSigner
from tests import canary, make
from tests.conftest import Server
from tests.http_server import HttpServer, http_server
from tests.processes import Process, channel_to
from tests.rpc.serving import Client, Pilot, fresh, new_agent, serving, with_key
from tests.sampling import first_of
from tests.solana.payments import SOL, Payer, connected
from tests.solana.scripted import error, node, result
from tests.test_keys import environ

OLD: Final = make.WRAPPING_KEY
NEW: Final = WrappingKey(id="2026-12", secret=bytes(range(1, 33)))


class Everything:
    """All that anybody could read."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, name: str, text: str) -> None:
        """Keep a text to be looked at."""
        assert text, name
        self.texts[name] = self.texts.get(name, "") + text

    def show(self, *objects: object) -> None:
        """Keep how objects show themselves, as a debugger would look at them."""
        for each in objects:
            text = f"{each!r} {each} {each!a} {[each]} {getattr(each, '__dict__', 0)}"
            self.add("reprs", text)

    def add_log(self, records: Iterable[logging.LogRecord]) -> None:
        """Keep what was logged, in both formats, and all that was known of what was logged."""
        for record in records:
            for formatter in (TextFormatter(), JsonFormatter()):
                self.add("log", formatter.format(record))
            self.add("log", f"{vars(record)!r}")
            if record.exc_info and record.exc_info[1]:
                self.add("log", canary.all_of(record.exc_info[1]))

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
    everything.show(
        *(key, sealed, custody, custody._sealer, VaultSigner(custody, key)),
        *(Wallet(canary.KEYPAIR), Wallet(canary.KEYPAIR).secret(), custody._open(key)),
        *(pilot, pilot.app, pilot.app.projects, pilot.app.webhooks, pilot.app.deliveries),
        *(make.settings(database), make.WRAPPING_KEY),
    )


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


async def stored_key(app: App, address: str) -> SealedKey:
    row = await app.database.pool.fetchrow(
        "SELECT vault_id, address, version, wrapping_key_id, wrapped_data_key, sealed_secret"
        "  FROM vault_keys"
        " WHERE address = $1",
        address,
    )
    assert row is not None
    return SealedKey(**row)


def secrets_of(*keys: SealedKey) -> set[str]:
    """What must not be told: the canaries, the data keys that sealed them, and wrapping keys."""
    told = canary.traces(OLD.secret) | canary.traces(NEW.secret)
    for keypair in (canary.KEYPAIR, canary.FEE_PAYER):
        told |= canary.traces_of_keypair(keypair)
    for key in keys:
        bound_to = f"pilot vault key 1 {key.vault_id} {key.address}".encode()
        sealed = Sealed(key.version, key.wrapping_key_id, key.wrapped_data_key, key.sealed_secret)
        told |= canary.traces(bytes(Sealer(OLD)._unwrap(sealed, bound_to)))
    return told


@pytest.mark.full
async def test_nothing_tells_a_vaults_key(
    database: str,
    server: Server,
    everything: Everything,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No answer, error, log, repr, traceback with its variables, dump, or command."""
    monkeypatch.setattr(custody_module, "Keypair", canary.Known(canary.KEYPAIR))
    direct = server_url(database, server)
    async with serving(database, duties=True, database_pooler=server.pooler) as pilot:
        await live(pilot, everything)
        key = await stored_key(pilot.app, canary.ADDRESS)
        await sign(everything, pilot, key)
        look_at(everything, pilot, key, database)
        everything.add("dump", await asyncio.to_thread(dump, direct))
        everything.add("commands", await asyncio.to_thread(pilot_says, database, server))
        everything.add("dump", await asyncio.to_thread(dump, direct))
    everything.add("log", caplog.text)
    everything.add_log(caplog.records)

    assert everything.reveals(secrets_of(key)) == {}
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


# --- on chain -------------------------------------------------------------------------

URL_KEYS: Final = frozenset(
    {
        *("userkey111", "passkey222", "path-key-333", "querykey444"),
        base64.b64encode(b"userkey111:passkey222").decode(),
    }
)
SAID: Final = f"unknown keys {' '.join(sorted(URL_KEYS))}"
FRIEND: Final = str(Keypair.from_seed(bytes(31) + b"f").pubkey())
STRANGER: Final = str(Keypair.from_seed(bytes(31) + b"s").pubkey())


def keyed(url: str) -> str:
    """The URL of a node as providers of RPC nodes give it to their customers."""
    place = url.replace("http://", "http://userkey111:passkey222@").rstrip("/")
    return f"{place}/v2/path-key-333/?api-key=querykey444"


@dataclass
class Life:
    """A vault on a chain, its owner, and an agent that pays out of it."""

    pilot: Pilot
    net: localnet.Localnet
    everything: Everything
    owner: Client
    agent: Client
    project_id: str
    vault_id: str
    agent_id: str

    async def ask(self, message: Message, code: str = "OK") -> Any:
        return await call(self.everything, self.owner, message, code)

    async def spend(self, amount: int, **fields: Any) -> ledger_pb2.Event:
        request = ledger_pb2.SpendRequest(amount=amount, request_id=fresh(), **fields)
        event: ledger_pb2.Event = (await call(self.everything, self.agent, request)).event
        return event

    async def vault(self) -> vaults_pb2.Vault:
        answer = await self.ask(vaults_pb2.GetVaultRequest(vault_id=self.vault_id))
        vault: vaults_pb2.Vault = answer.vault
        return vault

    async def decided(self, event: ledger_pb2.Event) -> ledger_pb2.Event:
        """Wait until the chain has decided about a payment."""
        assert event.status == ledger_pb2.EVENT_STATUS_PENDING
        while event.status == ledger_pb2.EVENT_STATUS_PENDING:
            await asyncio.sleep(0.02)
            event = (await self.ask(ledger_pb2.GetEventRequest(event_id=event.id))).event
        return event

    async def paid(self, event: ledger_pb2.Event) -> None:
        """Wait until a payment is confirmed."""
        assert (await self.decided(event)).status == ledger_pb2.EVENT_STATUS_CONFIRMED

    async def takes_out(self, request: type[Any], amount: int) -> None:
        """Let the owner withdraw or settle."""
        message = request(
            vault_id=self.vault_id, amount=amount, recipient=FRIEND, request_id=fresh()
        )
        await self.paid((await self.ask(message)).event)


async def begin(
    pilot: Pilot, net: localnet.Localnet, everything: Everything, hook: HttpServer
) -> Life:
    """Make the vault that is the canary's, with USDC in it, and an agent with a webhook."""
    _, owner = await pilot.user()
    made = await call(everything, owner, projects_pb2.CreateProjectRequest(name="P"))
    agent_id = await new_agent(owner, made.project.id)
    life = Life(
        *(pilot, net, everything, owner, await with_key(owner, agent_id)),
        *(made.project.id, made.project.vault_id, agent_id),
    )
    for message in (
        vaults_pb2.GetDepositAddressRequest(vault_id=life.vault_id, amount=5),
        agents_pb2.AddRecipientRequest(agent_id=agent_id, address=FRIEND, label="Friend"),
        budgets_pb2.SetBudgetRuleRequest(
            agent_id=agent_id, per_tx_limit=10**12, daily_limit=10**12, any_recipient=True
        ),
        agents_pb2.UpdateAgentRequest(
            agent_id=agent_id,
            webhook_url=hook.url(),
            update_mask=FieldMask(paths=["webhook_url"]),
        ),
        agents_pb2.IssueWebhookSecretRequest(agent_id=agent_id),
    ):
        await life.ask(message)
    net.faucet(canary.KEYPAIR.pubkey(), 10_000_000)
    while not (await life.vault()).chain_balance:  # noqa: ASYNC110 - the chain signals nobody
        await asyncio.sleep(0.02)
    return life


async def pay(life: Life) -> None:
    """Pay all that can be paid, and be refused."""
    await life.paid(await life.spend(1_000_000, recipient=FRIEND))
    refused = await life.decided(await life.spend(5, recipient=STRANGER))
    assert refused.failure_reason == ledger_pb2.FAILURE_REASON_RECIPIENT_HAS_NO_ACCOUNT
    await life.takes_out(vaults_pb2.WithdrawRequest, 500_000)
    await life.spend(300_000)
    await life.takes_out(vaults_pb2.SettleRequest, 300_000)


async def pay_where_it_goes_wrong(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """At a node that errs and tells our keys, and while the vault's seal is broken."""
    life.net.faults.add(
        Fault(Kind.ERROR, "getMultipleAccounts", code=-32602, message=SAID),
        Fault(Kind.ERROR, "simulateTransaction", code=-32005, message=SAID, data=SAID),
        Fault(Kind.WRONG_TYPE, "getLatestBlockhash"),
        Fault(Kind.UNAVAILABLE, "getSignatureStatuses", retry_after="0"),
        Fault(Kind.APPLY_THEN_DISCONNECT, "sendTransaction"),
    )
    await life.paid(await life.spend(1_000, recipient=FRIEND))
    life.net.faults.clear()
    async with life.pilot.pool.acquire() as conn:
        await conn.execute(TURN_SEALS_ROUND)
        event = await life.spend(1_001, recipient=FRIEND)
        while "the seal was changed" not in caplog.text:  # noqa: ASYNC110 - nor a log
            await asyncio.sleep(0.02)
        await conn.execute(TURN_SEALS_ROUND)
    await life.paid(event)


TURN_SEALS_ROUND: Final = """
UPDATE vault_keys
   SET sealed_secret = overlay(
           sealed_secret PLACING set_byte('\\x00'::bytea, 0, 255 - get_byte(sealed_secret, 0))
           FROM 1 FOR 1
       )
 WHERE vault_id <> 'fee-payer'
"""


async def be_robbed(life: Life) -> None:
    """Let somebody else pay with the vault's key; the vault stops until that is acknowledged."""
    reconcile = vaults_pb2.ReconcileVaultRequest(vault_id=life.vault_id)
    assert not (await life.ask(reconcile)).HasField("drift")
    thief = Payer(vault=canary.KEYPAIR)
    life.net.airdrop(thief.fees.pubkey(), SOL)
    async with connected(life.net.url) as rpc:
        await rpc.finalized(life.net.faucet(thief.fees.pubkey(), 1))
        blockhash = await rpc.blockhash()
        payment = thief.payment(Pubkey.from_string(FRIEND), 700_000, blockhash)
        await rpc.finalized(await rpc.send(payment))
    drift = (await life.ask(reconcile)).drift
    assert drift.amount == -700_000
    stopped = await life.spend(5, recipient=FRIEND)
    assert stopped.failure_reason == ledger_pb2.FAILURE_REASON_VAULT_STOPPED
    withdraw = vaults_pb2.WithdrawRequest(
        vault_id=life.vault_id, amount=5, recipient=FRIEND, request_id=fresh()
    )
    await life.ask(withdraw, "FAILED_PRECONDITION")
    await life.ask(
        vaults_pb2.AcknowledgeDriftRequest(
            vault_id=life.vault_id, drift_id=drift.id, amount=drift.amount, request_id=fresh()
        )
    )
    await life.paid(await life.spend(2_000, recipient=FRIEND))


async def be_told(life: Life, hook: HttpServer) -> None:
    """Read all that there is to be read, and wait until the webhook was told as much."""
    for message in (
        *(
            projects_pb2.GetProjectRequest(project_id=life.project_id),
            ledger_pb2.ListEventsRequest(vault_id=life.vault_id),
            ledger_pb2.VerifyLedgerRequest(vault_id=life.vault_id),
            agents_pb2.ListRecipientsRequest(agent_id=life.agent_id),
        ),
    ):
        await life.ask(message)
    webhook = agents_pb2.GetWebhookRequest(agent_id=life.agent_id)
    while (await life.ask(webhook)).webhook.behind_count:  # noqa: ASYNC110 - nor does a webhook
        await asyncio.sleep(0.02)
    for request in hook.requests:
        life.everything.add("webhooks", f"{request.target} {request.headers} {request.body!r}")


async def look_at_payments(life: Life) -> None:
    """Show what pays, and what was paid, as a debugger would."""
    settlement = life.pilot.app.settlement
    assert settlement is not None
    signers = settlement.transfers._signers
    row = await life.pilot.pool.fetchrow("SELECT * FROM transfer_signatures LIMIT 1")
    assert row is not None
    sent = Sent(row["signature"], row["transaction"], row["last_valid_block_height"], row["slot"])
    signed = Signed(sent.signature, sent.transaction, row["blockhash"], 1, 1)
    transfer = Transfer(
        *(EventId("e"), VaultId("v"), None, canary.ADDRESS, FRIEND, 1),
        *(False, True, timedelta(1), 1, sent),
    )
    payment = Payment("e", canary.ADDRESS, FRIEND, 1, settlement.chain.usdc_mint)
    settings = make.settings("", solana_rpc_urls=(keyed("http://node"),))
    place = EndpointSettings(url=keyed("http://node"), headers={"X-Token": "path-key-333"})
    # Their variables are what was configured.
    life.everything.add("reprs", f"{settings!r} {settings} {place!r} {[place]}")
    life.everything.show(
        *(sent, signed, transfer, payment),
        *(settlement, settlement.chain, settlement.chain.rpc, settlement.transfers),
        *(settlement.deposits, settlement.reconciler, settlement.fee_payer, signers),
        *(signers.custody, signers.fee_payer, await signers.of(VaultId(life.vault_id))),
    )


async def serve_and_pay(life: Life, process: Process, log: Path) -> str:
    """Let another process pay, at its loudest; return all that it wrote."""
    with log.open("wb") as output:
        process.output = output
        process.start()
        try:
            async with channel_to(process) as channel:
                credential = life.agent.credential
                agent = Client(channel, credential)
                for amount in (3_000, 3_001):
                    request = ledger_pb2.SpendRequest(
                        amount=amount, request_id=fresh(), recipient=FRIEND
                    )
                    event = (await call(life.everything, agent, request)).event
                    while event.status == ledger_pb2.EVENT_STATUS_PENDING:
                        await asyncio.sleep(0.02)
                        got = ledger_pb2.GetEventRequest(event_id=event.id)
                        event = (await call(life.everything, agent, got)).event
                    assert event.status == ledger_pb2.EVENT_STATUS_CONFIRMED
        finally:
            await asyncio.to_thread(process.stop)
    return log.read_text()


@pytest.mark.parametrize("payer", first_of(["sealed", "keychain"]))
async def test_nothing_tells_the_keys_that_pay(
    database: str,
    server: Server,
    everything: Everything,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    payer: str,
) -> None:
    """A deposit, payments, a theft: none of it in answers, streams, webhooks, logs and dumps.

    The fees are paid by a sealed key, or else by the vault, with the key out of a file.
    """
    known = [canary.KEYPAIR] if payer == "keychain" else [canary.FEE_PAYER, canary.KEYPAIR]
    monkeypatch.setattr(custody_module, "Keypair", canary.Known(*known))
    file = keychain_file(tmp_path / "fee-payer.json", {"keypair": [*bytes(canary.KEYPAIR)]})
    fee_payer: dict[str, Any] = {"fee_payer_keychain_file": file} if payer == "keychain" else {}
    async with localnet.running(None, slot_ms=20, finalized_slots=4) as net, http_server() as hook:
        async with serving(
            database,
            duties=True,
            database_pooler=server.pooler,
            solana_rpc_urls=(keyed(net.url),),
            solana_poll=timedelta(milliseconds=20),
            webhooks_allow_private=True,
            **fee_payer,
        ) as pilot:
            life = await begin(pilot, net, everything, hook)
            watching = {"project_id": life.project_id, "start": ledger_pb2.STREAM_START_EARLIEST}
            async with life.owner.subscribe(**watching) as subscriber:
                await pay(life)
                await pay_where_it_goes_wrong(life, caplog)
                await be_robbed(life)
                await be_told(life, hook)
                revision = (await life.vault()).revision
                await subscriber.next(revision)
            everything.add("stream", f"{subscriber.responses!r}")
            await look_at_payments(life)
            keys = [await stored_key(pilot.app, str(each.pubkey())) for each in known]
        environ = {
            "PILOT_LOG_LEVEL": "debug",
            "PILOT_SOLANA_RPC_URLS": keyed(net.url),
            "PILOT_RECONCILE_SECONDS": "1",
        }
        for log_format in ("text", "json"):
            environ["PILOT_LOG_FORMAT"] = log_format
            if payer == "keychain":
                environ["PILOT_FEE_PAYER_KEYCHAIN_FILE"] = str(file)
            process = Process(server, database, environ=environ)
            log = await serve_and_pay(life, process, tmp_path / "log")
            everything.add("processes", log)
    everything.add("dump", await asyncio.to_thread(dump, server_url(database, server)))
    everything.add("log", caplog.text)
    everything.add_log(caplog.records)

    assert everything.reveals(secrets_of(*keys) | URL_KEYS) == {}
    assert set(everything.texts) == {
        *("answers", "errors", "stream", "webhooks", "reprs", "processes", "dump", "log")
    }
    # What was looked at is what it should be.
    for name in ("stream", "dump", "webhooks"):
        assert FRIEND in everything.texts[name]
    assert "unknown keys *** *** *** *** ***" in everything.texts["log"]
    assert '"level": "debug"' in everything.texts["processes"]
    assert " DEBUG " in everything.texts["processes"]
    for key in keys:
        assert key.sealed_secret.hex() in everything.texts["dump"]
        assert key.address in everything.texts["reprs"]


ASKED: Final = (
    *("getSlot", "getBlockHeight", "getBalance", "getAccountInfo", "getMultipleAccounts"),
    *("getSignaturesForAddress", "getSignatureStatuses", "getLatestBlockhash"),
)


@pytest.mark.parametrize("code", first_of([-32602, -32005, 429]))
async def test_what_a_node_says_of_our_keys_reaches_nobody(
    database: str,
    server: Server,
    everything: Everything,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    """Every answer of the only node is an error that repeats them: here, and to who reconciles."""
    genesis = {"getGenesisHash": [result(EMBEDDED_GENESIS_HASH)]}
    async with (
        node(**genesis, **{method: [error(code, SAID)] for method in ASKED}) as one,
        serving(
            database,
            duties=True,
            database_pooler=server.pooler,
            solana_rpc_urls=(keyed(one.url),),
            solana_poll=timedelta(milliseconds=20),
        ) as pilot,
    ):
        user_id, owner = await pilot.user()
        made = await call(everything, owner, projects_pb2.CreateProjectRequest(name="P"))
        reconcile = vaults_pb2.ReconcileVaultRequest(vault_id=made.project.vault_id)
        await call(everything, owner, reconcile, "UNAVAILABLE")
        user = Caller(CredentialKind.SESSION, UserId(user_id), "")
        with pytest.raises(ChainUnavailable) as failed:
            await pilot.app.vaults.reconcile(user, VaultId(made.project.vault_id))
        everything.add("errors", canary.all_of(failed.value))
    everything.add_log(caplog.records)

    assert everything.reveals(set(URL_KEYS)) == {}
    # Those who are to come again later are not asked so often that all is logged.
    assert code != -32602 or "unknown keys *** *** *** *** ***" in everything.texts["log"]
    assert one.server.requests[-1].target == "/v2/path-key-333/?api-key=querykey444"


def keychain_file(path: Path, content: object) -> Path:
    path.write_text(json.dumps({"backend": "memory", "config": content}))
    return path


async def test_settings_that_are_refused_tell_no_key(
    everything: Everything, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of the environment, nor the file that has the fee payer's key."""
    environ = {
        "PILOT_LANES": "none",
        "PILOT_WRAPPING_KEY": base64.b64encode(OLD.secret).decode(),
        "PILOT_WRAPPING_KEY_ID": "2026 12",
        "PILOT_OLD_WRAPPING_KEYS": f"new={base64.b64encode(NEW.secret).decode()},",
        "PILOT_SOLANA_RPC_URLS": keyed("http://node") + " " + keyed("http://node"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ()
    everything.add("errors", canary.all_of(refused.value))
    for secret in ([*bytes(canary.KEYPAIR)[:-1]], str(canary.KEYPAIR)):
        content = {"keypair": secret}
        settings = make.settings(
            "", fee_payer_keychain_file=keychain_file(tmp_path / "fee-payer.json", content)
        )
        with pytest.raises(SettingsError, match="PILOT_FEE_PAYER_KEYCHAIN_FILE") as refused:
            await fee_payer_of(settings, db)
        everything.add("errors", canary.all_of(refused.value))

    assert everything.reveals(secrets_of() | URL_KEYS) == {}
    assert "PILOT_SOLANA_RPC_URLS must be" in everything.texts["errors"]


STEPS_OF: Final = (
    *("services/transfers.py", "services/chain.py", "solana/payments.py"),
    *("solana/custody.py", "solana/signing.py", "pilot_grpc/sealing.py"),
)
FORGET_SIGNATURES: Final = """
WITH forgotten AS (
    DELETE FROM transfer_signatures
)
UPDATE pending_transfers
   SET signature = NULL
"""


# It takes as many payments as a payment has steps. What fails before it is awaited never is.
@pytest.mark.full
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_no_step_of_a_payment_tells_a_key_when_it_fails(
    database: str,
    server: Server,
    everything: Everything,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each line that judges, signs, stores or sends fails once, and all variables are looked at.

    So does each that makes the fee payer's key, and that looks after its SOL.
    """
    known = canary.Known(canary.FEE_PAYER, canary.KEYPAIR)
    monkeypatch.setattr(custody_module, "Keypair", known)
    async with (
        localnet.running(None, manual=True) as net,
        make.app(database, database_pooler=server.pooler, solana_rpc_urls=(keyed(net.url),)) as app,
    ):
        assert app.settlement is not None
        transfers, fee_payer = app.settlement.transfers, app.settlement.fee_payer
        spender = await make.agent(app, vault_balance=0)
        net.faucet(canary.KEYPAIR.pubkey(), 5_000_000)
        net.airdrop(canary.FEE_PAYER.pubkey(), SOL)
        net.finalize()
        await app.settlement.deposits.begin()
        await app.settlement.reconciler.reconcile(spender.vault_id)
        await app.agents.add_recipient(spender.owner, spender.agent_id, FRIEND, None)
        event = await make.spend(app, spender, 1, recipient=FRIEND)
        async with app.database.transaction() as conn:
            await transfers_db.claim(conn, transfers._worker, timedelta(hours=1), 1)
            (transfer,) = await transfers_db.select_transfers(conn, [event.id], transfers._worker)
        keys = [
            await stored_key(app, str(each.pubkey())) for each in (canary.KEYPAIR, canary.FEE_PAYER)
        ]

        async def pay() -> None:
            transfers._work.followed.clear()
            await app.database.pool.execute(FORGET_SIGNATURES)
            await transfers._pay(transfer)

        async def make_key() -> None:
            monkeypatch.setattr(custody_module, "Keypair", canary.Known(canary.FEE_PAYER))
            await app.database.pool.execute("DELETE FROM vault_keys WHERE vault_id = $1", FEE_PAYER)
            await sealed_fee_payer(app.database, Custody(Sealer(OLD)))

        steps = {}
        for work in (pay, make_key, fee_payer.check):
            steps[work.__name__] = 0
            async for failed in canary.sabotaged_services(work, *STEPS_OF):
                steps[work.__name__] += 1
                everything.add("errors", canary.all_of(failed or Exception("none")))
                everything.add_log(caplog.records)
                for record in caplog.records:
                    record.exc_info = None  # It holds what failed, long after the test.
                caplog.clear()
        paid = await app.database.pool.fetchval("SELECT count(*) FROM transfer_signatures")

    assert everything.reveals(secrets_of(*keys) | URL_KEYS) == {}
    assert "Sabotage" in everything.texts["errors"]
    assert "Sabotage" in everything.texts["log"]
    assert steps["pay"] > 300
    assert steps["make_key"] > 30
    assert steps["check"] > 3
    assert paid == 1
    gc.collect()


def test_a_text_that_tells_is_found_by_its_name() -> None:
    everything = Everything()
    everything.add("here", f"something {canary.KEYPAIR} something")
    everything.add("there", "nothing")

    assert set(everything.reveals(canary.traces_of_keypair(canary.KEYPAIR))) == {"here"}
