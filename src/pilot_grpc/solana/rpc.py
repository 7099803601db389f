"""Pilot's port to Solana: what it asks of RPC nodes, and what it makes of several of them.

Reads go to the first endpoint that answers, in the configured order. A transaction goes to all of
them at the same time. What releases money (it is not there, it failed, it can no longer land)
counts only when two endpoints say so: see `Rpc.agreed` and `Rpc.fate`.

Every method raises RpcErrors (solana/faults.py), and ValueError for arguments that no node could
answer; whatever a node answers, nothing else comes out.
"""

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from solders.signature import Signature

from pilot_grpc.solana import answers
from pilot_grpc.solana.answers import (
    Account,
    Blockhash,
    Commitment,
    PriorityFee,
    Seen,
    SignatureRow,
    Simulation,
    Status,
    TokenAccount,
    Transaction,
)
from pilot_grpc.solana.clusters import Cluster, Genesis
from pilot_grpc.solana.endpoint import (
    GENESIS,
    SMALL_BYTES_MAX,
    Clock,
    Endpoint,
    EndpointSettings,
    Patience,
    Question,
)
from pilot_grpc.solana.faults import (
    PREFLIGHT_FAILED,
    ClusterMismatch,
    RpcAmbiguous,
    RpcBehind,
    RpcDisagreed,
    RpcError,
    RpcGarbage,
    RpcLimited,
    RpcRejected,
    RpcUnavailable,
)

T = TypeVar("T")

# What nodes allow in one call.
SIGNATURES_MAX: Final = 256
SIGNATURE_ROWS_MAX: Final = 1_000
ACCOUNTS_MAX: Final = 100
FEE_ACCOUNTS_MAX: Final = 128
ACCOUNT_DATA_BYTES_MAX: Final = 10 * 1024 * 1024
TRANSACTION_BYTES_MAX: Final = 1_232
# Anybody can name a vault in a transaction of the newest format. What is read of one, its keys
# and the token balances beside it, is the same in all.
TRANSACTION_VERSION_MAX: Final = 1

# How long an answer may be. A row of a history holds the memo, which its payer chose: up to a
# kilobyte of control characters, which JSON writes with six letters each.
STATUS_BYTES_MAX: Final = 4 * 1024
ROW_BYTES_MAX: Final = 8 * 1024
ACCOUNT_BYTES_MAX: Final = 4 * 1024
LOGS_BYTES_MAX: Final = 256 * 1024
TRANSACTION_ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024

SIGNATURE_BYTES: Final = 64
# One byte says how many signatures there are, and any further bit of it means another byte.
SIGNATURES_OF_TRANSACTION_MAX: Final = 127

# So many endpoints must agree; where only one is configured, it decides alone.
QUORUM: Final = 2
# Within `agreed` an endpoint gets no more than a second try.
ROUNDS_WHEN_AGREEING: Final = 2
FAULT_CHARACTERS_MAX: Final = 500

# What several endpoints can have in common; together anything else means that nobody answered.
_SUMMED: Final = (RpcLimited, RpcGarbage, RpcBehind, ClusterMismatch)

# From the least sure to the most.
_LEVELS: Final = tuple(Commitment)

# With these a node says that it has not passed a transaction on. After anything else it may have.
_NOT_PASSED_ON: Final = frozenset(
    {
        PREFLIGHT_FAILED,
        -32003,  # a signature is wrong
        -32006,  # a precompiled program refuses
        -32013,  # a signature has another length
        -32600,  # invalid request
        -32601,  # no such method
        -32602,  # invalid parameters
    }
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What has become of a transaction. `expired`: it is not there, and can no longer land."""

    status: Status | None
    expired: bool


class Reads:
    """The questions, put to some endpoints in turn until one of them answers.

    Commitments are finalized where nothing else is said: what is read decides about money.
    `min_context_slot` keeps a node that has not seen so much from answering (RpcBehind).
    """

    def __init__(self, endpoints: Sequence[Endpoint], patience: Patience, clock: Clock) -> None:
        """Take whom to ask, in this order."""
        self._endpoints = tuple(endpoints)
        self._patience = patience
        self._clock = clock

    async def genesis_hash(self) -> str:
        """Return the hash of the first block."""
        return await self._ask(GENESIS)

    async def slot(
        self,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> int:
        """Return the newest slot."""

        def read(value: object) -> int:
            slot = answers.read_slot(value)
            if slot < (min_context_slot or 0):
                raise RpcBehind("the node has not seen the slot that was asked for")
            return slot

        config = _config(commitment, minContextSlot=min_context_slot)
        return await self._ask(Question("getSlot", [config], read))

    async def block_height(
        self,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> int:
        """Return how many blocks there are: what blockhashes expire by. It is not the slot."""
        config = _config(commitment, minContextSlot=min_context_slot)
        return await self._ask(Question("getBlockHeight", [config], answers.read_slot))

    async def first_available_block(self) -> int:
        """Return the first slot that the node's history still has."""
        return await self._ask(Question("getFirstAvailableBlock", [], answers.read_slot))

    async def latest_blockhash(
        self,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> Seen[Blockhash]:
        """Return a blockhash. Preflight what is signed with it at the same commitment."""
        return await self._ask(_blockhash_question(commitment, min_context_slot))

    async def recent_prioritization_fees(
        self, addresses: Sequence[str] = ()
    ) -> tuple[PriorityFee, ...]:
        """Return what was paid lately to write to all of these accounts, a row a slot."""
        _must_be_few(addresses, FEE_ACCOUNTS_MAX)
        params = [list(addresses)]
        read = answers.read_priority_fees
        return await self._ask(Question("getRecentPrioritizationFees", params, read))

    async def minimum_rent(
        self, data_length: int, commitment: Commitment = Commitment.FINALIZED
    ) -> int:
        """Return the lamports that an account with so much data must have."""
        if not 0 <= data_length <= ACCOUNT_DATA_BYTES_MAX:
            raise ValueError("no account has so much data")
        params = [data_length, _config(commitment)]
        method = "getMinimumBalanceForRentExemption"
        return await self._ask(
            Question(method, params, lambda value: answers.read_integer(value, "lamports"))
        )

    async def balance(
        self,
        address: str,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> Seen[int]:
        """Return the lamports of an account."""
        params = [address, _config(commitment, minContextSlot=min_context_slot)]
        read = _seen(lambda value: answers.read_integer(value, "lamports"), min_context_slot)
        return await self._ask(Question("getBalance", params, read))

    async def account_info(
        self,
        address: str,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> Seen[Account | None]:
        """Return what is at an address; None where nothing is."""
        params = [address, _account_config(commitment, min_context_slot)]
        read = _seen(answers.read_account, min_context_slot)
        return await self._ask(Question("getAccountInfo", params, read))

    async def token_account(
        self,
        address: str,
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> Seen[TokenAccount | None]:
        """Return the token account at an address; None where there is none.

        It may be one of any mint and of either token program: look before counting on it.
        """
        found = await self.account_info(address, commitment, min_context_slot=min_context_slot)
        return Seen(found.slot, found.value.token if found.value is not None else None)

    async def multiple_accounts(
        self,
        addresses: Sequence[str],
        commitment: Commitment = Commitment.FINALIZED,
        *,
        min_context_slot: int | None = None,
    ) -> Seen[tuple[Account | None, ...]]:
        """Return what is at up to ACCOUNTS_MAX addresses, all as of one slot, in their order."""
        _must_be_few(addresses, ACCOUNTS_MAX)
        count = len(addresses)
        question = Question(
            "getMultipleAccounts",
            [list(addresses), _account_config(commitment, min_context_slot)],
            _seen(lambda value: answers.read_accounts(value, count), min_context_slot),
            SMALL_BYTES_MAX + count * ACCOUNT_BYTES_MAX,
        )
        return await self._ask(question)

    async def signature_statuses(
        self,
        signatures: Sequence[str],
        *,
        search_history: bool = True,
        min_context_slot: int | None = None,
    ) -> Seen[tuple[Status | None, ...]]:
        """Return how up to SIGNATURES_MAX transactions fare, in their order.

        None only says that this node does not know the signature: see `Rpc.fate`. Without
        search_history nodes look at the last 150 blocks or so.
        """
        _must_be_few(signatures, SIGNATURES_MAX)
        return await self._ask(
            _statuses_question(signatures, search_history, min_context_slot=min_context_slot)
        )

    async def signatures_for_address(
        self,
        address: str,
        *,
        before: str | None = None,
        until: str | None = None,
        limit: int = SIGNATURE_ROWS_MAX,
        commitment: Commitment = Commitment.FINALIZED,
        min_context_slot: int | None = None,
    ) -> tuple[SignatureRow, ...]:
        """Return a page of an address's history, newest first, failed transactions included.

        Nodes go wrong here: an `until` that they do not know is passed over, the order within a
        slot differs between them, rows can be missing, or be there twice. PROCESSED is refused.
        """
        if not 1 <= limit <= SIGNATURE_ROWS_MAX:
            raise ValueError(f"a page has 1 to {SIGNATURE_ROWS_MAX} rows")
        config = _config(
            commitment, before=before, until=until, limit=limit, minContextSlot=min_context_slot
        )
        question = Question(
            "getSignaturesForAddress",
            [address, config],
            lambda value: answers.read_signature_rows(value, limit),
            SMALL_BYTES_MAX + limit * ROW_BYTES_MAX,
        )
        return await self._ask(question)

    async def transaction(
        self, signature: str, commitment: Commitment = Commitment.FINALIZED
    ) -> Transaction | None:
        """Return a transaction with its token balances; None where this node does not have it."""
        config = _config(
            commitment,
            encoding="json",
            maxSupportedTransactionVersion=TRANSACTION_VERSION_MAX,
        )
        question = Question(
            "getTransaction",
            [signature, config],
            lambda value: None if value is None else answers.read_transaction(value, signature),
            TRANSACTION_ANSWER_BYTES_MAX,
        )
        return await self._ask(question)

    async def simulate(
        self,
        transaction: bytes,
        *,
        commitment: Commitment = Commitment.CONFIRMED,
        verify_signatures: bool = False,
        replace_blockhash: bool = False,
        min_context_slot: int | None = None,
    ) -> Seen[Simulation]:
        """Return what a transaction would do. Nodes cannot both verify and replace."""
        _must_be_a_transaction(transaction)
        config = _config(
            commitment,
            encoding="base64",
            sigVerify=verify_signatures,
            replaceRecentBlockhash=replace_blockhash,
            minContextSlot=min_context_slot,
        )
        question = Question(
            "simulateTransaction",
            [_base64(transaction), config],
            _seen(answers.read_simulation, min_context_slot),
            LOGS_BYTES_MAX,
        )
        return await self._ask(question)

    async def airdrop(self, address: str, lamports: int) -> str:
        """Ask for SOL that is worth nothing, where there is such; return the signature."""
        params = [address, lamports]
        return await self._ask(Question("requestAirdrop", params, answers.read_signature))

    async def _ask(self, question: Question[T]) -> T:
        seconds = self._patience.call_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._ask_in_rounds(question)
        except TimeoutError:
            text = f"{question.method} had no answer within {seconds:g} seconds"
            raise RpcUnavailable(text) from None

    async def _ask_in_rounds(self, question: Question[T]) -> T:
        """Go through the endpoints until one answers; pause, and begin again with the first."""
        deadline = self._clock.monotonic() + self._patience.call_seconds
        left = self._patience.rounds
        while True:
            faults: list[RpcError] = []
            for endpoint in self._endpoints:
                try:
                    return await endpoint.ask(question)
                except RpcError as fault:
                    faults.append(fault)
            asked = [fault for fault in faults if fault.asked]
            if asked and all(isinstance(fault, RpcRejected) for fault in asked):
                raise asked[0]  # Another round would end the same.
            left -= 1
            pause = self._pause(self._patience.rounds - left, faults)
            if left <= 0 or pause is None or self._clock.monotonic() + pause >= deadline:
                raise _summary(question.method, faults)
            await self._clock.sleep(pause)

    def _pause(self, rounds: int, faults: Sequence[RpcError]) -> float | None:
        """Return how long to wait: at random, and until one of the endpoints wants to be asked."""
        waits = [
            fault.retry_after or 0.0
            for fault in faults
            if not isinstance(fault, ClusterMismatch | RpcRejected)
        ]
        if not waits:
            return None
        longest = self._patience.backoff_seconds * 2 ** (rounds - 1)
        backoff = self._clock.between(0.0, min(longest, self._patience.backoff_seconds_max))
        return max(backoff, min(waits))


class Rpc(Reads):
    """The configured endpoints together. Belongs to one event loop."""

    def __init__(
        self,
        cluster: Cluster,
        endpoints: Sequence[EndpointSettings],
        patience: Patience | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Take the cluster that every endpoint must belong to, and the endpoints, best first.

        Raises ValueError for no endpoint at all, and for one that is given twice: it would
        agree with itself.
        """
        if not endpoints:
            raise ValueError("at least one RPC endpoint is needed")
        if len({settings.url.rstrip("/") for settings in endpoints}) < len(endpoints):
            raise ValueError("an RPC endpoint is given twice")
        patience, clock = patience or Patience(), clock or Clock()
        genesis = Genesis(cluster)
        super().__init__(
            [Endpoint(settings, genesis, patience, clock) for settings in endpoints],
            patience,
            clock,
        )
        self.cluster = cluster
        self._nodes = [
            Reads([endpoint], replace(patience, rounds=ROUNDS_WHEN_AGREEING), clock)
            for endpoint in self._endpoints
        ]
        self._sending: set[asyncio.Task[str]] = set()

    async def start(self) -> None:
        """Check every endpoint's cluster now. One that is away is checked when it is back.

        Raises ClusterMismatch when every endpoint belongs to another cluster. As long as some
        do, they are never used, and an error is logged for each.
        """
        found = await asyncio.gather(*(_outcome(each.check) for each in self._endpoints))
        mismatches = [fault for fault in found if isinstance(fault, ClusterMismatch)]
        if len(mismatches) == len(self._endpoints):
            raise mismatches[0]

    async def close(self) -> None:
        """Give up what is under way, and close the connections."""
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        for endpoint in self._endpoints:
            await endpoint.close()

    async def send(
        self,
        transaction: bytes,
        *,
        preflight_commitment: Commitment,
        skip_preflight: bool = False,
        max_retries: int = 0,
        min_context_slot: int | None = None,
    ) -> str:
        """Send a signed transaction to all endpoints at once; return its signature.

        Returns when the first accepts it, which says nothing about whether it will land; the
        other sendings go on. Nothing is tried again: send the same bytes again, as often as
        wanted. The preflight commitment must be that of the transaction's blockhash.

        Raises RpcRejected when every node that was reached says that it has not passed it on,
        RpcAmbiguous when one may have, and RpcUnavailable, RpcLimited or ClusterMismatch when
        it was sent to nobody.
        """
        _must_be_a_transaction(transaction)
        signature = str(Signature.from_bytes(transaction[1 : 1 + SIGNATURE_BYTES]))

        def read(value: object) -> str:
            if answers.read_signature(value) != signature:
                raise RpcGarbage("the node answers with the signature of another transaction")
            return signature

        config = {
            "encoding": "base64",
            "preflightCommitment": preflight_commitment,
            "skipPreflight": skip_preflight,
            "maxRetries": max_retries,
            **_given(minContextSlot=min_context_slot),
        }
        question = Question("sendTransaction", [_base64(transaction), config], read, LOGS_BYTES_MAX)
        return await self._first_success(question)

    async def _first_success(self, question: Question[str]) -> str:
        tasks = [asyncio.create_task(each.ask(question)) for each in self._endpoints]
        for task in tasks:
            self._sending.add(task)
            task.add_done_callback(self._sent)
        faults: list[RpcError] = []
        try:
            for sending in asyncio.as_completed(tasks):
                try:
                    return await sending
                except RpcError as fault:
                    faults.append(fault)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        raise _fault_of_sending(question.method, faults)

    def _sent(self, task: asyncio.Task[str]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # Nobody waits for those that come after the first success.

    async def agreed(
        self,
        ask: Callable[[Reads, int], Awaitable[T]],
        verdict: Callable[[T], Hashable | None],
        *,
        min_context_slot: int = 0,
    ) -> T:
        """Ask every endpoint by itself; return an answer that releases money only if two agree.

        `ask` gets one endpoint and its newest finalized slot, to be used as min_context_slot.
        `verdict` names what an answer decides, and is None for one that decides nothing (it
        is still under way): such an answer counts at once, whoever gives it.

        An endpoint does not take part when it has not seen min_context_slot, when it is
        lag_slots_max behind the second-newest, or when it fails. Of the others all must have
        the same verdict, and they must be QUORUM at least (one, if one is configured).

        Raises RpcDisagreed for different verdicts, RpcUnavailable for too few.
        """
        quorum = min(QUORUM, len(self._nodes))
        slots = await asyncio.gather(*(_outcome(node.slot) for node in self._nodes))
        newest = sorted((slot for slot in slots if isinstance(slot, int)), reverse=True)
        quorum_slot = newest[:quorum][-1] if newest else 0
        floor = max(min_context_slot, quorum_slot - self._patience.lag_slots_max)
        found = await asyncio.gather(
            *(
                _outcome(partial(ask, node, slot))
                for node, slot in zip(self._nodes, slots, strict=True)
                if isinstance(slot, int) and slot >= floor
            )
        )
        replies = [(verdict(each), each) for each in found if not isinstance(each, RpcError)]
        for decided, reply in replies:
            if decided is None:
                return reply
        if len({decided for decided, _ in replies}) > 1:
            raise RpcDisagreed("RPC endpoints contradict each other; nothing is decided")
        if len(replies) < quorum:
            faults = [each for each in (*slots, *found) if isinstance(each, RpcError)]
            text = f"{len(replies)} of {quorum} endpoints that must agree have answered"
            raise RpcUnavailable(f"{text}; {_texts(faults)}")
        return replies[0][1]

    async def newest_blockhash(
        self, commitment: Commitment = Commitment.FINALIZED
    ) -> Seen[Blockhash]:
        """Return the newest blockhash that an endpoint has, to sign with, as far as they answer.

        It counts as good for as long as the one says that gives it the longest time: what is
        given up too early, because of one node that names too low a height, is signed anew
        and lands twice. An endpoint that names too high a height only makes it wait.
        """
        replies = await self._ask_each(_blockhash_question(commitment))
        found = [each for each in replies if not isinstance(each, RpcError)]
        if not found:
            return await self.latest_blockhash(commitment)  # That tries more than once.
        newest = max(found, key=lambda each: each.slot)
        last = max(each.value.last_valid_block_height for each in found)
        return Seen(newest.slot, replace(newest.value, last_valid_block_height=last))

    async def statuses(
        self,
        signatures: Sequence[str],
        *,
        search_history: bool,
        counts: Commitment = Commitment.FINALIZED,
    ) -> list[Status | None]:
        """Return how any number of transactions fare, in their order, as endpoints see it.

        A status has a commitment that `counts`, or a higher one, when QUORUM endpoints say so
        (one, if one is configured), with the same slot and the same error. Else it is the most
        that any endpoint says below that, which may yet change. None when nobody knows it: see
        `fate`.

        Each endpoint is asked once for SIGNATURES_MAX signatures; one that fails takes no part.
        Raises RpcErrors when all fail.
        """
        found: list[Status | None] = []
        for start in range(0, len(signatures), SIGNATURES_MAX):
            found += await self._statuses(
                signatures[start : start + SIGNATURES_MAX], search_history, counts
            )
        return found

    async def _statuses(
        self, signatures: Sequence[str], search_history: bool, counts: Commitment
    ) -> list[Status | None]:
        question = _statuses_question(signatures, search_history)
        replies = await self._ask_each(question)
        seen = [each.value for each in replies if not isinstance(each, RpcError)]
        if not seen:
            raise _summary(
                question.method, [each for each in replies if isinstance(each, RpcError)]
            )
        quorum = min(QUORUM, len(self._endpoints))
        return [
            _at_least([status for status in of_one if status is not None], quorum, counts)
            for of_one in zip(*seen, strict=True)
        ]

    async def _ask_each(self, question: Question[T]) -> list[T | RpcError]:
        """Ask all endpoints at the same time, each once; return the faults, too."""
        asking = (partial(each.ask, question) for each in self._endpoints)
        return list(await asyncio.gather(*map(_outcome, asking)))

    async def fate(
        self,
        signature: str,
        last_valid_block_height: int,
        *,
        since_slot: int | None = None,
        min_context_slot: int = 0,
    ) -> Fate:
        """Find out what has become of a transaction, in a way that money can be released on.

        A finalized status and `expired` are what two endpoints agree on; anything else may
        change. A transaction has expired when the finalized height has passed its last valid
        block, and *after that* the node's whole history does not know the signature.

        since_slot is where the history must reach back to: the slot of the transaction's
        blockhash. Nodes forget after a day or two, and one that has forgotten knows nothing.
        """

        async def look(node: Reads, slot: int) -> Fate:
            height = await node.block_height(min_context_slot=slot)
            passed = height > last_valid_block_height
            if passed:
                slot = await node.slot(min_context_slot=slot)
            found = await node.signature_statuses([signature], min_context_slot=slot)
            status = found.value[0]
            expired = passed and status is None
            if expired and since_slot is not None:
                await _must_reach_back(node, since_slot)
            return Fate(status, expired)

        return await self.agreed(look, _verdict, min_context_slot=min_context_slot)


def _verdict(fate: Fate) -> Hashable | None:
    if fate.expired:
        return "expired"
    if fate.status is None or not fate.status.finalized:
        return None
    return "landed" if fate.status.err is None else "failed"


def _at_least(sightings: Sequence[Status], quorum: int, counts: Commitment) -> Status | None:
    """Put together what endpoints say of one transaction."""
    for level in range(_LEVELS.index(Commitment.FINALIZED), _LEVELS.index(counts) - 1, -1):
        reached = [each for each in sightings if _LEVELS.index(each.commitment) >= level]
        counted = Counter(map(_landing, reached))
        agreed = [landing for landing, count in counted.items() if count >= quorum]
        if len(agreed) == 1:
            first = next(each for each in reached if _landing(each) == agreed[0])
            return replace(first, commitment=_LEVELS[level])
    most = max(sightings, key=lambda each: _LEVELS.index(each.commitment), default=None)
    if most is None or _LEVELS.index(most.commitment) < _LEVELS.index(counts):
        return most
    return replace(most, commitment=_LEVELS[_LEVELS.index(counts) - 1])


def _landing(status: Status) -> Hashable:
    """What must be the same of a finalized status: all but how nodes write the details."""
    err = status.err
    return (status.slot, err and replace(err, detail=None))


async def _must_reach_back(node: Reads, slot: int) -> None:
    if await node.first_available_block() > slot:
        raise RpcBehind("the node's history begins after the transaction was signed")


async def _outcome(ask: Callable[[], Awaitable[T]]) -> T | RpcError:
    """Return the fault instead of raising it."""
    try:
        return await ask()
    except RpcError as fault:
        return fault


def _fault_of_sending(method: str, faults: Sequence[RpcError]) -> RpcError:
    """Say what it means that nobody accepted a transaction."""
    asked = [fault for fault in faults if fault.asked]
    if not asked:
        return _summary(method, faults)
    rejections = [
        fault for fault in asked if isinstance(fault, RpcRejected) and fault.code in _NOT_PASSED_ON
    ]
    if len(rejections) < len(asked):
        text = f"the transaction may be on its way; {_texts(asked)}"
        return RpcAmbiguous(text, retry_after=_soonest(faults))
    # The one that says most: that it was executed, or why it would fail.
    return max(rejections, key=lambda fault: (fault.already_processed, fault.err is not None))


def _summary(method: str, faults: Sequence[RpcError]) -> RpcError:
    """Say in one fault why nobody answered: which it was, if it was the same everywhere."""
    kinds = {type(fault) for fault in faults}
    kind = next((each for each in _SUMMED if kinds == {each}), RpcUnavailable)
    summary = kind(f"{method}: {_texts(faults)}")
    summary.retry_after = _soonest(faults)
    summary.asked = any(fault.asked for fault in faults)
    return summary


def _soonest(faults: Sequence[RpcError]) -> float | None:
    return min((f.retry_after for f in faults if f.retry_after is not None), default=None)


def _texts(faults: Sequence[RpcError]) -> str:
    return "; ".join(map(str, faults))[:FAULT_CHARACTERS_MAX]


def _blockhash_question(
    commitment: Commitment, min_context_slot: int | None = None
) -> Question[Seen[Blockhash]]:
    config = _config(commitment, minContextSlot=min_context_slot)
    read = _seen(answers.read_blockhash, min_context_slot)
    return Question("getLatestBlockhash", [config], read)


def _statuses_question(
    signatures: Sequence[str], search_history: bool, min_context_slot: int | None = None
) -> Question[Seen[tuple[Status | None, ...]]]:
    count = len(signatures)
    return Question(
        "getSignatureStatuses",
        [list(signatures), {"searchTransactionHistory": search_history}],
        _seen(lambda value: answers.read_statuses(value, count), min_context_slot),
        SMALL_BYTES_MAX + count * STATUS_BYTES_MAX,
    )


def _seen(read: Callable[[Any], T], min_context_slot: int | None) -> Callable[[object], Seen[T]]:
    return lambda value: answers.read_seen(value, read, min_context_slot)


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _config(commitment: Commitment, **values: object) -> dict[str, object]:
    return {"commitment": commitment, **_given(**values)}


def _account_config(commitment: Commitment, min_context_slot: int | None) -> dict[str, object]:
    part = {"offset": 0, "length": answers.DATA_BYTES_READ}
    return _config(commitment, encoding="base64", dataSlice=part, minContextSlot=min_context_slot)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _must_be_few(values: Sequence[str], most: int) -> None:
    if len(values) > most:
        raise ValueError(f"one call takes {most} at most")


def _must_be_a_transaction(data: bytes) -> None:
    """Check only what is used here: that the first signature is where it belongs."""
    if not SIGNATURE_BYTES < len(data) <= TRANSACTION_BYTES_MAX:
        raise ValueError("no transaction has this size")
    if not 1 <= data[0] <= SIGNATURES_OF_TRANSACTION_MAX:
        raise ValueError("a transaction begins with the number of its signatures")
