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

class Vault(_message.Message):
    __slots__ = ("id", "project_id", "address", "balance", "chain_balance", "held", "revision", "create_time", "open_drift")
    ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_BALANCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    OPEN_DRIFT_FIELD_NUMBER: _ClassVar[int]
    id: str
    project_id: str
    address: str
    balance: int
    chain_balance: int
    held: int
    revision: int
    create_time: _timestamp_pb2.Timestamp
    open_drift: _ledger_pb2.Drift
    def __init__(self, id: _Optional[str] = ..., project_id: _Optional[str] = ..., address: _Optional[str] = ..., balance: _Optional[int] = ..., chain_balance: _Optional[int] = ..., held: _Optional[int] = ..., revision: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., open_drift: _Optional[_Union[_ledger_pb2.Drift, _Mapping]] = ...) -> None: ...

class GetVaultRequest(_message.Message):
    __slots__ = ("vault_id",)
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    def __init__(self, vault_id: _Optional[str] = ...) -> None: ...

class GetVaultResponse(_message.Message):
    __slots__ = ("vault",)
    VAULT_FIELD_NUMBER: _ClassVar[int]
    vault: Vault
    def __init__(self, vault: _Optional[_Union[Vault, _Mapping]] = ...) -> None: ...

class GetDepositAddressRequest(_message.Message):
    __slots__ = ("vault_id", "amount")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    amount: int
    def __init__(self, vault_id: _Optional[str] = ..., amount: _Optional[int] = ...) -> None: ...

class GetDepositAddressResponse(_message.Message):
    __slots__ = ("address", "token_account", "usdc_mint", "cluster", "payment_link")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    USDC_MINT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PAYMENT_LINK_FIELD_NUMBER: _ClassVar[int]
    address: str
    token_account: str
    usdc_mint: str
    cluster: str
    payment_link: str
    def __init__(self, address: _Optional[str] = ..., token_account: _Optional[str] = ..., usdc_mint: _Optional[str] = ..., cluster: _Optional[str] = ..., payment_link: _Optional[str] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("vault_id", "amount", "recipient", "request_id", "metadata")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    amount: int
    recipient: str
    request_id: str
    metadata: str
    def __init__(self, vault_id: _Optional[str] = ..., amount: _Optional[int] = ..., recipient: _Optional[str] = ..., request_id: _Optional[str] = ..., metadata: _Optional[str] = ...) -> None: ...

class WithdrawResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _ledger_pb2.Event
    def __init__(self, event: _Optional[_Union[_ledger_pb2.Event, _Mapping]] = ...) -> None: ...

class SettleRequest(_message.Message):
    __slots__ = ("vault_id", "amount", "recipient", "request_id", "metadata")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    amount: int
    recipient: str
    request_id: str
    metadata: str
    def __init__(self, vault_id: _Optional[str] = ..., amount: _Optional[int] = ..., recipient: _Optional[str] = ..., request_id: _Optional[str] = ..., metadata: _Optional[str] = ...) -> None: ...

class SettleResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _ledger_pb2.Event
    def __init__(self, event: _Optional[_Union[_ledger_pb2.Event, _Mapping]] = ...) -> None: ...

class ReconcileVaultRequest(_message.Message):
    __slots__ = ("vault_id",)
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    def __init__(self, vault_id: _Optional[str] = ...) -> None: ...

class ReconcileVaultResponse(_message.Message):
    __slots__ = ("slot", "found_amount", "expected_amount", "pending_amount", "drift", "warnings")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    FOUND_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PENDING_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    found_amount: int
    expected_amount: int
    pending_amount: int
    drift: _ledger_pb2.Drift
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, slot: _Optional[int] = ..., found_amount: _Optional[int] = ..., expected_amount: _Optional[int] = ..., pending_amount: _Optional[int] = ..., drift: _Optional[_Union[_ledger_pb2.Drift, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class AcknowledgeDriftRequest(_message.Message):
    __slots__ = ("vault_id", "drift_id", "amount", "request_id")
    VAULT_ID_FIELD_NUMBER: _ClassVar[int]
    DRIFT_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    vault_id: str
    drift_id: str
    amount: int
    request_id: str
    def __init__(self, vault_id: _Optional[str] = ..., drift_id: _Optional[str] = ..., amount: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class AcknowledgeDriftResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _ledger_pb2.Event
    def __init__(self, event: _Optional[_Union[_ledger_pb2.Event, _Mapping]] = ...) -> None: ...
