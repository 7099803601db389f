import datetime

from pilot_grpc.gen.buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from pilot_grpc.gen.pilot.v1 import ledger_pb2 as _ledger_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BudgetRule(_message.Message):
    __slots__ = ("agent_id", "per_tx_limit", "daily_limit", "monthly_limit", "day", "month", "create_time", "update_time", "any_recipient")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    PER_TX_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DAILY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MONTHLY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DAY_FIELD_NUMBER: _ClassVar[int]
    MONTH_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ANY_RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    per_tx_limit: int
    daily_limit: int
    monthly_limit: int
    day: BudgetWindow
    month: BudgetWindow
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    any_recipient: bool
    def __init__(self, agent_id: _Optional[str] = ..., per_tx_limit: _Optional[int] = ..., daily_limit: _Optional[int] = ..., monthly_limit: _Optional[int] = ..., day: _Optional[_Union[BudgetWindow, _Mapping]] = ..., month: _Optional[_Union[BudgetWindow, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., any_recipient: _Optional[bool] = ...) -> None: ...

class BudgetWindow(_message.Message):
    __slots__ = ("limit", "spent", "held", "remaining", "start_time", "end_time")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    limit: int
    spent: int
    held: int
    remaining: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, limit: _Optional[int] = ..., spent: _Optional[int] = ..., held: _Optional[int] = ..., remaining: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SetBudgetRuleRequest(_message.Message):
    __slots__ = ("agent_id", "per_tx_limit", "daily_limit", "monthly_limit", "any_recipient")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    PER_TX_LIMIT_FIELD_NUMBER: _ClassVar[int]
    DAILY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MONTHLY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ANY_RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    per_tx_limit: int
    daily_limit: int
    monthly_limit: int
    any_recipient: bool
    def __init__(self, agent_id: _Optional[str] = ..., per_tx_limit: _Optional[int] = ..., daily_limit: _Optional[int] = ..., monthly_limit: _Optional[int] = ..., any_recipient: _Optional[bool] = ...) -> None: ...

class SetBudgetRuleResponse(_message.Message):
    __slots__ = ("budget_rule",)
    BUDGET_RULE_FIELD_NUMBER: _ClassVar[int]
    budget_rule: BudgetRule
    def __init__(self, budget_rule: _Optional[_Union[BudgetRule, _Mapping]] = ...) -> None: ...

class GetBudgetRuleRequest(_message.Message):
    __slots__ = ("agent_id",)
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    def __init__(self, agent_id: _Optional[str] = ...) -> None: ...

class GetBudgetRuleResponse(_message.Message):
    __slots__ = ("budget_rule",)
    BUDGET_RULE_FIELD_NUMBER: _ClassVar[int]
    budget_rule: BudgetRule
    def __init__(self, budget_rule: _Optional[_Union[BudgetRule, _Mapping]] = ...) -> None: ...

class RemoveBudgetRuleRequest(_message.Message):
    __slots__ = ("agent_id",)
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    def __init__(self, agent_id: _Optional[str] = ...) -> None: ...

class RemoveBudgetRuleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckSpendRequest(_message.Message):
    __slots__ = ("agent_id", "amount", "recipient")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    amount: int
    recipient: str
    def __init__(self, agent_id: _Optional[str] = ..., amount: _Optional[int] = ..., recipient: _Optional[str] = ...) -> None: ...

class CheckSpendResponse(_message.Message):
    __slots__ = ("approved", "decline", "rules")
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    DECLINE_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    approved: bool
    decline: _ledger_pb2.Decline
    rules: _containers.RepeatedCompositeFieldContainer[RuleCheck]
    def __init__(self, approved: _Optional[bool] = ..., decline: _Optional[_Union[_ledger_pb2.Decline, _Mapping]] = ..., rules: _Optional[_Iterable[_Union[RuleCheck, _Mapping]]] = ...) -> None: ...

class RuleCheck(_message.Message):
    __slots__ = ("rule", "passed", "limit", "spent", "held", "remaining", "window_end_time")
    RULE_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    WINDOW_END_TIME_FIELD_NUMBER: _ClassVar[int]
    rule: _ledger_pb2.FailureReason
    passed: bool
    limit: int
    spent: int
    held: int
    remaining: int
    window_end_time: _timestamp_pb2.Timestamp
    def __init__(self, rule: _Optional[_Union[_ledger_pb2.FailureReason, str]] = ..., passed: _Optional[bool] = ..., limit: _Optional[int] = ..., spent: _Optional[int] = ..., held: _Optional[int] = ..., remaining: _Optional[int] = ..., window_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
