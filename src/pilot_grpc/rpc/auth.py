"""Who may call what: the table of every RPC, and the caller of the request at hand."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from pilot_grpc import errors
from pilot_grpc.domain.accounts import Caller, CredentialKind, Permission

caller: ContextVar[Caller] = ContextVar("caller")
"""The caller of this request; unset for an RPC that needs no credential."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call an RPC. A user's session may call everything.

    `permissions` are what an API key needs, all of them; None keeps API keys out.
    """

    permissions: frozenset[Permission] | None = None
    agents: bool = False
    public: bool = False


_PUBLIC: Final = Access(public=True)
_SESSION: Final = Access()
_ANYBODY: Final = Access(frozenset(), agents=True)
_READ: Final = Access(frozenset({Permission.READ}))
_READ_OR_AGENT: Final = Access(frozenset({Permission.READ}), agents=True)
_WRITE: Final = Access(frozenset({Permission.WRITE}))
_EXECUTE: Final = Access(frozenset({Permission.EXECUTE}))
_EXECUTE_OR_AGENT: Final = Access(frozenset({Permission.EXECUTE}), agents=True)
_WRITE_AND_EXECUTE: Final = Access(frozenset({Permission.WRITE, Permission.EXECUTE}))

ACCESS: Final = {
    "/pilot.v1.AccountService/SignUp": _PUBLIC,
    "/pilot.v1.AccountService/SignIn": _PUBLIC,
    "/pilot.v1.AccountService/SignOut": _SESSION,
    "/pilot.v1.AccountService/WhoAmI": _ANYBODY,
    "/pilot.v1.AccountService/ChangePassword": _SESSION,
    "/pilot.v1.AccountService/ListSessions": _SESSION,
    "/pilot.v1.AccountService/RevokeSession": _SESSION,
    "/pilot.v1.AccountService/CreateApiKey": _SESSION,
    "/pilot.v1.AccountService/ListApiKeys": _SESSION,
    "/pilot.v1.AccountService/RevokeApiKey": _SESSION,
    "/pilot.v1.ProjectService/CreateProject": _WRITE,
    "/pilot.v1.ProjectService/GetProject": _READ,
    "/pilot.v1.ProjectService/ListProjects": _READ,
    "/pilot.v1.ProjectService/UpdateProject": _WRITE,
    "/pilot.v1.ProjectService/PauseProject": _WRITE,
    "/pilot.v1.ProjectService/ResumeProject": _WRITE,
    "/pilot.v1.ProjectService/ArchiveProject": _WRITE,
    "/pilot.v1.ProjectService/DeleteProject": _WRITE,
    "/pilot.v1.VaultService/GetVault": _READ,
    "/pilot.v1.VaultService/GetDepositAddress": _READ,
    "/pilot.v1.VaultService/Withdraw": _SESSION,
    "/pilot.v1.VaultService/Settle": _SESSION,
    "/pilot.v1.VaultService/ReconcileVault": _READ,
    "/pilot.v1.VaultService/AcknowledgeDrift": _SESSION,
    "/pilot.v1.AgentService/CreateAgent": _WRITE,
    "/pilot.v1.AgentService/GetAgent": _READ_OR_AGENT,
    "/pilot.v1.AgentService/ListAgents": _READ,
    "/pilot.v1.AgentService/UpdateAgent": _WRITE,
    "/pilot.v1.AgentService/PauseAgent": _WRITE,
    "/pilot.v1.AgentService/FlagAgent": _WRITE,
    "/pilot.v1.AgentService/ResumeAgent": _WRITE,
    "/pilot.v1.AgentService/DeleteAgent": _WRITE,
    "/pilot.v1.AgentService/IssueAgentKey": _WRITE_AND_EXECUTE,
    "/pilot.v1.AgentService/RevokeAgentKey": _WRITE,
    "/pilot.v1.AgentService/GetWebhook": _READ_OR_AGENT,
    "/pilot.v1.AgentService/IssueWebhookSecret": _WRITE_AND_EXECUTE,
    "/pilot.v1.AgentService/SendTestWebhook": _WRITE,
    "/pilot.v1.AgentService/RedeliverWebhook": _WRITE,
    "/pilot.v1.AgentService/AddRecipient": _WRITE,
    "/pilot.v1.AgentService/RemoveRecipient": _WRITE,
    "/pilot.v1.AgentService/ListRecipients": _READ_OR_AGENT,
    "/pilot.v1.BudgetService/SetBudgetRule": _WRITE,
    "/pilot.v1.BudgetService/GetBudgetRule": _READ_OR_AGENT,
    "/pilot.v1.BudgetService/RemoveBudgetRule": _WRITE,
    "/pilot.v1.BudgetService/CheckSpend": _READ_OR_AGENT,
    "/pilot.v1.LedgerService/Spend": _EXECUTE_OR_AGENT,
    "/pilot.v1.LedgerService/AuthorizeSpend": _EXECUTE_OR_AGENT,
    "/pilot.v1.LedgerService/CaptureSpend": _EXECUTE_OR_AGENT,
    "/pilot.v1.LedgerService/ReleaseSpend": _EXECUTE_OR_AGENT,
    "/pilot.v1.LedgerService/BatchSpend": _EXECUTE_OR_AGENT,
    "/pilot.v1.LedgerService/Refund": _EXECUTE,
    "/pilot.v1.LedgerService/RecordFunding": _EXECUTE,
    "/pilot.v1.LedgerService/ConfirmFunding": _EXECUTE,
    "/pilot.v1.LedgerService/FailFunding": _EXECUTE,
    "/pilot.v1.LedgerService/GetEvent": _READ_OR_AGENT,
    "/pilot.v1.LedgerService/ListEvents": _READ_OR_AGENT,
    "/pilot.v1.LedgerService/SummarizeSpend": _READ,
    "/pilot.v1.LedgerService/VerifyLedger": _READ,
    "/pilot.v1.LedgerService/SubscribeEvents": _READ_OR_AGENT,
}


def bearer(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the credential of a request. Raises CredentialMissing."""
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, credential = value.partition(" ")
            if scheme.lower() == "bearer" and credential.strip():
                return credential.strip()
    raise errors.CredentialMissing


def credential(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the credential of a request; empty without one."""
    try:
        return bearer(metadata)
    except errors.CredentialMissing:
        return ""


def must_be_allowed(access: Access, who: Caller) -> None:
    """Raise PermissionDenied, naming what the caller lacks."""
    if who.kind is CredentialKind.SESSION:
        return
    if who.kind is CredentialKind.AGENT_KEY:
        if not access.agents:
            raise errors.PermissionDenied(permission="user")
    elif access.permissions is None:
        raise errors.PermissionDenied(permission="session")
    elif lacking := access.permissions - who.permissions:
        raise errors.PermissionDenied(permission=",".join(sorted(lacking)))
