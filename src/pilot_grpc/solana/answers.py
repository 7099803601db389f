"""What Solana nodes answer, and the one place where it is read.

Each `read_...` takes what came out of JSON and returns one of the types below, or raises
RpcGarbage: a missing field, another type, a number out of range, an address that is none, more
rows than were asked for. What is not needed is not looked at. No text of a node gets into the
messages here, only the names of fields.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.signature import Signature

from pilot_grpc.solana.faults import (
    NODE_TEXT_CHARACTERS_MAX,
    RpcBehind,
    RpcGarbage,
    TransactionError,
    clean,
)

T = TypeVar("T")

SYSTEM_PROGRAM: Final = "11111111111111111111111111111111"
TOKEN_PROGRAM: Final = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"  # noqa: S105 - an address
TOKEN_2022_PROGRAM: Final = "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"  # noqa: S105 - the same

# A bigint's. Slots and heights are counted up by 2.5 a second.
SLOT_MAX: Final = 2**63 - 1
U64_MAX: Final = 2**64 - 1
U8_MAX: Final = 2**8 - 1
ERROR_CODE_MAX: Final = 2**31 - 1
TIME_MAX: Final = 2**40  # Seconds; the year 36812.

# Nodes keep these for the last 150 slots.
FEE_ROWS_MAX: Final = 512
# A transaction's accounts are numbered by one byte.
TRANSACTION_ACCOUNTS_MAX: Final = 256
SIGNATURES_OF_TRANSACTION_MAX: Final = 127
LOG_LINES_MAX: Final = 64

# The layout of a token account: mint 0, owner 32, amount 64, delegate 72 (after a tag of 4
# bytes), state 108, native 109, delegated amount 121, close authority 129 (after a tag of 4).
TOKEN_ACCOUNT_BYTES: Final = 165
# Token-2022 adds extensions behind it; the byte between tells accounts from mints.
TOKEN_ACCOUNT_KIND: Final = 2
MULTISIG_BYTES: Final = 355
# So much of an account's data is asked for: all of a token account, and the byte between.
DATA_BYTES_READ: Final = TOKEN_ACCOUNT_BYTES + 1

_BASE58_CHARACTERS_MAX: Final = {32: 44, 64: 88}
_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_DIGITS: Final = re.compile(r"[0-9]{1,20}")


class Commitment(StrEnum):
    """How sure the cluster is. Only FINALIZED cannot be undone."""

    PROCESSED = "processed"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"


class TokenState(StrEnum):
    """Whether tokens can move. The mint's issuer can freeze an account."""

    INITIALIZED = "initialized"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """A value, and the slot as of which the node saw it."""

    slot: int
    value: T


@dataclass(frozen=True, slots=True)
class Blockhash:
    """A recent block, and the last block height at which a transaction that names it can land."""

    blockhash: str
    last_valid_block_height: int


@dataclass(frozen=True, slots=True)
class PriorityFee:
    """What a transaction paid at least in a slot, in micro-lamports a compute unit."""

    slot: int
    fee: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a transaction would do. `units` are compute units; `logs` are cut and cleaned."""

    err: TransactionError | None
    units: int | None
    logs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """How a transaction fares. Without `err` it succeeded; below FINALIZED both may yet change."""

    slot: int
    commitment: Commitment
    confirmations: int | None
    err: TransactionError | None

    @property
    def finalized(self) -> bool:
        """Nothing can change this any more."""
        return self.commitment is Commitment.FINALIZED


@dataclass(frozen=True, slots=True)
class SignatureRow:
    """A transaction that names an address. Failed ones are listed, too."""

    signature: str
    slot: int
    err: TransactionError | None
    block_time: int | None
    commitment: Commitment | None


@dataclass(frozen=True, slots=True)
class TokenBalance:
    """What a token account held before or after a transaction, in minor units."""

    account: str
    mint: str
    owner: str | None
    program: str | None
    amount: int
    decimals: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction that landed. Without `err` it succeeded; fees are taken either way."""

    signature: str
    signatures: tuple[str, ...]
    slot: int
    block_time: int | None
    err: TransactionError | None
    fee: int
    account_keys: tuple[str, ...]
    before: tuple[TokenBalance, ...]
    after: tuple[TokenBalance, ...]


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """What holds tokens. A delegate may move up to `delegated_amount` of them without the owner."""

    program: str
    mint: str
    owner: str
    amount: int
    state: TokenState
    delegate: str | None
    delegated_amount: int
    close_authority: str | None


@dataclass(frozen=True, slots=True)
class Account:
    """An account: the program that owns it, and the token account in it, if that is what it is."""

    owner: str
    lamports: int
    executable: bool
    data_length: int
    token: TokenAccount | None


# -- The smallest parts


def read_integer(value: object, what: str, high: int = U64_MAX, low: int = 0) -> int:
    """Read a whole number. True is none, and neither are 5.0 and "5"."""
    if type(value) is not int or not low <= value <= high:
        raise RpcGarbage(f"{what} is not a number from {low} to {high}")
    return value


def read_slot(value: object) -> int:
    """Read a slot or a block height."""
    return read_integer(value, "a slot", SLOT_MAX)


def read_address(value: object, what: str = "an address") -> str:
    """Read a public key in base58."""
    return _base58(value, what, 32, Pubkey.from_string)


def read_hash(value: object, what: str = "a hash") -> str:
    """Read a hash in base58."""
    return _base58(value, what, 32, Hash.from_string)


def read_signature(value: object, what: str = "a signature") -> str:
    """Read a signature in base58."""
    return _base58(value, what, 64, Signature.from_string)


def _base58(value: object, what: str, size: int, parse: Callable[[str], object]) -> str:
    # The length first: the native code gets nothing that is long.
    if not isinstance(value, str) or not 0 < len(value) <= _BASE58_CHARACTERS_MAX[size]:
        raise RpcGarbage(f"{what} is not {size} bytes in base58")
    try:
        parse(value)
    except ValueError:
        raise RpcGarbage(f"{what} is not {size} bytes in base58") from None
    return value


def _boolean(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise RpcGarbage(f"{what} is not true or false")
    return value


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RpcGarbage(f"{what} is not an object")
    return value


def _rows(value: object, what: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise RpcGarbage(f"{what} is not a list of {most} at most")
    return value


def _field(value: dict[str, Any], name: str) -> Any:
    if name not in value:
        raise RpcGarbage(f"{name} is missing")
    return value[name]


def _optional(value: object, read: Callable[[Any], T]) -> T | None:
    return None if value is None else read(value)


def _time(value: object) -> int:
    return read_integer(value, "a block time", TIME_MAX)


def _commitment(value: object) -> Commitment:
    for commitment in Commitment:
        if value == commitment:
            return commitment
    raise RpcGarbage("a confirmation status is not one that exists")


def read_seen(
    value: object, read: Callable[[Any], T], min_context_slot: int | None = None
) -> Seen[T]:
    """Read a value with its context.

    Raises RpcBehind, too, when the node answered although it has not seen min_context_slot.
    """
    answer = _object(value, "the answer")
    slot = read_slot(_field(_object(_field(answer, "context"), "a context"), "slot"))
    if min_context_slot is not None and slot < min_context_slot:
        raise RpcBehind("the node has not seen the slot that was asked for")
    return Seen(slot, read(_field(answer, "value")))


# -- Errors of transactions


def read_transaction_error(value: object) -> TransactionError:
    """Read why a transaction failed.

    Nodes have more kinds than Pilot knows, and later ones will have others: of a kind only the
    outer shape is checked, a name, or one name with something in it.
    """
    if isinstance(value, str):
        return TransactionError(_name(value))
    name, inner = _single(value)
    if name != "InstructionError":
        return TransactionError(name, detail=_detail(inner))
    if not isinstance(inner, list) or len(inner) != 2:  # noqa: PLR2004 - index and reason
        raise RpcGarbage("an instruction's error is not a pair")
    index = read_integer(inner[0], "an instruction's index", U8_MAX)
    if isinstance(inner[1], str):
        return TransactionError(name, index, _name(inner[1]))
    reason, detail = _single(inner[1])
    if reason == "Custom":
        number = read_integer(detail, "a program's error", 2**32 - 1)
        return TransactionError(name, index, reason, custom=number)
    return TransactionError(name, index, reason, detail=_detail(detail))


def _single(value: object) -> tuple[str, Any]:
    if not isinstance(value, dict) or len(value) != 1:
        raise RpcGarbage("an error is not a name, or an object with one")
    ((name, inner),) = value.items()
    return _name(name), inner


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise RpcGarbage("an error's name is not one")
    return value


def _detail(value: object) -> str:
    return clean(json.dumps(value))


def read_logs(value: object) -> tuple[str, ...]:
    """Read a program's log for people: the end of it, cut and cleaned."""
    if not isinstance(value, list):
        return ()
    lines = (line for line in value[-LOG_LINES_MAX:] if isinstance(line, str))
    return tuple(clean(line, NODE_TEXT_CHARACTERS_MAX) for line in lines)


# -- The answers


def read_blockhash(value: object) -> Blockhash:
    """Read the value of getLatestBlockhash."""
    answer = _object(value, "a blockhash")
    return Blockhash(
        read_hash(_field(answer, "blockhash")), read_slot(_field(answer, "lastValidBlockHeight"))
    )


def read_priority_fees(value: object) -> tuple[PriorityFee, ...]:
    """Read the answer of getRecentPrioritizationFees."""
    rows = [_object(row, "a fee") for row in _rows(value, "the fees", FEE_ROWS_MAX)]
    return tuple(
        PriorityFee(
            read_slot(_field(row, "slot")),
            read_integer(_field(row, "prioritizationFee"), "a fee"),
        )
        for row in rows
    )


def read_simulation(value: object) -> Simulation:
    """Read the value of simulateTransaction."""
    answer = _object(value, "a simulation")
    return Simulation(
        err=_optional(_field(answer, "err"), read_transaction_error),
        units=_optional(
            answer.get("unitsConsumed"), lambda units: read_integer(units, "the units")
        ),
        logs=read_logs(answer.get("logs")),
    )


def read_statuses(value: object, count: int) -> tuple[Status | None, ...]:
    """Read the value of getSignatureStatuses: one for each signature that was asked for."""
    rows = _rows(value, "the statuses", count)
    if len(rows) != count:
        raise RpcGarbage(f"there are not {count} statuses")
    return tuple(_optional(row, _status) for row in rows)


def _status(value: object) -> Status:
    status = _object(value, "a status")
    return Status(
        slot=read_slot(_field(status, "slot")),
        commitment=_commitment(_field(status, "confirmationStatus")),
        confirmations=_optional(
            _field(status, "confirmations"), lambda n: read_integer(n, "confirmations", SLOT_MAX)
        ),
        err=_optional(_field(status, "err"), read_transaction_error),
    )


def read_signature_rows(value: object, limit: int) -> tuple[SignatureRow, ...]:
    """Read the answer of getSignaturesForAddress, in the node's order: newest first, mostly."""
    rows = [_object(row, "a row") for row in _rows(value, "the rows", limit)]
    return tuple(
        SignatureRow(
            signature=read_signature(_field(row, "signature")),
            slot=read_slot(_field(row, "slot")),
            err=_optional(_field(row, "err"), read_transaction_error),
            block_time=_optional(row.get("blockTime"), _time),
            commitment=_optional(row.get("confirmationStatus"), _commitment),
        )
        for row in rows
    )


def read_transaction(value: object, signature: str) -> Transaction:
    """Read what getTransaction answers (encoding json), which must be the one asked for.

    Without its meta part or its token balances a transaction cannot be judged: garbage.
    """
    answer = _object(value, "a transaction")
    meta = _object(_field(answer, "meta"), "a meta part")
    inner = _object(_field(answer, "transaction"), "a transaction")
    signatures = tuple(
        read_signature(each)
        for each in _rows(
            _field(inner, "signatures"), "the signatures", SIGNATURES_OF_TRANSACTION_MAX
        )
    )
    if not signatures or signatures[0] != signature:
        raise RpcGarbage("it is another transaction than the one asked for")
    keys = _account_keys(_object(_field(inner, "message"), "a message"), meta)
    return Transaction(
        signature=signature,
        signatures=signatures,
        slot=read_slot(_field(answer, "slot")),
        block_time=_optional(answer.get("blockTime"), _time),
        err=_optional(_field(meta, "err"), read_transaction_error),
        fee=read_integer(_field(meta, "fee"), "a fee"),
        account_keys=keys,
        before=_token_balances(_field(meta, "preTokenBalances"), keys),
        after=_token_balances(_field(meta, "postTokenBalances"), keys),
    )


def _account_keys(message: dict[str, Any], meta: dict[str, Any]) -> tuple[str, ...]:
    """The message's own keys, then those that look-up tables gave it, writable ones first."""
    keys = list(_rows(_field(message, "accountKeys"), "the keys", TRANSACTION_ACCOUNTS_MAX))
    loaded = meta.get("loadedAddresses")
    if loaded is not None:
        for part in ("writable", "readonly"):
            rows = _field(_object(loaded, "the loaded keys"), part)
            keys += _rows(rows, "the loaded keys", TRANSACTION_ACCOUNTS_MAX)
    return tuple(map(read_address, _rows(keys, "the keys", TRANSACTION_ACCOUNTS_MAX)))


def _token_balances(value: object, keys: tuple[str, ...]) -> tuple[TokenBalance, ...]:
    balances: dict[int, TokenBalance] = {}
    for each in _rows(value, "the token balances", len(keys)):
        row = _object(each, "a token balance")
        index = read_integer(_field(row, "accountIndex"), "an account's index", len(keys) - 1)
        if index in balances:
            raise RpcGarbage("an account has two token balances")
        money = _object(_field(row, "uiTokenAmount"), "an amount")
        balances[index] = TokenBalance(
            account=keys[index],
            mint=read_address(_field(row, "mint")),
            owner=_optional(row.get("owner"), read_address),
            program=_optional(row.get("programId"), read_address),
            amount=_decimal(_field(money, "amount")),
            decimals=read_integer(_field(money, "decimals"), "decimals", U8_MAX),
        )
    return tuple(balances.values())


def _decimal(value: object) -> int:
    """Read the one kind of number that nodes write as text, since JavaScript would round it."""
    if not isinstance(value, str) or not _DIGITS.fullmatch(value):
        raise RpcGarbage("an amount is not a number in digits")
    return read_integer(int(value), "an amount")


def read_accounts(value: object, count: int) -> tuple[Account | None, ...]:
    """Read the value of getMultipleAccounts: one for each address that was asked for."""
    rows = _rows(value, "the accounts", count)
    if len(rows) != count:
        raise RpcGarbage(f"there are not {count} accounts")
    return tuple(map(read_account, rows))


def read_account(value: object) -> Account | None:
    """Read an account whose data's first DATA_BYTES_READ bytes were asked for in base64.

    The data may be longer (not every server cuts it), and `space` says how long it really is.
    """
    if value is None:
        return None
    account = _object(value, "an account")
    owner = read_address(_field(account, "owner"))
    space = read_integer(_field(account, "space"), "a size", SLOT_MAX)
    data = _data(_field(account, "data"))
    if len(data) not in {space, min(space, DATA_BYTES_READ)}:
        raise RpcGarbage("an account's data has another size")
    return Account(
        owner=owner,
        lamports=read_integer(_field(account, "lamports"), "lamports"),
        executable=_boolean(_field(account, "executable"), "executable"),
        data_length=space,
        token=_token_account(owner, space, data),
    )


def _data(value: object) -> bytes:
    pair = _rows(value, "an account's data", 2)
    if len(pair) != 2 or pair[1] != "base64" or not isinstance(pair[0], str):  # noqa: PLR2004
        raise RpcGarbage("an account's data is not base64")
    try:
        return base64.b64decode(pair[0], validate=True)
    except ValueError:
        raise RpcGarbage("an account's data is not base64") from None


def _token_account(program: str, space: int, data: bytes) -> TokenAccount | None:
    """Read a token account; None for mints, multisigs, and what is not initialised."""
    if program not in {TOKEN_PROGRAM, TOKEN_2022_PROGRAM} or space < TOKEN_ACCOUNT_BYTES:
        return None
    if space > TOKEN_ACCOUNT_BYTES and (
        program == TOKEN_PROGRAM
        or space == MULTISIG_BYTES
        or data[TOKEN_ACCOUNT_BYTES] != TOKEN_ACCOUNT_KIND
    ):
        return None
    match data[108]:
        case 0:
            return None
        case 1:
            state = TokenState.INITIALIZED
        case 2:
            state = TokenState.FROZEN
        case _:
            raise RpcGarbage("a token account has a state that does not exist")
    return TokenAccount(
        program=program,
        mint=_key(data[:32]),
        owner=_key(data[32:64]),
        amount=int.from_bytes(data[64:72], "little"),
        state=state,
        delegate=_optional_key(data[72:108]),
        delegated_amount=int.from_bytes(data[121:129], "little"),
        close_authority=_optional_key(data[129:165]),
    )


def _key(data: bytes) -> str:
    return str(Pubkey.from_bytes(data))


def _optional_key(data: bytes) -> str | None:
    match int.from_bytes(data[:4], "little"):
        case 0:
            return None
        case 1:
            return _key(data[4:])
        case _:
            raise RpcGarbage("a token account has a tag that does not exist")
