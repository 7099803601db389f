"""AgentService on the wire."""

from typing import Any

from pilot_grpc.domain.agents import Recipient
from pilot_grpc.domain.ids import AgentId, ProjectId
from pilot_grpc.gen.pilot.v1 import agents_pb2 as pb
from pilot_grpc.gen.pilot.v1 import agents_pb2_grpc
from pilot_grpc.rpc import auth, paging, wire
from pilot_grpc.services.agents import Agents
from pilot_grpc.services.webhooks import Webhooks


class AgentServicer(agents_pb2_grpc.AgentServiceServicer):
    def __init__(self, agents: Agents, webhooks: Webhooks) -> None:
        self._agents = agents
        self._webhooks = webhooks

    async def CreateAgent(
        self, message: pb.CreateAgentRequest, context: Any
    ) -> pb.CreateAgentResponse:
        agent = await self._agents.create(
            wire.once(message, "CreateAgent", auth.caller.get()),
            ProjectId(message.project_id),
            message.name,
            wire.text(message, "provider"),
            wire.text(message, "model"),
            wire.text(message, "webhook_url"),
        )
        return pb.CreateAgentResponse(agent=wire.agent(agent))

    async def GetAgent(self, message: pb.GetAgentRequest, context: Any) -> pb.GetAgentResponse:
        caller = auth.caller.get()
        agent = await self._agents.get(caller, wire.visible_agent(message, caller))
        return pb.GetAgentResponse(agent=wire.agent(agent))

    async def ListAgents(
        self, message: pb.ListAgentsRequest, context: Any
    ) -> pb.ListAgentsResponse:
        after, limit = paging.time_and_id(message), paging.size(message) + 1
        project_id = ProjectId(message.project_id)
        rows = await self._agents.list(auth.caller.get(), project_id, after, limit)
        page, token = paging.cut(message, rows, paging.by_time_and_id)
        return pb.ListAgentsResponse(
            agents=[wire.agent(row) for row in page], next_page_token=token
        )

    async def UpdateAgent(
        self, message: pb.UpdateAgentRequest, context: Any
    ) -> pb.UpdateAgentResponse:
        agent = await self._agents.update(
            auth.caller.get(), AgentId(message.agent_id), wire.changes(message)
        )
        return pb.UpdateAgentResponse(agent=wire.agent(agent))

    async def PauseAgent(
        self, message: pb.PauseAgentRequest, context: Any
    ) -> pb.PauseAgentResponse:
        agent = await self._agents.pause(auth.caller.get(), AgentId(message.agent_id))
        return pb.PauseAgentResponse(agent=wire.agent(agent))

    async def FlagAgent(self, message: pb.FlagAgentRequest, context: Any) -> pb.FlagAgentResponse:
        agent = await self._agents.flag(auth.caller.get(), AgentId(message.agent_id))
        return pb.FlagAgentResponse(agent=wire.agent(agent))

    async def ResumeAgent(
        self, message: pb.ResumeAgentRequest, context: Any
    ) -> pb.ResumeAgentResponse:
        agent = await self._agents.resume(auth.caller.get(), AgentId(message.agent_id))
        return pb.ResumeAgentResponse(agent=wire.agent(agent))

    async def DeleteAgent(
        self, message: pb.DeleteAgentRequest, context: Any
    ) -> pb.DeleteAgentResponse:
        await self._agents.delete(auth.caller.get(), AgentId(message.agent_id))
        return pb.DeleteAgentResponse()

    async def IssueAgentKey(
        self, message: pb.IssueAgentKeyRequest, context: Any
    ) -> pb.IssueAgentKeyResponse:
        agent, secret = await self._agents.issue_key(auth.caller.get(), AgentId(message.agent_id))
        return pb.IssueAgentKeyResponse(agent=wire.agent(agent), secret=secret)

    async def RevokeAgentKey(
        self, message: pb.RevokeAgentKeyRequest, context: Any
    ) -> pb.RevokeAgentKeyResponse:
        agent = await self._agents.revoke_key(auth.caller.get(), AgentId(message.agent_id))
        return pb.RevokeAgentKeyResponse(agent=wire.agent(agent))

    async def GetWebhook(
        self, message: pb.GetWebhookRequest, context: Any
    ) -> pb.GetWebhookResponse:
        caller = auth.caller.get()
        webhook = await self._webhooks.get(caller, wire.visible_agent(message, caller))
        return pb.GetWebhookResponse(webhook=wire.webhook(webhook))

    async def IssueWebhookSecret(
        self, message: pb.IssueWebhookSecretRequest, context: Any
    ) -> pb.IssueWebhookSecretResponse:
        secret = await self._webhooks.issue_secret(
            auth.caller.get(), AgentId(message.agent_id), wire.overlap(message)
        )
        return pb.IssueWebhookSecretResponse(secret=secret)

    async def SendTestWebhook(
        self, message: pb.SendTestWebhookRequest, context: Any
    ) -> pb.SendTestWebhookResponse:
        attempt = await self._webhooks.send_test(auth.caller.get(), AgentId(message.agent_id))
        return wire.test_webhook(attempt)

    async def RedeliverWebhook(
        self, message: pb.RedeliverWebhookRequest, context: Any
    ) -> pb.RedeliverWebhookResponse:
        webhook = await self._webhooks.redeliver(
            auth.caller.get(), AgentId(message.agent_id), message.from_revision
        )
        return pb.RedeliverWebhookResponse(webhook=wire.webhook(webhook))

    async def AddRecipient(
        self, message: pb.AddRecipientRequest, context: Any
    ) -> pb.AddRecipientResponse:
        recipient = await self._agents.add_recipient(
            auth.caller.get(),
            AgentId(message.agent_id),
            message.address,
            wire.text(message, "label"),
        )
        return pb.AddRecipientResponse(recipient=wire.recipient(recipient))

    async def RemoveRecipient(
        self, message: pb.RemoveRecipientRequest, context: Any
    ) -> pb.RemoveRecipientResponse:
        agent_id = AgentId(message.agent_id)
        await self._agents.remove_recipient(auth.caller.get(), agent_id, message.address)
        return pb.RemoveRecipientResponse()

    async def ListRecipients(
        self, message: pb.ListRecipientsRequest, context: Any
    ) -> pb.ListRecipientsResponse:
        caller = auth.caller.get()
        rows = await self._agents.list_recipients(
            caller,
            wire.visible_agent(message, caller),
            paging.address(message),
            paging.size(message) + 1,
        )
        page, token = paging.cut(message, rows, by_address)
        return pb.ListRecipientsResponse(
            recipients=[wire.recipient(row) for row in page], next_page_token=token
        )


def by_address(recipient: Recipient) -> tuple[str]:
    """Say where a recipient stands in its list."""
    return (recipient.address,)
