"""Credentials: recognised, remembered for a moment, counted, and refused once revoked."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from pilot_grpc import errors
from pilot_grpc.bootstrap import App
from pilot_grpc.db import accounts as accounts_db
from pilot_grpc.db.connection import Connection
from pilot_grpc.domain.accounts import Caller, CredentialKind, Permission
from pilot_grpc.services import credentials as credentials_service
from pilot_grpc.services.credentials import Credentials, hash_secret, new_secret
from pilot_grpc.services.requests import Once
from tests import make


class Seconds:
    """A clock in seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
def credentials(app: App, clock: Seconds) -> Credentials:
    return Credentials(app.database, app.database, clock)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[CredentialKind]:
    """What was looked up in the database."""
    select_caller, seen = accounts_db.select_caller, []

    async def select(conn: Connection, kind: CredentialKind, credential_hash: str) -> Any:
        seen.append(kind)
        return await select_caller(conn, kind, credential_hash)

    monkeypatch.setattr(accounts_db, "select_caller", select)
    return seen


async def api_key(app: App, *permissions: Permission) -> tuple[Caller, str, str]:
    """A user, the id of their API key, and its secret."""
    user = await make.owner(app)
    key, secret = await app.accounts.create_api_key(make.once(user), "Key", permissions, None)
    return user, key.id, secret


@pytest.mark.parametrize("kind", list(CredentialKind))
def test_a_credential_is_random_behind_the_prefix_of_its_kind(kind: CredentialKind) -> None:
    """256 bits, and stored only as a SHA-256."""
    made = {new_secret(kind) for _ in range(100)}

    assert len(made) == 100
    assert all(re.fullmatch(rf"{kind}[\w-]{{43}}", secret) for secret in made)
    assert re.fullmatch(r"[0-9a-f]{64}", hash_secret(made.pop()))


async def test_an_agent_key_tells_its_agent_its_project_and_its_vault(app: App) -> None:
    agent = await make.agent(app)

    assert await app.credentials.authenticate(agent.key) == agent.caller


async def test_an_api_key_tells_its_permissions(app: App) -> None:
    user, key_id, secret = await api_key(app, Permission.READ, Permission.EXECUTE)

    caller = await app.credentials.authenticate(secret)

    assert (caller.kind, caller.user_id) == (CredentialKind.API_KEY, user.user_id)
    assert caller.credential_id == key_id
    assert caller.permissions == {Permission.READ, Permission.EXECUTE}


@pytest.mark.parametrize(
    "credential",
    ["", "ps_", "xx_0123456789", "pk_unknown", "pa_unknown", "ps_unknown", "pa_" + "x" * 10_000],
)
async def test_what_nobody_has_is_refused(app: App, credential: str) -> None:
    with pytest.raises(errors.CredentialInvalid):
        await app.credentials.authenticate(credential)


async def test_a_credential_of_one_kind_is_none_of_another(app: App) -> None:
    """The same secret behind another prefix is unknown."""
    agent = await make.agent(app)

    for kind in (CredentialKind.SESSION, CredentialKind.API_KEY):
        with pytest.raises(errors.CredentialInvalid):
            await app.credentials.authenticate(kind + agent.key[3:])


async def test_many_who_ask_at_once_cost_one_look_up(
    app: App, credentials: Credentials, clock: Seconds, reads: list[CredentialKind]
) -> None:
    """And one more each half second, however busy the credential is."""
    agent = await make.agent(app)

    for _ in range(3):
        await asyncio.gather(*(credentials.authenticate(agent.key) for _ in range(50)))
        clock.now += 0.2
    assert len(reads) == 1

    clock.now += 0.1
    await credentials.authenticate(agent.key)
    assert len(reads) == 2


async def test_a_revoked_key_is_refused_within_half_a_second_on_every_process(
    app: App, other: App, credentials: Credentials, clock: Seconds
) -> None:
    """What another process revoked is remembered no longer than that."""
    agent = await make.agent(app)
    await credentials.authenticate(agent.key)
    await other.agents.revoke_key(agent.owner, agent.agent_id)

    clock.now += credentials_service.REMEMBERED_SECONDS

    with pytest.raises(errors.CredentialInvalid):
        await credentials.authenticate(agent.key)
    assert credentials_service.REMEMBERED_SECONDS < 1


async def test_a_caller_that_gives_up_takes_nobody_with_it(
    app: App, credentials: Credentials
) -> None:
    """The look-up that others wait for goes on."""
    agent = await make.agent(app)

    first = asyncio.create_task(credentials.authenticate(agent.key))
    second = asyncio.create_task(credentials.authenticate(agent.key))
    await asyncio.sleep(0)
    first.cancel()

    assert await second == agent.caller
    assert first.cancelled()


@pytest.mark.parametrize("failure", [errors.DatabaseUnavailable, errors.Overloaded, OSError])
async def test_a_failed_look_up_is_not_remembered(
    app: App,
    credentials: Credentials,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[], Exception],
) -> None:
    """The next request asks again, and is let in."""
    agent = await make.agent(app)

    def away() -> AbstractAsyncContextManager[Connection]:
        raise failure()

    with monkeypatch.context() as patch:
        patch.setattr(type(app.database), "transaction", lambda _: away())
        with pytest.raises((errors.PilotError, OSError)):
            await credentials.authenticate(agent.key)

    assert await credentials.authenticate(agent.key) == agent.caller


async def test_only_so_many_are_remembered(
    app: App, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_service, "REMEMBERED_MAX", 2)

    for number in range(5):
        with pytest.raises(errors.CredentialInvalid):
            await credentials.authenticate(f"pk_{number}")

    assert len(credentials._known) == 2


async def test_every_use_of_an_api_key_is_counted_without_a_write_each(
    app: App, other: App
) -> None:
    """Twenty on one process and ten on another are thirty, written once a second."""
    user, key_id, secret = await api_key(app, Permission.READ)
    for place, uses in ((app, 20), (other, 10)):
        for _ in range(uses):
            await place.credentials.authenticate(secret)

    await asyncio.gather(app.credentials.write_uses(), other.credentials.write_uses())
    await app.credentials.write_uses()

    (key,) = await app.accounts.list_api_keys(user, None, 10)
    assert (key.id, key.request_count) == (key_id, 30)
    assert key.last_used_at is not None


async def test_uses_that_could_not_be_written_are_written_later(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, _, secret = await api_key(app, Permission.READ)
    await app.credentials.authenticate(secret)

    def away() -> AbstractAsyncContextManager[Connection]:
        raise errors.DatabaseUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(type(app.database), "transaction", lambda _: away())
        with pytest.raises(errors.DatabaseUnavailable):
            await app.credentials.write_uses()
    await app.credentials.write_uses()

    (key,) = await app.accounts.list_api_keys(user, None, 10)
    assert key.request_count == 1


async def test_a_key_is_made_once_and_its_secret_shown_once(app: App, other: App) -> None:
    """The repetition tells the same key without its secret."""
    user = await make.owner(app)
    once = Once(user.user_id, "r1", "CreateApiKey", "")

    made = await asyncio.gather(
        *(
            place.accounts.create_api_key(once, "Key", [Permission.READ], None)
            for place in (app, other) * 3
        )
    )

    assert len({key.id for key, _ in made}) == 1
    secrets = [secret for _, secret in made if secret]
    assert len(secrets) == 1
    stored = await app.database.pool.fetchval(
        "SELECT requests.*::text FROM requests WHERE user_id = $1", user.user_id
    )
    assert secrets[0] not in stored
    assert hash_secret(secrets[0]) not in stored
