"""Webhooks: what owners do with them, and how one message is signed and sent.

`services/deliveries.py` sends the changes themselves.
"""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Final

from standardwebhooks import Webhook as Signature

from pilot_grpc import errors
from pilot_grpc.db import stream as stream_db
from pilot_grpc.db import webhooks as webhooks_db
from pilot_grpc.db.connection import Database
from pilot_grpc.db.webhooks import StoredSecret
from pilot_grpc.domain.accounts import Caller
from pilot_grpc.domain.agents import Agent
from pilot_grpc.domain.ids import AgentId
from pilot_grpc.domain.webhooks import (
    ERROR_CHARACTERS_MAX,
    SECRET_BYTES,
    SECRET_PREFIX,
    SECRETS_MAX,
    Attempt,
    Webhook,
)
from pilot_grpc.sealing import SealBroken, Sealer
from pilot_grpc.services.agents import lock_agent_and_vault, own_agent
from pilot_grpc.services.outbound import DeliveryError, Outbound, must_be_allowed
from pilot_grpc.services.stream import trimmed

PURPOSE: Final = "webhook secret"
TEST_TYPE: Final = "webhook.test"

TESTS_AT_ONCE_MAX: Final = 16
TEST_SECONDS_MAX: Final = 8.0
RETRY_SECONDS: Final = 1.0

_CONTENT_TYPE: Final = "application/json"
_HTTP_OK: Final = range(200, 300)

SECRET_LOST: Final = "the secret was sealed with another wrapping key; issue a new one"  # noqa: S105


def must_be_callable(url: str, *, allow_private: bool) -> None:
    """Raise InvalidRequest for a webhook_url to which nothing would ever be sent."""
    try:
        must_be_allowed(url, allow_private=allow_private)
    except ValueError as error:
        raise errors.InvalidRequest([("webhook_url", str(error))]) from None


class Signer:
    """An agent's secrets: each signs until it expires."""

    def __init__(
        self,
        sealer: Sealer,
        agent_id: AgentId,
        stored: Sequence[StoredSecret],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the secrets; those that were sealed with another wrapping key are left out."""
        self._monotonic = monotonic
        self._secrets: list[tuple[Signature, float]] = []
        now = monotonic()
        for sealed, seconds_left in stored:
            with suppress(SealBroken):
                signature = Signature(sealer.open(sealed, PURPOSE, agent_id).decode())
                self._secrets.append(
                    (signature, inf if seconds_left is None else now + seconds_left)
                )

    def sign(self, message: str, at: datetime, body: str) -> str:
        """Return the signatures of a message, separated by spaces; empty without a secret."""
        now = self._monotonic()
        return " ".join(
            signature.sign(message, at, body) for signature, ends in self._secrets if now < ends
        )


@dataclass(frozen=True, slots=True)
class Sender:
    """Signs a message by the Standard Webhooks specification, and sends it once."""

    outbound: Outbound
    monotonic: Callable[[], float] = time.monotonic

    async def send(self, url: str, message: str, body: bytes, signer: Signer) -> Attempt:
        """Send a message under its id, and say what became of it, whatever goes wrong."""
        now = datetime.now(UTC)
        signed = signer.sign(message, now, body.decode())
        if not signed:
            return Attempt(None, SECRET_LOST, timedelta(0))
        headers = {
            "content-type": _CONTENT_TYPE,
            "webhook-id": message,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signed,
        }
        begun = self.monotonic()
        try:
            reply = await self.outbound.post(url, body, headers)
        except DeliveryError as error:
            return Attempt(None, str(error)[:ERROR_CHARACTERS_MAX], self._since(begun))
        refused = None if reply.status in _HTTP_OK else f"answered with status {reply.status}"
        return Attempt(reply.status, refused, self._since(begun), reply.retry_after)

    def _since(self, begun: float) -> timedelta:
        return timedelta(seconds=self.monotonic() - begun)


class Webhooks:
    """What owners do with the webhooks of their agents."""

    def __init__(
        self,
        database: Database,
        sender: Sender,
        sealer: Sealer,
        new_id: Callable[[], str],
        test_seconds: float = TEST_SECONDS_MAX,
    ) -> None:
        """Take who sends and who seals, and how long a test waits for its answer."""
        self._database = database
        self._sender = sender
        self._sealer = sealer
        self._new_id = new_id
        self._test_seconds = test_seconds
        self._testing = 0

    async def get(self, caller: Caller, agent_id: AgentId) -> Webhook:
        """Read how an agent's deliveries go. Raises NotFound, WebhookNotSet."""
        async with self._database.transaction() as conn:
            return _set(await own_agent(conn, agent_id, caller.user_id))

    async def issue_secret(self, caller: Caller, agent_id: AgentId, overlap: timedelta) -> str:
        """Give an agent a new secret; those before it sign until the overlap ends.

        Raises NotFound.
        """
        secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
        sealed = self._sealer.seal(secret.encode(), PURPOSE, agent_id)
        async with self._database.transaction() as conn:
            _, vault = await lock_agent_and_vault(conn, agent_id, caller.user_id)
            await webhooks_db.insert_webhook(conn, agent_id, vault)
            await webhooks_db.insert_secret(
                conn, agent_id, self._new_id(), sealed, overlap, SECRETS_MAX
            )
            await webhooks_db.rewind_webhook(conn, agent_id, None)
        return secret

    async def send_test(self, caller: Caller, agent_id: AgentId) -> Attempt:
        """Send a message that is no change. Deliveries go on as if it had not been.

        Raises NotFound, WebhookNotSet, WebhookNeedsSecret, Overloaded.
        """
        if self._testing >= TESTS_AT_ONCE_MAX:
            raise errors.Overloaded(retry_after=RETRY_SECONDS)
        self._testing += 1
        try:
            return await self._send_test(caller, agent_id)
        finally:
            self._testing -= 1

    async def _send_test(self, caller: Caller, agent_id: AgentId) -> Attempt:
        async with self._database.transaction() as conn:
            agent = await own_agent(conn, agent_id, caller.user_id)
            stored = (await webhooks_db.select_secrets(conn, [agent_id])).get(agent_id)
        if agent.webhook_url is None:
            raise errors.WebhookNotSet
        if not stored:
            raise errors.WebhookNeedsSecret
        signer = Signer(self._sealer, agent_id, stored)
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        body = {"type": TEST_TYPE, "timestamp": now, "data": {"agent_id": agent_id}}
        message = f"test_{self._new_id()}", json.dumps(body).encode()
        try:
            async with asyncio.timeout(self._test_seconds):
                return await self._sender.send(agent.webhook_url, *message, signer)
        except TimeoutError:
            error = f"timed_out: no response within {self._test_seconds:g} seconds"
            return Attempt(None, error, timedelta(seconds=self._test_seconds))

    async def redeliver(self, caller: Caller, agent_id: AgentId, revision: int) -> Webhook:
        """Deliver an agent's changes from a revision on again; none is ever skipped.

        Raises NotFound, WebhookNotSet, InvalidRequest, ChangesTrimmed.
        """
        async with self._database.transaction() as conn:
            agent, vault = await lock_agent_and_vault(conn, agent_id, caller.user_id)
            _set(agent)
            if revision > vault.revision:
                limit = f"must be at most {vault.revision}, the vault's revision"
                raise errors.InvalidRequest([("from_revision", limit)])
            spans = await stream_db.select_spans(conn, caller.user_id, vault.id)
            if revision <= spans[vault.id].trimmed.revision:
                raise trimmed(spans[vault.id])
            await webhooks_db.insert_webhook(conn, agent_id, vault)
            await webhooks_db.rewind_webhook(conn, agent_id, revision - 1)
            return _set(await own_agent(conn, agent_id, caller.user_id))


def _set(agent: Agent) -> Webhook:
    if agent.webhook is None:
        raise errors.WebhookNotSet
    return agent.webhook
