"""BudgetService on the wire."""

from typing import Any

from pilot_grpc.domain.ids import AgentId
from pilot_grpc.gen.pilot.v1 import budgets_pb2 as pb
from pilot_grpc.gen.pilot.v1 import budgets_pb2_grpc
from pilot_grpc.rpc import auth, wire
from pilot_grpc.services.budgets import Budgets, Limits


class BudgetServicer(budgets_pb2_grpc.BudgetServiceServicer):
    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def SetBudgetRule(
        self, message: pb.SetBudgetRuleRequest, context: Any
    ) -> pb.SetBudgetRuleResponse:
        monthly = message.monthly_limit if message.HasField("monthly_limit") else None
        limits = Limits(message.per_tx_limit, message.daily_limit, monthly, message.any_recipient)
        rule = await self._budgets.set(auth.caller.get(), AgentId(message.agent_id), limits)
        return pb.SetBudgetRuleResponse(budget_rule=wire.budget_rule(rule))

    async def GetBudgetRule(
        self, message: pb.GetBudgetRuleRequest, context: Any
    ) -> pb.GetBudgetRuleResponse:
        caller = auth.caller.get()
        rule = await self._budgets.get(caller, wire.visible_agent(message, caller))
        return pb.GetBudgetRuleResponse(budget_rule=wire.budget_rule(rule))

    async def RemoveBudgetRule(
        self, message: pb.RemoveBudgetRuleRequest, context: Any
    ) -> pb.RemoveBudgetRuleResponse:
        await self._budgets.remove(auth.caller.get(), AgentId(message.agent_id))
        return pb.RemoveBudgetRuleResponse()

    async def CheckSpend(
        self, message: pb.CheckSpendRequest, context: Any
    ) -> pb.CheckSpendResponse:
        caller = auth.caller.get()
        agent_id = wire.visible_agent(message, caller)
        recipient = wire.text(message, "recipient")
        check = await self._budgets.check(caller, agent_id, message.amount, recipient)
        declined = check.declined
        return pb.CheckSpendResponse(
            approved=declined is None,
            decline=None
            if declined is None
            else wire.decline(declined.figures, for_agent=caller.agent_id is not None),
            rules=wire.rule_checks(check.rules, caller),
        )
