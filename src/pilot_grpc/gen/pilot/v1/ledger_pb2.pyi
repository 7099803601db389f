import datetime

from pilot_grpc.gen.buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TYPE_UNSPECIFIED: _ClassVar[EventType]
    EVENT_TYPE_FUNDING: _ClassVar[EventType]
    EVENT_TYPE_SPEND: _ClassVar[EventType]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_DEPOSIT: _ClassVar[EventKind]
    EVENT_KIND_CREDIT: _ClassVar[EventKind]
    EVENT_KIND_REFUND: _ClassVar[EventKind]
    EVENT_KIND_METERED: _ClassVar[EventKind]
    EVENT_KIND_TRANSFER: _ClassVar[EventKind]
    EVENT_KIND_WITHDRAWAL: _ClassVar[EventKind]
    EVENT_KIND_SETTLEMENT: _ClassVar[EventKind]

class EventStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_STATUS_UNSPECIFIED: _ClassVar[EventStatus]
    EVENT_STATUS_PENDING: _ClassVar[EventStatus]
    EVENT_STATUS_CONFIRMED: _ClassVar[EventStatus]
    EVENT_STATUS_FAILED: _ClassVar[EventStatus]

class FailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_REASON_UNSPECIFIED: _ClassVar[FailureReason]
    FAILURE_REASON_PROJECT_NOT_ACTIVE: _ClassVar[FailureReason]
    FAILURE_REASON_VAULT_STOPPED: _ClassVar[FailureReason]
    FAILURE_REASON_NO_BUDGET_RULE: _ClassVar[FailureReason]
    FAILURE_REASON_AGENT_NOT_ACTIVE: _ClassVar[FailureReason]
    FAILURE_REASON_PER_TX_LIMIT: _ClassVar[FailureReason]
    FAILURE_REASON_DAILY_LIMIT: _ClassVar[FailureReason]
    FAILURE_REASON_MONTHLY_LIMIT: _ClassVar[FailureReason]
    FAILURE_REASON_INSUFFICIENT_BALANCE: _ClassVar[FailureReason]
    FAILURE_REASON_RELEASED: _ClassVar[FailureReason]
    FAILURE_REASON_EXPIRED: _ClassVar[FailureReason]
    FAILURE_REASON_AGENT_DELETED: _ClassVar[FailureReason]
    FAILURE_REASON_FUNDING_FAILED: _ClassVar[FailureReason]
    FAILURE_REASON_RECIPIENT_NOT_ALLOWED: _ClassVar[FailureReason]
    FAILURE_REASON_INSUFFICIENT_CHAIN_BALANCE: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSFER_EXPIRED: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSFER_FAILED: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSFER_NOT_SENT: _ClassVar[FailureReason]
    FAILURE_REASON_RECIPIENT_NOT_A_WALLET: _ClassVar[FailureReason]
    FAILURE_REASON_RECIPIENT_HAS_NO_ACCOUNT: _ClassVar[FailureReason]
    FAILURE_REASON_ACCOUNT_FROZEN: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSFER_REJECTED: _ClassVar[FailureReason]
    FAILURE_REASON_RECIPIENT_IS_THE_VAULT: _ClassVar[FailureReason]
    FAILURE_REASON_DEPOSIT_UNDONE: _ClassVar[FailureReason]

class StreamStart(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_START_UNSPECIFIED: _ClassVar[StreamStart]
    STREAM_START_EARLIEST: _ClassVar[StreamStart]
    STREAM_START_LATEST: _ClassVar[StreamStart]

class SpendDimension(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPEND_DIMENSION_UNSPECIFIED: _ClassVar[SpendDimension]
    SPEND_DIMENSION_DAY: _ClassVar[SpendDimension]
    SPEND_DIMENSION_AGENT: _ClassVar[SpendDimension]
    SPEND_DIMENSION_PROVIDER: _ClassVar[SpendDimension]
    SPEND_DIMENSION_MODEL: _ClassVar[SpendDimension]
EVENT_TYPE_UNSPECIFIED: EventType
EVENT_TYPE_FUNDING: EventType
EVENT_TYPE_SPEND: EventType
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_DEPOSIT: EventKind
EVENT_KIND_CREDIT: EventKind
EVENT_KIND_REFUND: EventKind
EVENT_KIND_METERED: EventKind
EVENT_KIND_TRANSFER: EventKind
EVENT_KIND_WITHDRAWAL: EventKind
EVENT_KIND_SETTLEMENT: EventKind
EVENT_STATUS_UNSPECIFIED: EventStatus
EVENT_STATUS_PENDING: EventStatus
EVENT_STATUS_CONFIRMED: EventStatus
EVENT_STATUS_FAILED: EventStatus
FAILURE_REASON_UNSPECIFIED: FailureReason
FAILURE_REASON_PROJECT_NOT_ACTIVE: FailureReason
FAILURE_REASON_VAULT_STOPPED: FailureReason
FAILURE_REASON_NO_BUDGET_RULE: FailureReason
FAILURE_REASON_AGENT_NOT_ACTIVE: FailureReason
FAILURE_REASON_PER_TX_LIMIT: FailureReason
FAILURE_REASON_DAILY_LIMIT: FailureReason
FAILURE_REASON_MONTHLY_LIMIT: FailureReason
FAILURE_REASON_INSUFFICIENT_BALANCE: FailureReason
FAILURE_REASON_RELEASED: FailureReason
FAILURE_REASON_EXPIRED: FailureReason
FAILURE_REASON_AGENT_DELETED: FailureReason
FAILURE_REASON_FUNDING_FAILED: FailureReason
FAILURE_REASON_RECIPIENT_NOT_ALLOWED: FailureReason
FAILURE_REASON_INSUFFICIENT_CHAIN_BALANCE: FailureReason
FAILURE_REASON_TRANSFER_EXPIRED: FailureReason
FAILURE_REASON_TRANSFER_FAILED: FailureReason
FAILURE_REASON_TRANSFER_NOT_SENT: FailureReason
FAILURE_REASON_RECIPIENT_NOT_A_WALLET: FailureReason
FAILURE_REASON_RECIPIENT_HAS_NO_ACCOUNT: FailureReason
FAILURE_REASON_ACCOUNT_FROZEN: FailureReason
FAILURE_REASON_TRANSFER_REJECTED: FailureReason
FAILURE_REASON_RECIPIENT_IS_THE_VAULT: FailureReason
FAILURE_REASON_DEPOSIT_UNDONE: FailureReason
STREAM_START_UNSPECIFIED: StreamStart
STREAM_START_EARLIEST: StreamStart
STREAM_START_LATEST: StreamStart
SPEND_DIMENSION_UNSPECIFIED: SpendDimension
SPEND_DIMENSION_DAY: SpendDimension
SPEND_DIMENSION_AGENT: SpendDimension
SPEND_DIMENSION_PROVIDER: SpendDimension
SPEND_DIMENSION_MODEL: SpendDimension

class Event(_message.Message):
    __slots__ = ("id", "vault_id", "agent_id", "type", "kind", "status", "amount", "authorized_amount", "failure_reason", "decline", "tx_hash", "metadata", "provider", "model", "refunded_event_id", "create_time", "update_time", "expire_time", "revision", "recipient", "counterpart_event_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    DECLINE_FIELD_NUMBER: _ClassVar[int]
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFUNDED_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    COUNTERPART_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    vault_id: str
    agent_id: str
    type: EventType
    kind: EventKind
    status: EventStatus
    amount: int
    authorized_amount: int
    failure_reason: FailureReason
    decline: Decline
    tx_hash: str
    metadata: str
    provider: str
    model: str
    refunded_event_id: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    revision: int
    recipient: str
    counterpart_event_id: str
    def __init__(self, id: _Optional[str] = ..., vault_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., type: _Optional[_Union[EventType, str]] = ..., kind: _Optional[_Union[EventKind, str]] = ..., status: _Optional[_Union[EventStatus, str]] = ..., amount: _Optional[int] = ..., authorized_amount: _Optional[int] = ..., failure_reason: _Optional[_Union[FailureReason, str]] = ..., decline: _Optional[_Union[Decline, _Mapping]] = ..., tx_hash: _Optional[str] = ..., metadata: _Optional[str] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., refunded_event_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., recipient: _Optional[str] = ..., counterpart_event_id: _Optional[str] = ...) -> None: ...

class Decline(_message.Message):
    __slots__ = ("reason", "limit", "spent", "held", "remaining", "window_end_time")
    REASON_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    WINDOW_END_TIME_FIELD_NUMBER: _ClassVar[int]
    reason: FailureReason
    limit: int
    spent: int
    held: int
    remaining: int
    window_end_time: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[_Union[FailureReason, str]] = ..., limit: _Optional[int] = ..., spent: _Optional[int] = ..., held: _Optional[int] = ..., remaining: _Optional[int] = ..., window_end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SpendRequest(_message.Message):
    __slots__ = ("agent_id", "amount", "request_id", "provider", "model", "metadata", "recipient")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    amount: int
    request_id: str
    provider: str
    model: str
    metadata: str
    recipient: str
    def __init__(self, agent_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., metadata: _Optional[str] = ..., recipient: _Optional[str] = ...) -> None: ...

class SpendResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class AuthorizeSpendRequest(_message.Message):
    __slots__ = ("agent_id", "amount", "request_id", "provider", "model", "metadata", "ttl")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    amount: int
    request_id: str
    provider: str
    model: str
    metadata: str
    ttl: _duration_pb2.Duration
    def __init__(self, agent_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., metadata: _Optional[str] = ..., ttl: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AuthorizeSpendResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class CaptureSpendRequest(_message.Message):
    __slots__ = ("event_id", "amount", "request_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    amount: int
    request_id: str
    def __init__(self, event_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class CaptureSpendResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ReleaseSpendRequest(_message.Message):
    __slots__ = ("event_id", "request_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ReleaseSpendResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class BatchSpendRequest(_message.Message):
    __slots__ = ("spends",)
    SPENDS_FIELD_NUMBER: _ClassVar[int]
    spends: _containers.RepeatedCompositeFieldContainer[SpendRequest]
    def __init__(self, spends: _Optional[_Iterable[_Union[SpendRequest, _Mapping]]] = ...) -> None: ...

class BatchSpendResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class RefundRequest(_message.Message):
    __slots__ = ("event_id", "amount", "request_id", "metadata")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    amount: int
    request_id: str
    metadata: str
    def __init__(self, event_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ..., metadata: _Optional[str] = ...) -> None: ...

class RefundResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class RecordFundingRequest(_message.Message):
    __slots__ = ("vault_id", "amount", "request_id", "pending", "tx_hash", "metadata")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    amount: int
    request_id: str
    pending: bool
    tx_hash: str
    metadata: str
    def __init__(self, vault_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ..., pending: _Optional[bool] = ..., tx_hash: _Optional[str] = ..., metadata: _Optional[str] = ...) -> None: ...

class RecordFundingResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ConfirmFundingRequest(_message.Message):
    __slots__ = ("event_id", "request_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ConfirmFundingResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class FailFundingRequest(_message.Message):
    __slots__ = ("event_id", "request_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class FailFundingResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class GetEventRequest(_message.Message):
    __slots__ = ("event_id",)
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    def __init__(self, event_id: _Optional[str] = ...) -> None: ...

class GetEventResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("vault_id", "agent_id", "types", "kinds", "statuses", "start_time", "end_time", "page_size", "page_token")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    agent_id: str
    types: _containers.RepeatedScalarFieldContainer[EventType]
    kinds: _containers.RepeatedScalarFieldContainer[EventKind]
    statuses: _containers.RepeatedScalarFieldContainer[EventStatus]
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, vault_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., types: _Optional[_Iterable[_Union[EventType, str]]] = ..., kinds: _Optional[_Iterable[_Union[EventKind, str]]] = ..., statuses: _Optional[_Iterable[_Union[EventStatus, str]]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("events", "next_page_token", "resume_token")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    next_page_token: str
    resume_token: str
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class SubscribeEventsRequest(_message.Message):
    __slots__ = ("vault_id", "project_id", "agent_id", "start", "resume_token", "types", "kinds", "statuses", "heartbeat_interval")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    project_id: str
    agent_id: str
    start: StreamStart
    resume_token: str
    types: _containers.RepeatedScalarFieldContainer[EventType]
    kinds: _containers.RepeatedScalarFieldContainer[EventKind]
    statuses: _containers.RepeatedScalarFieldContainer[EventStatus]
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, vault_id: _Optional[str] = ..., project_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., start: _Optional[_Union[StreamStart, str]] = ..., resume_token: _Optional[str] = ..., types: _Optional[_Iterable[_Union[EventType, str]]] = ..., kinds: _Optional[_Iterable[_Union[EventKind, str]]] = ..., statuses: _Optional[_Iterable[_Union[EventStatus, str]]] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SubscribeEventsResponse(_message.Message):
    __slots__ = ("changes", "resume_token", "caught_up")
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    resume_token: str
    caught_up: bool
    def __init__(self, changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., resume_token: _Optional[str] = ..., caught_up: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("vault_id", "revision", "change_time", "vault_figures", "event", "drift")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TIME_FIELD_NUMBER: _ClassVar[int]
    VAULT_FIGURES_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    revision: int
    change_time: _timestamp_pb2.Timestamp
    vault_figures: VaultFigures
    event: Event
    drift: Drift
    def __init__(self, vault_id: _Optional[str] = ..., revision: _Optional[int] = ..., change_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., vault_figures: _Optional[_Union[VaultFigures, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., drift: _Optional[_Union[Drift, _Mapping]] = ...) -> None: ...

class Drift(_message.Message):
    __slots__ = ("id", "open", "amount", "slot", "found_amount", "expected_amount", "outflows", "create_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FOUND_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTFLOWS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    open: bool
    amount: int
    slot: int
    found_amount: int
    expected_amount: int
    outflows: _containers.RepeatedCompositeFieldContainer[Outflow]
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., open: _Optional[bool] = ..., amount: _Optional[int] = ..., slot: _Optional[int] = ..., found_amount: _Optional[int] = ..., expected_amount: _Optional[int] = ..., outflows: _Optional[_Iterable[_Union[Outflow, _Mapping]]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Outflow(_message.Message):
    __slots__ = ("tx_hash", "amount", "slot")
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    tx_hash: str
    amount: int
    slot: int
    def __init__(self, tx_hash: _Optional[str] = ..., amount: _Optional[int] = ..., slot: _Optional[int] = ...) -> None: ...

class VaultFigures(_message.Message):
    __slots__ = ("balance", "chain_balance", "held")
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_BALANCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    balance: int
    chain_balance: int
    held: int
    def __init__(self, balance: _Optional[int] = ..., chain_balance: _Optional[int] = ..., held: _Optional[int] = ...) -> None: ...

class SummarizeSpendRequest(_message.Message):
    __slots__ = ("vault_id", "agent_id", "start_time", "end_time", "group_by", "page_size", "page_token")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    agent_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    group_by: _containers.RepeatedScalarFieldContainer[SpendDimension]
    page_size: int
    page_token: str
    def __init__(self, vault_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., group_by: _Optional[_Iterable[_Union[SpendDimension, str]]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SummarizeSpendResponse(_message.Message):
    __slots__ = ("summaries", "next_page_token")
    SUMMARIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    summaries: _containers.RepeatedCompositeFieldContainer[SpendSummary]
    next_page_token: str
    def __init__(self, summaries: _Optional[_Iterable[_Union[SpendSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SpendSummary(_message.Message):
    __slots__ = ("day", "agent_id", "provider", "model", "confirmed_amount", "pending_amount", "confirmed_count", "pending_count", "failed_count", "declined_count")
    DAY_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_COUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DECLINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    day: str
    agent_id: str
    provider: str
    model: str
    confirmed_amount: int
    pending_amount: int
    confirmed_count: int
    pending_count: int
    failed_count: int
    declined_count: int
    def __init__(self, day: _Optional[str] = ..., agent_id: _Optional[str] = ..., provider: _Optional[str] = ..., model: _Optional[str] = ..., confirmed_amount: _Optional[int] = ..., pending_amount: _Optional[int] = ..., confirmed_count: _Optional[int] = ..., pending_count: _Optional[int] = ..., failed_count: _Optional[int] = ..., declined_count: _Optional[int] = ...) -> None: ...

class VerifyLedgerRequest(_message.Message):
    __slots__ = ("vault_id", "page_size", "page_token")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    page_size: int
    page_token: str
    def __init__(self, vault_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class VerifyLedgerResponse(_message.Message):
    __slots__ = ("discrepancy", "verified_count", "next_page_token")
    DISCREPANCY_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    discrepancy: Discrepancy
    verified_count: int
    next_page_token: str
    def __init__(self, discrepancy: _Optional[_Union[Discrepancy, _Mapping]] = ..., verified_count: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Discrepancy(_message.Message):
    __slots__ = ("table", "row", "field", "expected", "found")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    table: str
    row: str
    field: str
    expected: str
    found: str
    def __init__(self, table: _Optional[str] = ..., row: _Optional[str] = ..., field: _Optional[str] = ..., expected: _Optional[str] = ..., found: _Optional[str] = ...) -> None: ...
