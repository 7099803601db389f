"""A well-formed request for every RPC, about the resources that are named."""

from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from pilot_grpc.gen.pilot.v1 import accounts_pb2 as accounts
from pilot_grpc.gen.pilot.v1 import agents_pb2 as agents
from pilot_grpc.gen.pilot.v1 import budgets_pb2 as budgets
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as ledger
from pilot_grpc.gen.pilot.v1 import projects_pb2 as projects
from pilot_grpc.gen.pilot.v1 import vaults_pb2 as vaults
from tests.make import WALLET
from tests.rpc.serving import fresh

MISSING = "cmissing00000000000000000"


@dataclass(frozen=True)
class Resources:
    """The ids of resources; by default of some that nobody has."""

    project: str = MISSING
    vault: str = MISSING
    agent: str = MISSING
    event: str = MISSING
    session: str = MISSING
    api_key: str = MISSING


def without_ids() -> list[Message]:
    """Make the requests that name no resource."""
    address = f"{fresh('nobody')}@example.com"
    return [
        accounts.SignUpRequest(email=address, password="long enough", name="Ann"),
        accounts.SignInRequest(email=address, password="long enough"),
        accounts.SignOutRequest(),
        accounts.WhoAmIRequest(),
        accounts.ChangePasswordRequest(current_password="wrong", new_password="long enough"),
        accounts.ListSessionsRequest(),
        accounts.CreateApiKeyRequest(name="Key", permissions=[accounts.PERMISSION_READ]),
        accounts.ListApiKeysRequest(),
        projects.CreateProjectRequest(name="Project"),
        projects.ListProjectsRequest(),
        ledger.SubscribeEventsRequest(start=ledger.STREAM_START_LATEST),
    ]


def with_ids(named: Resources) -> list[Message]:
    """Make the requests that name a resource, some RPCs more than once."""
    return [
        accounts.RevokeSessionRequest(session_id=named.session),
        accounts.RevokeApiKeyRequest(api_key_id=named.api_key),
        projects.GetProjectRequest(project_id=named.project),
        projects.UpdateProjectRequest(
            project_id=named.project, name="New", update_mask=FieldMask(paths=["name"])
        ),
        projects.PauseProjectRequest(project_id=named.project),
        projects.ResumeProjectRequest(project_id=named.project),
        projects.ArchiveProjectRequest(project_id=named.project),
        projects.DeleteProjectRequest(project_id=named.project),
        vaults.GetVaultRequest(vault_id=named.vault),
        vaults.GetDepositAddressRequest(vault_id=named.vault),
        vaults.ReconcileVaultRequest(vault_id=named.vault),
        agents.CreateAgentRequest(project_id=named.project, name="New", request_id=fresh()),
        agents.GetAgentRequest(agent_id=named.agent),
        agents.ListAgentsRequest(project_id=named.project),
        agents.UpdateAgentRequest(
            agent_id=named.agent, name="New", update_mask=FieldMask(paths=["name"])
        ),
        agents.PauseAgentRequest(agent_id=named.agent),
        agents.FlagAgentRequest(agent_id=named.agent),
        agents.ResumeAgentRequest(agent_id=named.agent),
        agents.DeleteAgentRequest(agent_id=named.agent),
        agents.IssueAgentKeyRequest(agent_id=named.agent),
        agents.RevokeAgentKeyRequest(agent_id=named.agent),
        agents.GetWebhookRequest(agent_id=named.agent),
        agents.IssueWebhookSecretRequest(agent_id=named.agent),
        agents.SendTestWebhookRequest(agent_id=named.agent),
        agents.RedeliverWebhookRequest(agent_id=named.agent, from_revision=1),
        agents.AddRecipientRequest(agent_id=named.agent, address=WALLET),
        agents.RemoveRecipientRequest(agent_id=named.agent, address=WALLET),
        agents.ListRecipientsRequest(agent_id=named.agent),
        budgets.SetBudgetRuleRequest(agent_id=named.agent, per_tx_limit=1, daily_limit=1),
        budgets.GetBudgetRuleRequest(agent_id=named.agent),
        budgets.RemoveBudgetRuleRequest(agent_id=named.agent),
        budgets.CheckSpendRequest(agent_id=named.agent, amount=1),
        budgets.CheckSpendRequest(agent_id=named.agent, amount=1, recipient=WALLET),
        *moves_money(named),
        ledger.GetEventRequest(event_id=named.event),
        ledger.ListEventsRequest(vault_id=named.vault),
        ledger.ListEventsRequest(agent_id=named.agent),
        ledger.SummarizeSpendRequest(
            vault_id=named.vault,
            start_time=datetime(2026, 1, 1, tzinfo=UTC),
            end_time=datetime(2026, 2, 1, tzinfo=UTC),
        ),
        ledger.VerifyLedgerRequest(vault_id=named.vault),
        *follows(named),
    ]


def follows(named: Resources) -> list[Message]:
    """Make the requests that follow a resource."""
    earliest = ledger.STREAM_START_EARLIEST
    return [
        ledger.SubscribeEventsRequest(vault_id=named.vault, start=earliest),
        ledger.SubscribeEventsRequest(project_id=named.project, start=earliest),
        ledger.SubscribeEventsRequest(agent_id=named.agent, start=earliest),
    ]


def moves_money(named: Resources) -> list[Message]:
    """Make the requests that move money, each with a request_id of its own."""
    return [
        ledger.SpendRequest(agent_id=named.agent, amount=1, request_id=fresh()),
        ledger.SpendRequest(agent_id=named.agent, amount=1, request_id=fresh(), recipient=WALLET),
        ledger.AuthorizeSpendRequest(agent_id=named.agent, amount=1, request_id=fresh()),
        ledger.CaptureSpendRequest(event_id=named.event, amount=1, request_id=fresh()),
        ledger.ReleaseSpendRequest(event_id=named.event, request_id=fresh()),
        ledger.BatchSpendRequest(
            spends=[ledger.SpendRequest(agent_id=named.agent, amount=1, request_id=fresh())]
        ),
        ledger.RefundRequest(event_id=named.event, amount=1, request_id=fresh()),
        ledger.RecordFundingRequest(vault_id=named.vault, amount=1, request_id=fresh()),
        ledger.ConfirmFundingRequest(event_id=named.event, request_id=fresh()),
        ledger.FailFundingRequest(event_id=named.event, request_id=fresh()),
        vaults.WithdrawRequest(
            vault_id=named.vault, amount=1, recipient=WALLET, request_id=fresh()
        ),
        vaults.SettleRequest(vault_id=named.vault, amount=1, recipient=WALLET, request_id=fresh()),
        vaults.AcknowledgeDriftRequest(
            vault_id=named.vault, drift_id="cdrift", amount=-1, request_id=fresh()
        ),
    ]
