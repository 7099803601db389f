"""The methods of a Solana node, as of its view of the chain, and those of a localnet.

Shapes, error codes and messages are those of Agave's RPC. A node can lag, and has faults.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from solders.hash import Hash, ParseHashError
from solders.message import Message, MessageV0, MessageV1, from_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import SanitizeError, VersionedTransaction
from spl.token.constants import TOKEN_2022_PROGRAM_ID, TOKEN_PROGRAM_ID

from pilot_grpc.solana.clusters import EMBEDDED_GENESIS_HASH
from pilot_grpc.solana.localnet import shapes, tokens
from pilot_grpc.solana.localnet.chain import (
    HELD_FOR_EVER,
    LAG_SLOTS_MAX,
    Chain,
    Commitment,
    Crowded,
)
from pilot_grpc.solana.localnet.faults import FOR_EVER, Fault, Faults, Kind
from pilot_grpc.solana.localnet.runtime import Outcome, error_text
from pilot_grpc.solana.localnet.store import Landed

# What getGenesisHash answers: no public cluster's hash, and the same for every localnet.
GENESIS_HASH: Final = EMBEDDED_GENESIS_HASH
VERSION: Final = {"solana-core": "3.0.0", "feature-set": 0}

INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
PREFLIGHT_FAILED: Final = -32002
SIGNATURE_INVALID: Final = -32003
NODE_UNHEALTHY: Final = -32005
VERSION_UNSUPPORTED: Final = -32015
SLOT_NOT_REACHED: Final = -32016

TRANSACTION_BYTES_MAX: Final = 1_232
STATUSES_MAX: Final = 256
ACCOUNTS_MAX: Final = 100
PAGE_MAX: Final = 1_000
FEE_SLOTS: Final = 150
# A node that lags more says that it is unhealthy.
HEALTHY_SLOTS: Final = 128
# For so many slots a status is found without searching the history.
STATUS_SLOTS: Final = 300
TICKS_MAX: Final = 10_000
UNITS_MAX: Final = 2**64 - 1
AIRDROP_MAX: Final = 10**16

Config = Mapping[str, Any]


class RpcError(Exception):
    """A JSON-RPC error. Without data, the answer has no `data` at all."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        """Take what the answer says."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def invalid(message: str) -> RpcError:
    return RpcError(INVALID_PARAMS, message)


class Node:
    """One node of a chain: its methods, how far it lags, and what goes wrong with it."""

    def __init__(self, chain: Chain) -> None:
        """Begin healthy."""
        self.chain = chain
        self.faults = Faults()
        self._lag = 0
        self._methods: dict[str, Callable[[list[Any]], Any]] = {
            "getAccountInfo": self._account_info,
            "getBalance": self._balance,
            "getBlockHeight": self._block_height,
            "getFeeForMessage": self._fee_for_message,
            "getFirstAvailableBlock": lambda _: 0,  # Nothing is ever forgotten.
            "getGenesisHash": lambda _: GENESIS_HASH,
            "getHealth": self._health,
            "getLatestBlockhash": self._latest_blockhash,
            "getMinimumBalanceForRentExemption": self._rent,
            "getMultipleAccounts": self._multiple_accounts,
            "getRecentPrioritizationFees": self._prioritization_fees,
            "getSignatureStatuses": self._statuses,
            "getSignaturesForAddress": self._signatures,
            "getSlot": self._slot,
            "getTokenAccountBalance": self._token_balance,
            "getTokenAccountsByOwner": self._token_accounts,
            "getTransaction": self._transaction,
            "getVersion": lambda _: VERSION,
            "isBlockhashValid": self._blockhash_is_valid,
            "requestAirdrop": self._airdrop,
            "sendTransaction": self._send,
            "simulateTransaction": self._simulate,
        }
        # These take one object, and no fault meets them.
        self._own: dict[str, Callable[[Config], Any]] = {
            "pilot_clear": self._pilot_clear,
            "pilot_createMint": self._pilot_create_mint,
            "pilot_faucet": self._pilot_faucet,
            "pilot_fault": self._pilot_fault,
            "pilot_fork": self._pilot_fork,
            "pilot_lag": self._pilot_lag,
            "pilot_release": self._pilot_release,
            "pilot_tick": self._pilot_tick,
        }

    @property
    def lag(self) -> int:
        """How many slots ago this node's view of the chain ends.

        What it is sent lands all the same.
        """
        return self._lag

    @lag.setter
    def lag(self, slots: int) -> None:
        if not 0 <= slots <= LAG_SLOTS_MAX:
            raise ValueError(f"a node lags by 0 to {LAG_SLOTS_MAX} slots")
        self._lag = slots

    def call(self, method: str, params: Any) -> Any:
        """Run a method and answer its result. Raises RpcError."""
        if own := self._own.get(method):
            first = params[0] if isinstance(params, list) and len(params) == 1 else params
            if not isinstance(first or {}, dict):
                raise invalid(f"{method} takes one object")
            return own(first or {})
        found = self._methods.get(method)
        if found is None:
            raise RpcError(-32601, "Method not found")
        if not isinstance(params, list):
            raise invalid("Invalid params: invalid type: map, expected a sequence")
        return found(params)

    # The cluster.

    def _health(self, _: list[Any]) -> str:
        self._must_be_healthy()
        return "ok"

    def _slot(self, params: list[Any]) -> int:
        return self._view(_config(params, 0))

    def _block_height(self, params: list[Any]) -> int:
        return self.chain.height(self._view(_config(params, 0)))

    def _latest_blockhash(self, params: list[Any]) -> Any:
        slot = self._view(_config(params, 0))
        blockhash = self.chain.blockhash(slot)
        last = self.chain.last_valid_height(blockhash)
        return _in_context(slot, {"blockhash": str(blockhash), "lastValidBlockHeight": last})

    def _blockhash_is_valid(self, params: list[Any]) -> Any:
        slot = self._view(_config(params, 1))
        try:
            blockhash = Hash.from_string(_text(params, 0))
        except ParseHashError as error:
            raise invalid(f"Invalid param: {error}") from None
        return _in_context(slot, self.chain.is_valid(blockhash, slot))

    def _fee_for_message(self, params: list[Any]) -> Any:
        slot = self._view(_config(params, 1))
        try:
            message = from_bytes_versioned(_decoded(_text(params, 0), "base64"))
        except ValueError as error:
            raise invalid(f"invalid message: {error}") from None
        if not self.chain.is_valid(message.recent_blockhash, slot):
            return _in_context(slot, None)
        blank = [Signature.default()] * message.header.num_required_signatures
        outcome = self.chain.simulate(VersionedTransaction.populate(message, blank), slot)
        return _in_context(slot, outcome.meta.fee())

    def _prioritization_fees(self, params: list[Any]) -> Any:
        _addresses(params[0] if params else [], ACCOUNTS_MAX)
        tip = self._view({"commitment": "processed"})
        fee = self.chain.prioritization_fee
        return [
            {"slot": slot, "prioritizationFee": fee} for slot in range(tip - FEE_SLOTS + 1, tip + 1)
        ]

    def _rent(self, params: list[Any]) -> int:
        return self.chain.rent(_number(params, 0, UNITS_MAX))

    # Transactions in.

    def _send(self, params: list[Any]) -> str:
        config = _config(params, 1)
        transaction = _parse_transaction(_text(params, 0), config)
        if not config.get("skipPreflight"):
            self._preflight(transaction, config)
        signature = str(transaction.signatures[0])
        if self._strikes(Kind.DROP):
            return signature
        hold = self._strikes(Kind.HOLD)
        held_until = 0
        if hold:
            held_until = HELD_FOR_EVER if hold.slots is None else self.chain.tip + 1 + hold.slots
        try:
            self.chain.submit(transaction, held_until=held_until)
        except Crowded:
            raise RpcError(INTERNAL_ERROR, "too many transactions wait for a slot") from None
        return signature

    def _strikes(self, kind: Kind) -> Fault | None:
        return self.faults.take((kind,), ("sendTransaction",))

    def _preflight(self, transaction: VersionedTransaction, config: Config) -> None:
        """Refuse what would fail on the state of the preflight commitment."""
        level = config.get("preflightCommitment", config.get("commitment"))
        slot = self._view({**config, "commitment": level})
        if not all(transaction.verify_with_results()):
            raise RpcError(SIGNATURE_INVALID, "Transaction signature verification failure")
        self._must_be_healthy()
        landed = self.chain.landed(str(transaction.signatures[0]), slot)
        if landed is not None:
            raise _preflight_error("AlreadyProcessed", None)
        if not self.chain.is_valid(transaction.message.recent_blockhash, slot):
            raise _preflight_error("BlockhashNotFound", None)
        outcome = self.chain.simulate(transaction, slot)
        if outcome.err is not None:
            raise _preflight_error(outcome.err, outcome)

    def _simulate(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        slot = self._view(config)
        transaction = _parse_transaction(_text(params, 0), config)
        fresh = bool(config.get("replaceRecentBlockhash"))
        if config.get("sigVerify"):
            if fresh:
                raise invalid("sigVerify may not be used with replaceRecentBlockhash")
            if not all(transaction.verify_with_results()):
                raise RpcError(SIGNATURE_INVALID, "Transaction signature verification failure")
        if not fresh and not self.chain.is_valid(transaction.message.recent_blockhash, slot):
            return _in_context(slot, _simulation("BlockhashNotFound", None))
        outcome = self.chain.simulate(transaction, slot)
        value = _simulation(outcome.err, outcome)
        value["accounts"] = self._simulated_accounts(config, outcome, slot)
        if fresh:
            blockhash = self.chain.blockhash(slot)
            last = self.chain.last_valid_height(blockhash)
            value["replacementBlockhash"] = {
                "blockhash": str(blockhash),
                "lastValidBlockHeight": last,
            }
        return _in_context(slot, value)

    def _simulated_accounts(self, config: Config, outcome: Outcome, slot: int) -> Any:
        wanted = config.get("accounts")
        if not isinstance(wanted, dict):
            return None
        encoding = _encoding(wanted, "base64")
        found = [outcome.accounts.get(each) for each in _addresses(wanted.get("addresses"))]
        decimals = self._decimals(slot)
        return [each and shapes.account(each, encoding, decimals) for each in found]

    # Transactions out.

    def _statuses(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        signatures = [_signature(each) for each in _list(params, 0)]
        if len(signatures) > STATUSES_MAX:
            raise invalid(f"Too many inputs provided; max {STATUSES_MAX}")
        slot = self._view({"commitment": "processed"})
        oldest = 0 if config.get("searchTransactionHistory") else slot - STATUS_SLOTS
        found = [self.chain.landed(each, slot) for each in signatures]
        return _in_context(
            slot,
            [self._status(each, slot) if each and each.slot >= oldest else None for each in found],
        )

    def _status(self, landed: Landed, tip: int) -> dict[str, Any]:
        level = self._level(landed.slot)
        err = _err(landed)
        return {
            "confirmationStatus": level,
            "confirmations": None if level is Commitment.FINALIZED else tip - landed.slot,
            "err": err,
            "slot": landed.slot,
            "status": {"Ok": None} if err is None else {"Err": err},
        }

    def _signatures(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        address = _address(_text(params, 0))
        limit = PAGE_MAX if config.get("limit") is None else config["limit"]
        if type(limit) is not int or not 1 <= limit <= PAGE_MAX:
            raise invalid(f"Invalid limit; max {PAGE_MAX}")
        slot = self._settled_view(config)
        before, until = (
            self.chain.landed(_signature(config[name]), slot) if config.get(name) else None
            for name in ("before", "until")
        )
        if config.get("before") and before is None:
            return []
        # An unknown `until` bounds nothing: that is how a real node behaves, too.
        page = self.chain.page(address, slot, before, until, limit)
        return self._spoilt(
            [
                {
                    "blockTime": each.block_time,
                    "confirmationStatus": self._level(each.slot),
                    "err": _err(each),
                    "memo": each.memo,
                    "signature": each.signature,
                    "slot": each.slot,
                }
                for each in page
            ]
        )

    def _spoilt(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the node's index makes of rows, if a fault is due."""
        kinds = (Kind.DUPLICATE_ROWS, Kind.REORDER_ROWS, Kind.MISSING_ROWS)
        fault = self.faults.take(kinds, ("getSignaturesForAddress",))
        if fault is None:
            return rows
        if fault.kind is Kind.DUPLICATE_ROWS:
            return [row for row in rows for _ in range(2)]
        return rows[::-1] if fault.kind is Kind.REORDER_ROWS else rows[1::2]

    def _transaction(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        encoding = _encoding(config, "json")
        slot = self._settled_view(config)
        landed = self.chain.landed(_signature(_text(params, 0)), slot)
        if landed is None:
            return None
        answer = shapes.transaction(landed, encoding)
        message = VersionedTransaction.from_bytes(landed.wire).message
        version = "legacy" if isinstance(message, Message) else 0
        newest = config.get("maxSupportedTransactionVersion")
        if newest is not None:
            return {**answer, "version": version}
        if version == 0:
            raise RpcError(
                VERSION_UNSUPPORTED,
                "Transaction version (0) is not supported by the requesting client. Please try "
                "the request again with the following configuration parameter: "
                '"maxSupportedTransactionVersion": 0',
            )
        return answer

    # Accounts.

    def _account_info(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        slot = self._view(config)
        return _in_context(slot, self._shown(_address(_text(params, 0)), slot, config))

    def _multiple_accounts(self, params: list[Any]) -> Any:
        config = _config(params, 1)
        slot = self._view(config)
        addresses = _addresses(_list(params, 0), ACCOUNTS_MAX)
        return _in_context(slot, [self._shown(each, slot, config) for each in addresses])

    def _shown(self, address: Pubkey, slot: int, config: Config) -> dict[str, Any] | None:
        found = self.chain.account(address, slot)
        if found is None:
            return None
        return shapes.account(
            found, _encoding(config, "base64"), self._decimals(slot), _part(config)
        )

    def _balance(self, params: list[Any]) -> Any:
        slot = self._view(_config(params, 1))
        found = self.chain.account(_address(_text(params, 0)), slot)
        return _in_context(slot, 0 if found is None else found.lamports)

    def _token_balance(self, params: list[Any]) -> Any:
        slot = self._view(_config(params, 1))
        found = self.chain.account(_address(_text(params, 0)), slot)
        if found is None:
            raise invalid("Invalid param: could not find account")
        holding = tokens.holding(found)
        if holding is None:
            raise invalid("Invalid param: not a Token account")
        decimals = self.chain.decimals(holding.mint, slot)
        return _in_context(slot, shapes.amount(holding.amount, decimals))

    def _token_accounts(self, params: list[Any]) -> Any:
        config = _config(params, 2)
        slot = self._view(config)
        owner = _address(_text(params, 0))
        wanted = _config(params, 1)
        of_mint = _address(wanted["mint"]) if "mint" in wanted else None
        program = _address(wanted["programId"]) if "programId" in wanted else None
        if of_mint is not None and tokens.mint(self.chain.account(of_mint, slot)) is None:
            raise invalid("Invalid param: could not find mint")
        if of_mint is None and program not in tokens.TOKEN_PROGRAMS:
            raise invalid("Invalid param: unrecognized Token program id")
        return _in_context(
            slot,
            [
                {"account": self._shown(address, slot, config), "pubkey": str(address)}
                for address, found in self.chain.token_accounts(owner, slot)
                if _is_wanted(found.owner, program)
                and (of_mint is None or bytes(found.data)[:32] == bytes(of_mint))
            ],
        )

    # Money and trouble.

    def _airdrop(self, params: list[Any]) -> str:
        return self.chain.airdrop(_address(_text(params, 0)), _number(params, 1, AIRDROP_MAX))

    def _pilot_faucet(self, params: Config) -> str:
        """{address, amount, mint = USDC}: mint to the ATA of a wallet; answers the signature."""
        amount = _number([params.get("amount")], 0, UNITS_MAX)
        mint = _address(params.get("mint", str(tokens.USDC)))
        try:
            return self.chain.faucet(_address(params.get("address")), amount, mint)
        except LookupError as error:
            raise invalid(str(error)) from None

    def _pilot_create_mint(self, params: Config) -> str:
        """{decimals = 6, token2022 = false}: make another mint; answers its address."""
        decimals = _number([params.get("decimals", tokens.USDC_DECIMALS)], 0, 18)
        program = TOKEN_2022_PROGRAM_ID if params.get("token2022") else TOKEN_PROGRAM_ID
        return str(self.chain.create_mint(decimals, program))

    def _pilot_tick(self, params: Config) -> int:
        """{slots = 1}: make blocks now; answers the slot."""
        self.chain.tick(_number([params.get("slots", 1)], 0, TICKS_MAX))
        return self.chain.tip

    def _pilot_fault(self, params: Config) -> bool:
        """{kind, method, count = 1, retryAfter, slots, code, message, data}: see Kind and Fault.

        A count of -1 lasts until pilot_clear.
        """
        try:
            fault = _fault(params)
            self.faults.add(fault)
        except ValueError as error:
            raise invalid(str(error)) from None
        return True

    def _pilot_clear(self, _: Config) -> bool:
        """{}: no faults, and no lag."""
        self.faults.clear()
        self.lag = 0
        return True

    def _pilot_lag(self, params: Config) -> bool:
        """{slots}: answer as of so many slots ago from now on."""
        try:
            self.lag = _number([params.get("slots")], 0, UNITS_MAX)
        except ValueError as error:
            raise invalid(str(error)) from None
        return True

    def _pilot_fork(self, params: Config) -> list[str]:
        """{signatures = all, reinclude = false}: undo what is not finalized; see Chain."""
        return self.chain.fork_away(_some(params), reinclude=bool(params.get("reinclude")))

    def _pilot_release(self, params: Config) -> int:
        """{signatures = all}: let held transactions land; answers how many."""
        return self.chain.release(_some(params))

    # What is behind that.

    def _view(self, config: Config) -> int:
        """The newest slot that the request may see. Raises RpcError."""
        level = config.get("commitment") or Commitment.FINALIZED
        if level not in tuple(Commitment):
            raise invalid(f"Invalid params: unknown variant `{level}`")
        slot = self.chain.slot(Commitment(level), self._lag)
        least = config.get("minContextSlot")
        if least is not None and slot < _number([least], 0, UNITS_MAX):
            message = "Minimum context slot has not been reached"
            raise RpcError(SLOT_NOT_REACHED, message, {"contextSlot": slot})
        return slot

    def _settled_view(self, config: Config) -> int:
        if config.get("commitment") == Commitment.PROCESSED:
            raise invalid("Method does not support commitment below `confirmed`")
        return self._view(config)

    def _level(self, slot: int) -> Commitment:
        """The commitment that a slot has reached, as this node sees it."""
        for level in (Commitment.FINALIZED, Commitment.CONFIRMED):
            if slot <= self.chain.slot(level, self._lag):
                return level
        return Commitment.PROCESSED

    def _decimals(self, slot: int) -> Callable[[Pubkey], int]:
        return lambda mint: self.chain.decimals(mint, slot)

    def _must_be_healthy(self) -> None:
        if self._lag > HEALTHY_SLOTS:
            message = f"Node is behind by {self._lag} slots"
            raise RpcError(NODE_UNHEALTHY, message, {"numSlotsBehind": self._lag})


def _in_context(slot: int, value: Any) -> dict[str, Any]:
    return {"context": {"apiVersion": VERSION["solana-core"], "slot": slot}, "value": value}


def _err(landed: Landed) -> Any:
    return None if landed.err is None else json.loads(landed.err)


def _preflight_error(err: Any, outcome: Outcome | None) -> RpcError:
    message = f"Transaction simulation failed: {error_text(err)}"
    return RpcError(PREFLIGHT_FAILED, message, _simulation(err, outcome))


def _simulation(err: Any, outcome: Outcome | None) -> dict[str, Any]:
    """What a simulation says; without an outcome it did not get as far as to run."""
    return {
        "accounts": None,
        "err": err,
        "innerInstructions": None,
        "logs": outcome.meta.logs() if outcome else [],
        "returnData": shapes.return_data(outcome) if outcome else None,
        "unitsConsumed": outcome.meta.compute_units_consumed() if outcome else 0,
    }


def _parse_transaction(text: str, config: Config) -> VersionedTransaction:
    """Read what sendTransaction was given. Raises RpcError."""
    name = "solana_transaction::versioned::VersionedTransaction"
    wire = _decoded(text, _encoding(config, "base58"))
    if len(wire) > TRANSACTION_BYTES_MAX:
        raise invalid(
            f"decoded {name} too large: {len(wire)} bytes (max: {TRANSACTION_BYTES_MAX} bytes)"
        )
    try:
        transaction = VersionedTransaction.from_bytes(wire)
        transaction.sanitize()
    except (ValueError, SanitizeError) as error:
        raise invalid(f"failed to deserialize {name}: {error}") from None
    message = transaction.message
    if isinstance(message, MessageV1):
        raise invalid("invalid transaction: a localnet takes legacy and v0 messages only")
    if isinstance(message, MessageV0) and message.address_table_lookups:
        raise invalid("invalid transaction: a localnet has no address lookup tables")
    if transaction.uses_durable_nonce():
        raise invalid("invalid transaction: a localnet has no durable nonces")
    return transaction


def _decoded(text: str, encoding: str) -> bytes:
    try:
        if encoding == "base64":
            return base64.b64decode(text, validate=True)
        if encoding == "base58" and len(text) <= 2 * TRANSACTION_BYTES_MAX:
            return shapes.from_base58(text)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"invalid {encoding} encoding: {error}") from None
    raise invalid(f"unsupported encoding: {encoding}. Supported encodings: base58, base64")


def _encoding(config: Config, default: str) -> str:
    encoding = config.get("encoding") or default
    if encoding not in {"base58", "base64", "json", "jsonParsed"}:
        raise invalid(f"Invalid params: unknown variant `{encoding}`")
    return str(encoding)


def _part(config: Config) -> slice | None:
    wanted = config.get("dataSlice")
    if not isinstance(wanted, dict):
        return None
    offset, length = (_number([wanted.get(name)], 0, UNITS_MAX) for name in ("offset", "length"))
    return slice(offset, offset + length)


def _is_wanted(program: Pubkey, wanted: Pubkey | None) -> bool:
    return wanted is None or program == wanted


def _config(params: list[Any], index: int) -> Config:
    """The optional object among the parameters; some methods take a bare encoding instead."""
    found = params[index] if len(params) > index else None
    if isinstance(found, str):
        return {"encoding": found}
    if not isinstance(found or {}, dict):
        raise invalid("Invalid params: invalid type, expected a configuration")
    return found or {}


def _text(params: list[Any], index: int) -> str:
    if len(params) <= index or not isinstance(params[index], str):
        raise invalid("Invalid params: invalid type, expected a string")
    return str(params[index])


def _list(params: list[Any], index: int) -> list[Any]:
    found = params[index] if len(params) > index else None
    if not isinstance(found, list):
        raise invalid("Invalid params: invalid type, expected a sequence")
    return found


def _number(params: list[Any], index: int, most: int) -> int:
    found = params[index] if len(params) > index else None
    if type(found) is not int or not 0 <= found <= most:
        raise invalid(f"Invalid params: expected a whole number up to {most}")
    return found


def _address(text: Any) -> Pubkey:
    try:
        return Pubkey.from_string(text)
    except (TypeError, ValueError):
        raise invalid("Invalid param: Invalid") from None


def _addresses(values: Any, most: int = ACCOUNTS_MAX) -> list[Pubkey]:
    if not isinstance(values, list):
        raise invalid("Invalid params: invalid type, expected a sequence")
    if len(values) > most:
        raise invalid(f"Too many inputs provided; max {most}")
    return [_address(each) for each in values]


def _signature(text: Any) -> str:
    """A signature in the one way to write it. Raises RpcError."""
    try:
        return str(Signature.from_string(text))
    except (TypeError, ValueError):
        raise invalid("Invalid param: Invalid") from None


def _some(params: Config) -> Collection[str] | None:
    wanted = params.get("signatures")
    return None if wanted is None else {_signature(each) for each in _list([wanted], 0)}


def _fault(params: Config) -> Fault:
    """Raise ValueError for what is no fault."""
    names = {
        "kind": "kind", "method": "method", "count": "count", "retryAfter": "retry_after",
        "slots": "slots", "code": "code", "message": "message", "data": "data",
    }  # fmt: skip
    unknown = params.keys() - names.keys()
    if unknown:
        raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
    found = {names[name]: value for name, value in params.items()}
    found["kind"] = Kind(found.get("kind", ""))
    for name in ("count", "slots", "code"):
        if type(found.get(name, 0)) is not int:
            raise ValueError(f"{name} must be a whole number")
    if found.get("count", 1) < 1 and found.get("count") != FOR_EVER:
        raise ValueError("count must be positive, or -1")
    if found.get("retry_after") is not None:
        found["retry_after"] = str(found["retry_after"])
    return Fault(**found)
