"""Users, their credentials, and who a caller is."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pilot_grpc.domain.ids import AgentId, ApiKeyId, ProjectId, SessionId, UserId, VaultId


class Permission(StrEnum):
    """What an API key may do."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class CredentialKind(StrEnum):
    """What a credential is; the value is the prefix that tells it."""

    SESSION = "ps_"
    API_KEY = "pk_"
    AGENT_KEY = "pa_"


@dataclass(frozen=True, slots=True)
class User:
    """A person who owns projects."""

    id: UserId
    email: str
    name: str
    avatar: str | None
    created_at: datetime
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """One sign-in of a user."""

    id: SessionId
    user_id: UserId
    expires_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A credential for programs, without its secret."""

    id: ApiKeyId
    name: str
    key_prefix: str
    permissions: tuple[Permission, ...]
    request_count: int
    last_used_at: datetime | None
    expires_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Caller:
    """Who stands behind a credential.

    `permissions` is meant for API keys; a session may do what its user may, and an
    agent what the table in `rpc/auth.py` grants agents. The last three are set for an
    agent only.
    """

    kind: CredentialKind
    user_id: UserId
    credential_id: str
    permissions: frozenset[Permission] = frozenset()
    agent_id: AgentId | None = None
    project_id: ProjectId | None = None
    vault_id: VaultId | None = None
