"""Resume tokens: what they carry, what they hide, and that nobody can make or change one."""

import base64
import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot_grpc import errors
from pilot_grpc.domain.ids import AgentId, EventId, UserId, VaultId
from pilot_grpc.domain.ledger import EventKind, EventStatus, EventType
from pilot_grpc.domain.projects import PROJECTS_PER_USER_MAX
from pilot_grpc.domain.stream import Head, Scope, Stand, Tokens, Update, Wanted

KEY = bytes(range(32))
TOKENS = Tokens(KEY)
USER, VAULT, AGENT = UserId("cuser"), VaultId("cvault"), AgentId("cagent")
OF_VAULT = Scope(USER, VAULT)
HEAD = Head(7, b"digest of seven.")
TOKEN_CHARACTERS = string.ascii_letters + string.digits + "-_"
# What the field of the request takes.
TOKEN_LENGTH_MAX = 65_536


def token_at(*heads: Head, scope: Scope = OF_VAULT, tokens: Tokens = TOKENS) -> str:
    return tokens.token(scope, [tokens.stand(VAULT, head) for head in heads])


def raw(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def must_be_invalid(token: str) -> None:
    with pytest.raises(errors.ResumeTokenInvalid):
        TOKENS.read(OF_VAULT, token, [VAULT])


@given(
    st.dictionaries(
        st.text(string.ascii_lowercase, min_size=1).map(VaultId),
        st.builds(Head, st.integers(0, 2**63 - 1), st.binary(max_size=16)),
        max_size=20,
    )
)
def test_a_token_says_where_its_holder_stands_in_every_vault(heads: dict[VaultId, Head]) -> None:
    scope = Scope(USER)
    token = TOKENS.token(scope, [TOKENS.stand(v, head) for v, head in heads.items()])

    stands = TOKENS.read(scope, token, heads)

    assert stands.keys() == heads.keys()
    assert all(TOKENS.is_at(stands[vault_id], head) for vault_id, head in heads.items())


def test_vaults_that_were_not_asked_for_are_left_out() -> None:
    """A project may have been deleted, or be younger than the token."""
    token = TOKENS.token(Scope(USER), [TOKENS.stand(VaultId(v), HEAD) for v in ("gone", "kept")])

    assert TOKENS.read(Scope(USER), token, [VaultId("kept"), VaultId("new")]).keys() == {"kept"}


@pytest.mark.parametrize("head", [Head(6, HEAD.digest), Head(8, HEAD.digest), Head(7, b"another")])
def test_another_place_or_another_history_is_told(head: Head) -> None:
    stand = TOKENS.read(OF_VAULT, token_at(HEAD), [VAULT])[VAULT]

    assert TOKENS.is_at(stand, HEAD)
    assert not TOKENS.is_at(stand, head)


@pytest.mark.parametrize("position", range(len(raw(token_at(HEAD)))))
def test_a_token_that_was_changed_in_any_bit_is_invalid(position: int) -> None:
    for bit in range(8):
        content = bytearray(raw(token_at(HEAD)))
        content[position] ^= 1 << bit
        must_be_invalid(text(bytes(content)))


def test_a_token_has_one_spelling() -> None:
    """No other text is taken for it: not with padding, blanks or the other alphabet."""
    token = token_at(HEAD)
    others = [
        token[:at] + character + token[at + 1 :]
        for at in range(len(token))
        for character in f"{TOKEN_CHARACTERS}+/=\n"
        if character != token[at]
    ]

    for other in (*others, *(token + "=" * n for n in (1, 2, 3)), f" {token}", f"{token}\n"):
        must_be_invalid(other)
    tokens = [token_at(Head(n, b"")) for n in range(200)]
    for each in tokens:
        TOKENS.read(OF_VAULT, each, [VAULT])
    standard = [each.replace("-", "+").replace("_", "/") for each in tokens]
    different = [each for each in standard if each not in tokens]
    assert different
    for each in different:
        must_be_invalid(each)


def test_a_part_of_a_token_is_invalid() -> None:
    token = token_at(HEAD, HEAD)
    for length in range(len(token)):
        must_be_invalid(token[:length])
        must_be_invalid(token[length + 1 :])
    must_be_invalid(token + token)


@given(st.text() | st.binary(max_size=200).map(text))
def test_what_is_no_token_is_invalid(token: str) -> None:
    must_be_invalid(token)


def test_a_token_of_another_installation_is_invalid() -> None:
    must_be_invalid(token_at(HEAD, tokens=Tokens(bytes(32))))


@pytest.mark.parametrize(
    "scope", [Scope(USER), Scope(USER, VAULT, AGENT), Scope(USER, VaultId("cother"))]
)
def test_a_token_of_another_scope_is_refused_as_such(scope: Scope) -> None:
    with pytest.raises(errors.ResumeTokenOfAnotherScope):
        TOKENS.read(OF_VAULT, token_at(HEAD, scope=scope), [VAULT])


def test_ids_of_different_kinds_never_name_the_same_scope() -> None:
    same = "cid"
    scopes = [
        Scope(UserId(same)),
        Scope(USER, VaultId(same)),
        Scope(USER, VAULT, AgentId(same)),
    ]

    assert len({scope.name for scope in scopes}) == len(scopes)


def test_a_token_shows_no_digest_and_nothing_to_try_guesses_on() -> None:
    """Whoever guesses the vault's figures cannot tell by the token: its check is keyed."""
    stand = TOKENS.stand(VAULT, HEAD)
    elsewhere = Tokens(bytes(32)).stand(VAULT, HEAD)

    assert HEAD.digest not in raw(token_at(HEAD))
    assert all(HEAD.digest[at : at + 4] not in stand for at in range(len(HEAD.digest) - 4))
    assert stand[-6:] != elsewhere[-6:]
    assert stand[:-6] == elsewhere[:-6]


def test_the_token_of_all_vaults_that_a_user_may_have_can_be_sent_back() -> None:
    stands = [TOKENS.stand(VaultId(f"c{n}"), HEAD) for n in range(PROJECTS_PER_USER_MAX)]

    token = TOKENS.token(Scope(USER), stands)

    assert len(token) < TOKEN_LENGTH_MAX
    assert len(TOKENS.read(Scope(USER), token, [VaultId("c0"), VaultId("c999")])) == 2


def test_a_stand_is_read_as_it_was_written() -> None:
    found = TOKENS.read(OF_VAULT, token_at(HEAD), [VAULT])[VAULT]

    assert found == Stand(HEAD.revision, TOKENS.stand(VAULT, HEAD)[-6:])


def update(type_: EventType, kind: EventKind, status: EventStatus) -> Update:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Update(
        *(VAULT, 1, EventId("e"), None, status, 1, None, None, 0, 0, 0, now, b""),
        *(None, type_, kind, None, None, None, None, None, None, None, now),
    )


@given(
    st.none() | st.frozensets(st.sampled_from(EventType), min_size=1),
    st.none() | st.frozensets(st.sampled_from(EventKind), min_size=1),
    st.none() | st.frozensets(st.sampled_from(EventStatus), min_size=1),
    st.sampled_from(EventType),
    st.sampled_from(EventKind),
    st.sampled_from(EventStatus),
)
def test_a_change_is_wanted_when_every_filter_allows_it(
    types: frozenset[EventType] | None,
    kinds: frozenset[EventKind] | None,
    statuses: frozenset[EventStatus] | None,
    type_: EventType,
    kind: EventKind,
    status: EventStatus,
) -> None:
    allowed = all(
        asked is None or value in asked
        for asked, value in ((types, type_), (kinds, kind), (statuses, status))
    )

    assert Wanted(types, kinds, statuses).allows(update(type_, kind, status)) is allowed


def a_drift_of(status: EventStatus) -> Update:
    """A change of a vault's drift, which has nothing of an event."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Update(
        *(VAULT, 1, None, None, status, -5, None, None, 0, 0, 0, now, b""),
        *(None,) * 11,
        drift='{"id": "d"}',
    )


@pytest.mark.parametrize("status", list(EventStatus))
def test_a_drift_passes_no_filter_of_events(status: EventStatus) -> None:
    """Not even one that allows everything there is: whoever filters asks for events."""
    update = a_drift_of(status)

    assert Wanted().allows(update)
    assert not Wanted(types=frozenset(EventType)).allows(update)
    assert not Wanted(kinds=frozenset(EventKind)).allows(update)
    assert not Wanted(statuses=frozenset(EventStatus)).allows(update)
    everything = frozenset(EventType), frozenset(EventKind), frozenset(EventStatus)
    assert not Wanted(*everything).allows(update)
