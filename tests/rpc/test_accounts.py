"""Users, sessions and API keys on the wire."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import argon2
import pytest
from google.protobuf.message import Message

from pilot_grpc.gen.pilot.v1 import accounts_pb2 as pb
from pilot_grpc.gen.pilot.v1 import agents_pb2, projects_pb2
from pilot_grpc.services import accounts
from pilot_grpc.services.accounts import Passwords
from tests.rpc.serving import (
    Client,
    Pilot,
    Refusal,
    Tenant,
    code,
    raw_refusal,
    refusal,
    serving,
    with_key,
)

PASSWORD = "correct horse battery"
INVALID = Refusal("UNAUTHENTICATED", "CREDENTIAL_INVALID")
SIGN_IN_FAILED = Refusal("UNAUTHENTICATED", "SIGN_IN_FAILED")

# A revoked credential works for a second at most.
REVOCATION_SECONDS = 1.0


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def sign_up(pilot: Pilot, email: str = "Ann@Example.com") -> tuple[pb.SignUpResponse, Client]:
    answer = await pilot.nobody(pb.SignUpRequest(email=email, password=PASSWORD, name="Ann"))
    return answer, pilot.nobody.with_credential(answer.session_token)


def sign_in(
    pilot: Pilot, email: str = "ann@example.com", password: str = PASSWORD
) -> Awaitable[Any]:
    answer: Awaitable[Any] = pilot.nobody(pb.SignInRequest(email=email, password=password))
    return answer


async def test_a_user_signs_up_in_and_out(pilot: Pilot) -> None:
    """The address is one whatever its case; each sign-in is a session of its own."""
    up, first = await sign_up(pilot)
    back = await sign_in(pilot, "ANN@example.COM")
    second = first.with_credential(back.session_token)

    assert up.user == back.user
    assert (up.user.email, up.user.name) == ("ann@example.com", "Ann")
    assert up.session.current
    assert back.session.current
    assert up.session.id != back.session.id
    assert up.session.expire_time.seconds - up.session.create_time.seconds == 7 * 24 * 3_600

    await first(pb.SignOutRequest())
    await asyncio.sleep(REVOCATION_SECONDS)
    assert await refusal(first(pb.WhoAmIRequest())) == INVALID
    assert (await second(pb.WhoAmIRequest())).user == up.user


async def test_an_address_signs_up_once(pilot: Pilot) -> None:
    """Also when two ask at the same time, in different case."""
    requests = [
        pb.SignUpRequest(email=email, password=PASSWORD, name="Ann")
        for email in ("ann@example.com", "ANN@EXAMPLE.COM")
    ]

    answers = await asyncio.gather(*(refusal(pilot.nobody(request)) for request in requests))

    assert sorted(answer.code for answer in answers) == ["ALREADY_EXISTS", "OK"]
    assert {answer.reason for answer in answers} == {"", "EMAIL_TAKEN"}
    assert await pilot.pool.fetchval("SELECT count(*) FROM sessions") == 1


async def test_sign_up_can_be_switched_off(database: str) -> None:
    """Nobody joins, and who is in still signs in."""
    async with serving(database) as pilot:
        await sign_up(pilot)
    async with serving(database, sign_up_enabled=False) as pilot:
        refused = await refusal(
            pilot.nobody(pb.SignUpRequest(email="b@example.com", password=PASSWORD, name="Bob"))
        )
        back = await sign_in(pilot)

    assert refused == Refusal("FAILED_PRECONDITION", "SIGN_UP_DISABLED")
    assert back.user.email == "ann@example.com"


async def test_who_am_i_names_each_kind_of_caller(pilot: Pilot) -> None:
    """A session and a key come with their user; an agent learns no more than its user's id."""
    tenant = await pilot.tenant()
    key = await tenant.api_key("read", "execute")

    session, by_key, agent = [
        await caller(pb.WhoAmIRequest()) for caller in (tenant.owner, key, tenant.agent)
    ]

    assert session.session.current
    assert session.user == by_key.user
    assert session.user.id == agent.user.id == tenant.user_id
    assert list(by_key.api_key.permissions) == [pb.PERMISSION_READ, pb.PERMISSION_EXECUTE]
    assert agent == pb.WhoAmIResponse(user=pb.User(id=tenant.user_id), agent_id=tenant.agent_id)


@pytest.mark.parametrize(
    "stored", ["", "!", "plain text", "$argon2id$broken", sha256(PASSWORD), None], ids=repr
)
async def test_a_sign_in_does_not_tell_whether_the_address_exists(
    pilot: Pilot, stored: str | None
) -> None:
    """Whatever is stored for it, or nothing: the same bytes, for the same work."""
    if stored is None:
        await sign_up(pilot)
    else:
        await pilot.user("ann@example.com", stored)

    known = await raw_refusal(sign_in(pilot, password="wrong"))
    unknown = await raw_refusal(sign_in(pilot, "nobody@example.com", password="wrong"))

    assert known == unknown
    assert known[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("stored", [sha256(PASSWORD), "!", None], ids=repr)
async def test_every_sign_in_checks_one_slow_hash(
    pilot: Pilot, stored: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody, or only the older form, is there to check: the time tells nothing."""
    if stored is not None:
        await pilot.user("ann@example.com", stored)
    slow: list[str] = []

    class Counted:
        def verify(self, password_hash: str, password: str) -> bool:
            slow.append(password_hash)
            return hasher.verify(password_hash, password)

    hasher = accounts._ARGON2
    monkeypatch.setattr(accounts, "_ARGON2", Counted())

    assert await refusal(sign_in(pilot, password="wrong")) == SIGN_IN_FAILED
    assert [each.split("$")[1] for each in slow] == ["argon2id"]


async def test_a_password_of_the_older_form_signs_in_and_is_upgraded(pilot: Pilot) -> None:
    """A wrong one does not, and the stored digest itself is no password."""
    user_id, _ = await pilot.user("ann@example.com", sha256(PASSWORD))
    stored = "SELECT password_hash FROM users"

    assert await refusal(sign_in(pilot, password="wrong")) == SIGN_IN_FAILED
    assert await refusal(sign_in(pilot, password=sha256(PASSWORD))) == SIGN_IN_FAILED
    assert await pilot.pool.fetchval(stored) == sha256(PASSWORD)

    assert (await sign_in(pilot)).user.id == user_id
    upgraded = await pilot.pool.fetchval(stored)
    assert upgraded.startswith("$argon2id$")
    assert (await sign_in(pilot)).user.id == user_id
    assert await pilot.pool.fetchval(stored) == upgraded


@pytest.mark.parametrize("email", ["ann@example.com", "nobody@example.com"])
async def test_attempts_for_an_address_are_limited_known_or_not(database: str, email: str) -> None:
    """Ten in five minutes, on all servers together; the right password does not help then."""
    async with serving(database) as pilot, serving(database) as another:
        await pilot.user("ann@example.com", sha256(PASSWORD))
        attempts = [
            await refusal(sign_in(server, address, "wrong"))
            for server in (pilot, another)
            for address in [email] * 4 + [email.upper()]
        ]
        limited = await refusal(sign_in(another, email))
        other_address = await refusal(sign_in(another, "bob@example.com"))

        assert attempts == [SIGN_IN_FAILED] * 10
        assert (limited.code, limited.reason) == ("RESOURCE_EXHAUSTED", "SIGN_IN_LIMITED")
        assert limited.retry_seconds is not None
        assert 200 < limited.retry_seconds <= 300
        assert other_address == SIGN_IN_FAILED

        await pilot.pool.execute(
            "UPDATE sign_in_attempts SET window_started_at = window_started_at - interval '5 min'"
        )
        expected = "OK" if email.startswith("ann") else "UNAUTHENTICATED"
        assert await code(sign_in(another, email)) == expected


async def test_a_sign_in_forgives_the_attempts_before_it(pilot: Pilot) -> None:
    """Nine times wrong, once right, and again: nobody is locked out by a bad memory."""
    await pilot.user("ann@example.com", sha256(PASSWORD))

    for _ in range(2):
        for _ in range(9):
            assert await refusal(sign_in(pilot, password="wrong")) == SIGN_IN_FAILED
        assert await code(sign_in(pilot)) == "OK"


async def test_a_new_password_ends_the_other_sessions(pilot: Pilot) -> None:
    """The one that changes it goes on, and so do API keys; only the new password signs in."""
    _, first = await sign_up(pilot)
    second = first.with_credential((await sign_in(pilot)).session_token)
    key = first.with_credential(
        (await first(pb.CreateApiKeyRequest(name="Key", permissions=[pb.PERMISSION_READ]))).secret
    )
    change = pb.ChangePasswordRequest(current_password=PASSWORD, new_password="another horse")
    wrong = pb.ChangePasswordRequest(current_password="wrong", new_password="another horse")

    refused = await refusal(second(wrong))
    assert refused == Refusal("FAILED_PRECONDITION", "PASSWORD_WRONG")
    assert await code(first(pb.WhoAmIRequest())) == "OK"

    await second(change)
    await asyncio.sleep(REVOCATION_SECONDS)
    assert await refusal(first(pb.WhoAmIRequest())) == INVALID
    assert await code(second(pb.WhoAmIRequest())) == "OK"
    assert await code(key(pb.WhoAmIRequest())) == "OK"
    assert await refusal(sign_in(pilot)) == SIGN_IN_FAILED
    assert await code(sign_in(pilot, password="another horse")) == "OK"


async def test_guessing_the_current_password_is_limited(pilot: Pilot) -> None:
    """A stolen session does not give the password away."""
    _, session = await pilot.user("ann@example.com", sha256(PASSWORD))
    guess = pb.ChangePasswordRequest(current_password="guess", new_password="another horse")

    guesses = [await refusal(session(guess)) for _ in range(11)]

    assert [each.reason for each in guesses] == ["PASSWORD_WRONG"] * 10 + ["SIGN_IN_LIMITED"]
    assert await code(sign_in(pilot)) == "RESOURCE_EXHAUSTED"


async def test_sessions_are_listed_and_revoked_one_by_one(pilot: Pilot) -> None:
    """Newest first, with the one that asks marked; one that has expired is not among them."""
    _, first = await sign_up(pilot)
    second = first.with_credential((await sign_in(pilot)).session_token)
    await sign_in(pilot)
    await pilot.pool.execute(
        "UPDATE sessions SET expires_at = clock_timestamp() WHERE token = $1",
        await pilot.pool.fetchval("SELECT token FROM sessions ORDER BY created_at DESC LIMIT 1"),
    )

    listed = (await second(pb.ListSessionsRequest())).sessions
    assert [session.current for session in listed] == [True, False]
    revoke = pb.RevokeSessionRequest(session_id=listed[1].id)
    await second(revoke)
    await asyncio.sleep(REVOCATION_SECONDS)

    assert await refusal(first(pb.WhoAmIRequest())) == INVALID
    assert await code(second(revoke)) == "NOT_FOUND"
    assert list((await second(pb.ListSessionsRequest())).sessions) == [listed[0]]


async def test_a_session_lasts_as_long_as_configured(database: str) -> None:
    """Until its very end, and not a moment longer."""
    async with serving(database, session_lifetime=timedelta(seconds=90)) as pilot:
        up, session = await sign_up(pilot)
        assert await code(session(pb.WhoAmIRequest())) == "OK"
        await pilot.pool.execute("UPDATE sessions SET expires_at = clock_timestamp()")

    async with serving(database) as restarted:
        expired = restarted.nobody.with_credential(up.session_token)
        assert await refusal(expired(pb.WhoAmIRequest())) == INVALID
    lasting = up.session.expire_time.ToDatetime() - up.session.create_time.ToDatetime()
    assert timedelta(seconds=89) < lasting <= timedelta(seconds=90)


async def test_an_api_key_shows_its_secret_once(pilot: Pilot) -> None:
    """Its first characters tell it apart in the list; the rest is nowhere."""
    _, owner = await pilot.user()
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)

    made = await owner(
        pb.CreateApiKeyRequest(
            name="CI",
            permissions=[pb.PERMISSION_EXECUTE, pb.PERMISSION_READ],
            expire_time=expires,
        )
    )
    listed = await owner(pb.ListApiKeysRequest())

    key = made.api_key
    assert made.secret.startswith("pk_")
    assert len(made.secret) > 40
    assert (key.name, key.key_prefix) == ("CI", made.secret[:8])
    assert list(key.permissions) == [pb.PERMISSION_READ, pb.PERMISSION_EXECUTE]
    assert key.expire_time.ToDatetime(tzinfo=UTC) == expires
    assert not key.HasField("last_used_time")
    assert list(listed.api_keys) == [key]
    assert made.secret[8:] not in str(listed)


async def test_an_api_key_expires(database: str) -> None:
    """On a server that has never seen it at once, on one that has within a second."""
    async with serving(database) as pilot, serving(database) as another:
        tenant = await pilot.tenant()
        key = await tenant.api_key("read")
        assert await code(key(pb.WhoAmIRequest())) == "OK"
        await pilot.pool.execute("UPDATE api_keys SET expires_at = clock_timestamp()")

        elsewhere = another.nobody.with_credential(key.credential)
        assert await refusal(elsewhere(pb.WhoAmIRequest())) == INVALID
        await asyncio.sleep(REVOCATION_SECONDS)
        assert await refusal(key(pb.WhoAmIRequest())) == INVALID


def test_passwords_are_hashed_as_the_library_advises(
    monkeypatch: pytest.MonkeyPatch, real_password_hasher: type[argon2.PasswordHasher]
) -> None:
    """Argon2id with 64 MiB: the other tests hash cheaply."""
    monkeypatch.setattr(argon2, "PasswordHasher", real_password_hasher)
    passwords = Passwords()

    hashed = asyncio.run(passwords.hash(PASSWORD))

    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert asyncio.run(passwords.check(PASSWORD, hashed))
    assert not passwords.is_outdated(hashed)
    assert passwords.is_outdated(argon2.PasswordHasher(time_cost=1).hash(PASSWORD))


async def test_every_use_of_a_key_is_counted(database: str) -> None:
    """On all servers together, refused calls too, within seconds, and none is lost at the end."""
    async with serving(database, duties=True) as pilot:
        tenant = await pilot.tenant()
        key = await tenant.api_key("read")
        async with serving(database) as another:
            elsewhere = another.nobody.with_credential(key.credential)
            await asyncio.gather(*(elsewhere(pb.WhoAmIRequest()) for _ in range(5)))
            await another.app.credentials.write_uses()
        await asyncio.gather(*(key(pb.WhoAmIRequest()) for _ in range(4)))
        assert await code(key(projects_pb2.CreateProjectRequest(name="No"))) == "PERMISSION_DENIED"

        async with asyncio.timeout(20):
            while (listed := await only_key(tenant)).request_count < 10:
                pass
        assert listed.request_count == 10
        assert listed.last_used_time.ToDatetime() > listed.create_time.ToDatetime()
        await key(pb.WhoAmIRequest())

    async with serving(database) as restarted:
        owner = restarted.nobody.with_credential(tenant.owner.credential)
        (listed,) = (await owner(pb.ListApiKeysRequest())).api_keys
        assert listed.request_count == 11


async def only_key(tenant: Tenant) -> pb.ApiKey:
    (key,) = (await tenant.owner(pb.ListApiKeysRequest())).api_keys
    assert isinstance(key, pb.ApiKey)
    return key


async def revoke_api_key(tenant: Tenant) -> None:
    await tenant.owner(pb.RevokeApiKeyRequest(api_key_id=(await only_key(tenant)).id))


async def revoke_agent_key(tenant: Tenant) -> None:
    await tenant.owner(agents_pb2.RevokeAgentKeyRequest(agent_id=tenant.agent_id))


async def issue_another_key(tenant: Tenant) -> None:
    await tenant.owner(agents_pb2.IssueAgentKeyRequest(agent_id=tenant.agent_id))


async def delete_agent(tenant: Tenant) -> None:
    await tenant.owner(agents_pb2.DeleteAgentRequest(agent_id=tenant.agent_id))


async def sign_out(tenant: Tenant) -> None:
    await tenant.owner(pb.SignOutRequest())


REVOCATIONS: list[tuple[str, Callable[[Tenant], Awaitable[None]]]] = [
    ("session", sign_out),
    ("api_key", revoke_api_key),
    ("agent", revoke_agent_key),
    ("agent", issue_another_key),
    ("agent", delete_agent),
]


async def test_a_revoked_credential_is_refused_everywhere_within_a_second(database: str) -> None:
    """Also by a server that has just looked it up, and by one that is asked all the time."""
    async with serving(database) as pilot, serving(database) as another:
        callers = []
        for kind, revoke in REVOCATIONS:
            tenant = await pilot.tenant()
            key = await tenant.api_key("read")
            caller = {"session": tenant.owner, "api_key": key, "agent": tenant.agent}[kind]
            elsewhere = another.nobody.with_credential(caller.credential)
            assert await code(elsewhere(pb.WhoAmIRequest())) == "OK"
            callers += [caller, elsewhere]
            await revoke(tenant)

        until = asyncio.get_running_loop().time() + REVOCATION_SECONDS
        while asyncio.get_running_loop().time() < until:
            await asyncio.gather(*(code(caller(pb.WhoAmIRequest())) for caller in callers))

        for caller in callers:
            assert await refusal(caller(pb.WhoAmIRequest())) == INVALID


async def test_a_new_agent_key_works_at_once(pilot: Pilot) -> None:
    tenant = await pilot.tenant()
    assert await code(tenant.agent(pb.WhoAmIRequest())) == "OK"

    renewed = await with_key(tenant.owner, tenant.agent_id)

    assert (await renewed(pb.WhoAmIRequest())).agent_id == tenant.agent_id


async def test_a_revoked_key_cannot_be_revoked_again(pilot: Pilot) -> None:
    tenant = await pilot.tenant()
    await tenant.api_key("read")
    key = pb.RevokeApiKeyRequest(api_key_id=(await only_key(tenant)).id)
    agent_key = agents_pb2.RevokeAgentKeyRequest(agent_id=tenant.agent_id)

    await tenant.owner(key)
    await tenant.owner(agent_key)

    assert await code(tenant.owner(key)) == "NOT_FOUND"
    assert await refusal(tenant.owner(agent_key)) == Refusal(
        "FAILED_PRECONDITION", "AGENT_HAS_NO_KEY"
    )


async def test_secrets_are_stored_only_as_their_hashes(pilot: Pilot) -> None:
    """Of a session, an API key and an agent key the tables hold the SHA-256, and of none itself."""
    _, session = await sign_up(pilot)
    tenant = await pilot.tenant()
    key = await tenant.api_key("read")

    rows = "\n".join(row for rows in (await pilot.dump()).values() for row in rows)

    for caller in (session, tenant.owner, tenant.agent, key):
        assert caller.credential is not None
        assert sha256(caller.credential) in rows
        assert caller.credential[3:] not in rows
    assert PASSWORD not in rows
    assert "$argon2id$" in rows


def creations(tenant: Tenant) -> list[Any]:
    """One Create of each kind, about the same request_id."""
    return [
        pb.CreateApiKeyRequest(name="First", permissions=[pb.PERMISSION_READ], request_id="once"),
        projects_pb2.CreateProjectRequest(name="First", description="It", request_id="once"),
        agents_pb2.CreateAgentRequest(
            project_id=tenant.project_id, name="First", model="gpt-4o", request_id="once"
        ),
    ]


async def rows_made(pilot: Pilot) -> int:
    count: int = await pilot.pool.fetchval(
        "SELECT (SELECT count(*) FROM api_keys) + (SELECT count(*) FROM projects)"
        " + (SELECT count(*) FROM agents)"
    )
    return count


@pytest.mark.parametrize("which", range(3), ids=["api_key", "project", "agent"])
async def test_a_create_that_is_repeated_gives_the_first_answer(pilot: Pilot, which: int) -> None:
    """Without the secret, and as it was then: it was renamed, or revoked, in between."""
    tenant = await pilot.tenant()
    request = creations(tenant)[which]
    before = await rows_made(pilot)

    first = await tenant.owner(request)
    await change_what_was_made(tenant, first)
    after = await rows_made(pilot)
    again = await tenant.owner(request)

    if isinstance(first, pb.CreateApiKeyResponse):
        assert first.secret
        first.ClearField("secret")
    assert again == first
    assert await rows_made(pilot) == after
    assert after in {before, before + 1}


async def change_what_was_made(tenant: Tenant, made: Message) -> None:
    renaming: dict[str, Any] = {"name": "Second", "update_mask": {"paths": ["name"]}}
    if isinstance(made, pb.CreateApiKeyResponse):
        await tenant.owner(pb.RevokeApiKeyRequest(api_key_id=made.api_key.id))
    elif isinstance(made, projects_pb2.CreateProjectResponse):
        await tenant.owner(
            projects_pb2.UpdateProjectRequest(project_id=made.project.id, **renaming)
        )
    elif isinstance(made, agents_pb2.CreateAgentResponse):
        await tenant.owner(agents_pb2.UpdateAgentRequest(agent_id=made.agent.id, **renaming))


@pytest.mark.parametrize("which", range(3), ids=["api_key", "project", "agent"])
async def test_a_create_under_a_used_id_names_what_differs(pilot: Pilot, which: int) -> None:
    """Each field that was sent otherwise, or `rpc` on another RPC; nothing is made."""
    tenant = await pilot.tenant()
    request, other = creations(tenant)[which], creations(tenant)[which - 1]
    await tenant.owner(request)
    before = await pilot.dump()
    changes: list[dict[str, Any]] = [
        {"permissions": [pb.PERMISSION_READ, pb.PERMISSION_WRITE]},
        {"description": None},
        {"model": "gpt-4o-mini", "provider": "openai"},
    ]
    changed = {"name": "Other", **changes[which]}
    kept = {field.name: value for field, value in request.ListFields() if field.name not in changed}
    set_now = {name: value for name, value in changed.items() if value is not None}
    different = type(request)(**kept, **set_now)

    by_field = await refusal(tenant.owner(different))
    by_rpc = await refusal(tenant.owner(other))

    reused = {"request_id": "once", "fields": ",".join(sorted(changed))}
    assert by_field == Refusal("ALREADY_EXISTS", "REQUEST_ID_REUSED", reused)
    assert by_rpc == Refusal("ALREADY_EXISTS", "REQUEST_ID_REUSED", reused | {"fields": "rpc"})
    assert await pilot.dump() == before


@pytest.mark.parametrize("which", range(3), ids=["api_key", "project", "agent"])
async def test_concurrent_duplicates_of_a_create_make_one(database: str, which: int) -> None:
    """Twelve at once on two servers get one answer, and one of them the secret."""
    async with serving(database) as pilot, serving(database) as another:
        tenant = await pilot.tenant()
        request = creations(tenant)[which]
        before = await rows_made(pilot)
        elsewhere = another.nobody.with_credential(tenant.owner.credential)

        answers = await asyncio.gather(
            *(caller(request) for caller in (tenant.owner, elsewhere) for _ in range(6))
        )

        assert await rows_made(pilot) == before + 1
        secrets = [answer.secret for answer in answers if hasattr(answer, "secret")]
        assert sum(map(bool, secrets)) == (1 if which == 0 else 0)
        for answer in answers:
            if hasattr(answer, "secret"):
                answer.ClearField("secret")
            assert answer == answers[0]


async def test_a_request_id_is_of_its_user_alone(pilot: Pilot) -> None:
    one, other = await pilot.tenant(), await pilot.tenant()

    first = await one.owner(creations(one)[1])
    second = await other.owner(creations(other)[1])

    assert first.project.id != second.project.id


async def test_an_error_does_not_stick_to_the_request_id_of_a_create(pilot: Pilot) -> None:
    tenant = await pilot.tenant()
    request = creations(tenant)[2]
    nowhere = agents_pb2.CreateAgentRequest(
        project_id="cmissing", name="First", request_id=request.request_id
    )

    assert await code(tenant.owner(nowhere)) == "NOT_FOUND"
    assert (await tenant.owner(request)).agent.name == "First"


async def test_a_create_is_remembered_for_seven_days(pilot: Pilot) -> None:
    """Then the same id makes another."""
    tenant = await pilot.tenant()
    request = creations(tenant)[1]
    first = await tenant.owner(request)
    aged = "UPDATE requests SET created_at = created_at - $1::interval"

    await pilot.pool.execute(aged, timedelta(days=7, minutes=-1))
    await pilot.app.expiry.clean()
    assert await tenant.owner(request) == first
    await pilot.pool.execute(aged, timedelta(minutes=2))
    await pilot.app.expiry.clean()
    assert (await tenant.owner(request)).project.id != first.project.id


QUOTAS = {
    "api_key": (
        100,
        """
        INSERT INTO api_keys (id, name, key_hash, key_prefix, permissions, user_id)
        SELECT 'k' || n, 'Key', encode(sha256(n::text::bytea), 'hex'), 'pk_12345', '{read}', $1
          FROM generate_series(1, $2::integer) AS n
        """,
    ),
    "project": (
        1_000,
        """
        INSERT INTO projects (id, name, user_id)
        SELECT 'p' || n, 'Project', $1 FROM generate_series(1, $2::integer) AS n
        """,
    ),
    "agent": (
        10_000,
        """
        INSERT INTO agents (id, name, project_id)
        SELECT 'a' || n, 'Agent', $1 FROM generate_series(1, $2::integer) AS n
        """,
    ),
}


@pytest.mark.parametrize("resource", sorted(QUOTAS))
async def test_there_is_an_end_to_how_many_one_may_have(database: str, resource: str) -> None:
    """Two servers race for the last place: one fills it, and nobody comes after."""
    limit, fill = QUOTAS[resource]
    async with serving(database) as pilot, serving(database) as another:
        tenant = await pilot.tenant()
        has = 0 if resource == "api_key" else 1
        home = tenant.project_id if resource == "agent" else tenant.user_id
        await pilot.pool.execute(fill, home, limit - 1 - has)
        request = creations(tenant)[["api_key", "project", "agent"].index(resource)]
        request.ClearField("request_id")
        elsewhere = another.nobody.with_credential(tenant.owner.credential)

        callers = [tenant.owner, elsewhere] * 10
        warm = projects_pb2.ListProjectsRequest()
        await asyncio.gather(*(caller(warm) for caller in callers for _ in range(3)))

        answers = await asyncio.gather(*(refusal(caller(request)) for caller in callers))

        full = Refusal(
            "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", {"resource": resource, "limit": str(limit)}
        )
        assert sorted(answers, key=lambda each: each.code) == [Refusal("OK")] + [full] * 19
