"""One payment of USDC out of a vault: judged, simulated, and signed. Nothing is sent here.

Whoever pays stores what `prepare` returns before the first send, sends with preflight at
PREFLIGHT_COMMITMENT, and sends the same bytes again until the chain decides (`Rpc.fate`).

Whatever is raised here, nothing was signed:

* PaymentRefused: this payment cannot be made, and two endpoints say so (one, if one is
  configured). The money may be given back.
* FeePayerTooLow: it can be made once somebody has topped up the fee payer.
* RpcErrors and SigningFailed: not now. Try again later.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from solders.compute_budget import set_compute_unit_limit, set_compute_unit_price
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from spl.memo.constants import MEMO_PROGRAM_ID
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import create_idempotent_associated_token_account, transfer_checked
from spl.token.models import TransferCheckedParams

from pilot_grpc.solana.addresses import USDC_DECIMALS, is_wallet, token_account
from pilot_grpc.solana.answers import (
    SYSTEM_PROGRAM,
    TOKEN_ACCOUNT_BYTES,
    TOKEN_PROGRAM,
    U64_MAX,
    Account,
    Blockhash,
    Commitment,
    PriorityFee,
    Seen,
    Simulation,
    TokenAccount,
    TokenState,
)
from pilot_grpc.solana.faults import RpcGarbage, RpcUnavailable, TransactionError, clean
from pilot_grpc.solana.rpc import Reads, Rpc
from pilot_grpc.solana.signing import Signer

T = TypeVar("T")

# The commitment of the blockhash that is signed, and so of the preflight: at another one nodes
# say "Blockhash not found". A confirmed blockhash is 31 blocks younger than a finalized one, so
# its transaction has a quarter more time to land; if its fork were dropped (which has never
# happened to a confirmed block), the transaction would expire and be signed anew.
PREFLIGHT_COMMITMENT: Final = Commitment.CONFIRMED

MEMO_BYTES_MAX: Final = 128
DETAIL_CHARACTERS_MAX: Final = 300

LAMPORTS_OF_A_SIGNATURE: Final = 5_000
MICRO_LAMPORTS_OF_A_LAMPORT: Final = 1_000_000
PERCENT: Final = 100

COMPUTE_UNITS_MAX: Final = 1_400_000  # Of a transaction.

# What the System program says, and the Token program.
SYSTEM_INSUFFICIENT_FUNDS: Final = 1
TOKEN_INSUFFICIENT_FUNDS: Final = 1
TOKEN_ACCOUNT_FROZEN: Final = 17

# The fee payer cannot pay its fee, or would be left with less than an account must have.
_OF_THE_FEE_PAYER: Final = frozenset(
    {
        "AccountNotFound",
        "InsufficientFundsForFee",
        "InsufficientFundsForRent",
        "InvalidRentPayingAccount",
    }
)
# These say something of the moment, not of the payment.
_OF_THE_MOMENT: Final = frozenset(
    {
        "AccountInUse",
        "AlreadyProcessed",
        "BlockhashNotFound",
        "ClusterMaintenance",
        "CommitCancelled",
        "ProgramCacheHitMaxLimit",
        "ResanitizationNeeded",
        "WouldExceedAccountDataBlockLimit",
        "WouldExceedAccountDataTotalLimit",
        "WouldExceedMaxAccountCostLimit",
        "WouldExceedMaxBlockCostLimit",
        "WouldExceedMaxVoteCostLimit",
    }
)


class Refusal(StrEnum):
    """Why a payment cannot be made."""

    # Nobody can have its key, or it is a token account, a mint or a program.
    RECIPIENT_NOT_A_WALLET = "recipient_not_a_wallet"
    RECIPIENT_IS_THE_VAULT = "recipient_is_the_vault"
    # Its token account is not there (any more), or belongs to somebody else.
    RECIPIENT_HAS_NO_ACCOUNT = "recipient_has_no_account"
    # The issuer has frozen the vault's or the recipient's token account.
    ACCOUNT_FROZEN = "account_frozen"
    # Less on chain than is to be paid.
    VAULT_HAS_TOO_LITTLE = "vault_has_too_little"
    # The chain would not execute it, for another reason.
    REJECTED = "rejected"


class PaymentRefused(Exception):
    """A payment cannot be made. Nothing was signed, so giving the money back is safe."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        """Take why, and a text for people, which is cleaned and cut."""
        self.refusal = refusal
        self.detail = clean(detail, DETAIL_CHARACTERS_MAX)
        super().__init__(f"{refusal}: {self.detail}")


class FeePayerTooLow(Exception):
    """The fee payer needs more SOL. Nothing was signed; try again when it has it."""

    def __init__(self, needed: int, had: int) -> None:
        """Take both in lamports."""
        self.needed = needed
        self.had = had
        super().__init__(f"the fee payer needs {needed} lamports and has {had}")


@dataclass(frozen=True, slots=True)
class Payment:
    """So much USDC, in minor units, from a vault to a wallet, for an event of the ledger.

    The event's id becomes the memo: two payments never have the same bytes, or they would be one
    to the chain. Raises ValueError for what is no payment at all.
    """

    event_id: str
    vault: str
    recipient: str
    amount: int
    mint: str

    def __post_init__(self) -> None:
        """Check what the chain would not understand."""
        if not 1 <= len(self.event_id.encode()) <= MEMO_BYTES_MAX:
            raise ValueError(f"a memo has 1 to {MEMO_BYTES_MAX} bytes")
        if not 1 <= self.amount <= U64_MAX:
            raise ValueError("an amount is positive and fits into 64 bits")

    @property
    def source(self) -> str:
        """The vault's token account."""
        return token_account(self.vault, self.mint)

    @property
    def destination(self) -> str:
        """The recipient's token account."""
        return token_account(self.recipient, self.mint)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A payment can be made, as far as the accounts show it."""

    # The recipient has no token account yet. The fee payer would pay its rent, which the
    # recipient can take by closing it: an amount of its own, to be allowed by a policy.
    needs_account: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeePolicy:
    """What a payment may cost. Compute units are paid as requested, not as used."""

    # Micro-lamports a unit, at most and at least. 1,000,000 x 30,000 units are 30,000 lamports.
    price_max: int = 1_000_000
    price_min: int = 0
    # Of what others paid lately, slot by slot, to write to the same accounts.
    price_percentile: int = 75
    # How much more than the simulation used is requested, and how much at least and at most.
    # With too few the payment fails for good; too many cost next to nothing.
    units_margin_percent: int = 30
    units_min: int = 20_000
    units_max: int = 200_000

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. Raises ValueError."""
        if not 0 <= self.price_min <= self.price_max <= U64_MAX:
            raise ValueError("0 <= price_min <= price_max must hold")
        if not 0 <= self.price_percentile <= PERCENT:
            raise ValueError("a percentile is between 0 and 100")
        if not 1 <= self.units_min <= self.units_max <= COMPUTE_UNITS_MAX:
            raise ValueError(f"1 <= units_min <= units_max <= {COMPUTE_UNITS_MAX} must hold")
        if self.units_margin_percent < 0:
            raise ValueError("a margin is not negative")

    def price(self, fees: Sequence[PriorityFee]) -> int:
        """Return what to pay a unit, in micro-lamports."""
        paid = sorted(each.fee for each in fees)
        if not paid:
            return self.price_min
        found = paid[(len(paid) - 1) * self.price_percentile // PERCENT]
        return min(max(found, self.price_min), self.price_max)

    def units(self, used: int | None) -> int:
        """Return how many units to request; the most when a simulation did not count them."""
        if used is None:
            return self.units_max
        wanted = used + _ceiling(used * self.units_margin_percent, PERCENT)
        return min(max(wanted, self.units_min), self.units_max)


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction that has been signed and not been sent.

    It can land up to last_valid_block_height. `slot` is the one of its blockhash: a node that
    has not seen it does not know the blockhash, and one whose history begins later does not
    know what became of the transaction.
    """

    signature: str
    transaction: bytes = field(repr=False)
    blockhash: str
    last_valid_block_height: int
    slot: int


class RecentPrices:
    """What things cost lately, remembered for a few seconds. One for a process is enough.

    What is remembered never decides whether money moves: too low a price makes a payment slow,
    and what accounts must have changes once in years.
    """

    SECONDS: Final = 10.0
    ENTRIES_MAX: Final = 1_024

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing."""
        self._monotonic = monotonic
        self._found: dict[Any, tuple[float, Any]] = {}

    async def priority_fees(self, rpc: Reads, addresses: Sequence[str]) -> tuple[PriorityFee, ...]:
        """Return what was paid lately to write to these accounts."""
        key = ("fees", *addresses)
        return await self._remembered(key, lambda: rpc.recent_prioritization_fees(addresses))

    async def rent(self, rpc: Reads, data_length: int) -> int:
        """Return the lamports that an account with so much data must have."""
        return await self._remembered(("rent", data_length), lambda: rpc.minimum_rent(data_length))

    async def _remembered(self, key: Any, ask: Callable[[], Awaitable[T]]) -> T:
        at, found = self._found.get(key, (float("-inf"), None))
        if self._monotonic() - at < self.SECONDS:
            return found  # type: ignore[no-any-return] # Each key has answers of one type.
        answer = await ask()
        if len(self._found) >= self.ENTRIES_MAX:
            self._found.clear()
        self._found[key] = (self._monotonic(), answer)
        return answer


# -- Judging


async def judge(rpc: Rpc, payment: Payment, *, may_make_account: bool = True) -> Judgement:
    """Find out whether a payment can be made, as far as the accounts show it.

    Where none may be made, a recipient without an account is refused, too.
    Raises PaymentRefused, and RpcErrors.
    """
    if payment.recipient in {payment.vault, payment.source}:
        raise PaymentRefused(Refusal.RECIPIENT_IS_THE_VAULT, "a vault cannot pay itself")
    if not is_wallet(payment.recipient):
        raise PaymentRefused(Refusal.RECIPIENT_NOT_A_WALLET, "nobody can have the recipient's key")

    async def look(node: Reads, slot: int | None) -> Judgement | PaymentRefused:
        found = await _look(node, payment, slot)
        if isinstance(found, Judgement) and found.needs_account and not may_make_account:
            text = "the recipient has no account for USDC, and none is made for it"
            return PaymentRefused(Refusal.RECIPIENT_HAS_NO_ACCOUNT, text)
        return found

    found = await look(rpc, None)
    if isinstance(found, PaymentRefused):
        found = await rpc.agreed(
            look, lambda each: each.refusal if isinstance(each, PaymentRefused) else None
        )
    if isinstance(found, PaymentRefused):
        raise found
    return found


async def _look(
    rpc: Reads, payment: Payment, min_context_slot: int | None = None
) -> Judgement | PaymentRefused:
    """Judge a payment on what a node shows, all as of one slot."""
    seen = await rpc.multiple_accounts(
        [payment.recipient, payment.destination, payment.source],
        PREFLIGHT_COMMITMENT,
        min_context_slot=min_context_slot,
    )
    recipient, destination, source = seen.value
    refused = (
        _refusal_of_recipient(recipient)
        or _refusal_of_source(_holding(source, payment.mint), payment)
        or _refusal_of_destination(_holding(destination, payment.mint), payment)
    )
    return refused or Judgement(needs_account=destination is None or destination.token is None)


def _holding(account: Account | None, mint: str) -> TokenAccount | None:
    """Take the token account out of what is at an associated token account's address.

    Somebody may have sent SOL there, and nothing else: that is no token account yet.
    """
    token = account.token if account is not None else None
    if token is not None and (token.mint, token.program) != (mint, TOKEN_PROGRAM):
        raise RpcGarbage("an associated token account is of another mint")
    return token


def _refusal_of_recipient(account: Account | None) -> PaymentRefused | None:
    """A wallet is an account of the System program, or not there as long as it has no SOL."""
    if account is None:
        return None
    if account.executable:
        text = "the recipient is a program"
    elif account.token is not None:
        text = "the recipient is a token account; its owner's wallet is wanted"
    elif account.owner != SYSTEM_PROGRAM:
        text = f"the recipient belongs to the program {account.owner}"
    else:
        return None
    return PaymentRefused(Refusal.RECIPIENT_NOT_A_WALLET, text)


def _refusal_of_source(token: TokenAccount | None, payment: Payment) -> PaymentRefused | None:
    if token is None:
        return PaymentRefused(Refusal.VAULT_HAS_TOO_LITTLE, "the vault has no token account")
    if token.owner != payment.vault:
        return PaymentRefused(Refusal.REJECTED, "the vault's token account has another owner")
    if token.state is TokenState.FROZEN:
        return PaymentRefused(Refusal.ACCOUNT_FROZEN, "the vault's token account is frozen")
    if token.amount < payment.amount:
        text = f"the vault holds {token.amount} on chain, and {payment.amount} are to be paid"
        return PaymentRefused(Refusal.VAULT_HAS_TOO_LITTLE, text)
    return None


def _refusal_of_destination(token: TokenAccount | None, payment: Payment) -> PaymentRefused | None:
    """Its owner can give a token account away, and it stays at its address."""
    if token is None:
        return None
    if token.owner != payment.recipient:
        text = "the recipient's token account belongs to somebody else"
        return PaymentRefused(Refusal.RECIPIENT_HAS_NO_ACCOUNT, text)
    if token.state is TokenState.FROZEN:
        return PaymentRefused(Refusal.ACCOUNT_FROZEN, "the recipient's token account is frozen")
    return None


# -- Preparing


@dataclass(frozen=True, slots=True)
class _Draft:
    """The transaction of a payment, but for what is known last: its limit, price and blockhash."""

    payment: Payment
    needs_account: bool
    fee_payer: str

    @property
    def signers(self) -> int:
        return len({self.fee_payer, self.payment.vault})

    @property
    def writable(self) -> tuple[str, ...]:
        return (self.fee_payer, self.payment.source, self.payment.destination)

    def of_the_creation(self, err: TransactionError) -> bool:
        return self.needs_account and err.instruction == len(self._budget(0, 0))

    def of_the_transfer(self, err: TransactionError) -> bool:
        return err.instruction == len(self._budget(0, 0)) + self.needs_account

    def message(self, units: int, price: int, blockhash: str) -> MessageV0:
        instructions = [*self._budget(units, price), self._transfer(), self._memo()]
        if self.needs_account:
            instructions.insert(-2, self._creation())
        payer = Pubkey.from_string(self.fee_payer)
        return MessageV0.try_compile(payer, instructions, [], Hash.from_string(blockhash))

    def _budget(self, units: int, price: int) -> list[Instruction]:
        return [set_compute_unit_limit(units), set_compute_unit_price(price)]

    def _creation(self) -> Instruction:
        """Make the recipient's token account, if nobody else has done so in the meantime."""
        return create_idempotent_associated_token_account(
            Pubkey.from_string(self.fee_payer),
            Pubkey.from_string(self.payment.recipient),
            Pubkey.from_string(self.payment.mint),
            TOKEN_PROGRAM_ID,
        )

    def _transfer(self) -> Instruction:
        return transfer_checked(
            TransferCheckedParams(
                program_id=TOKEN_PROGRAM_ID,
                source=Pubkey.from_string(self.payment.source),
                mint=Pubkey.from_string(self.payment.mint),
                dest=Pubkey.from_string(self.payment.destination),
                owner=Pubkey.from_string(self.payment.vault),
                amount=self.payment.amount,
                decimals=USDC_DECIMALS,
            )
        )

    def _memo(self) -> Instruction:
        """Name the event. The vault signs the memo, so that nobody else can have written it."""
        vault = AccountMeta(
            Pubkey.from_string(self.payment.vault), is_signer=True, is_writable=False
        )
        return Instruction(MEMO_PROGRAM_ID, self.payment.event_id.encode(), [vault])


@dataclass(frozen=True, slots=True)
class _Answers:
    """What is asked at the same time before a payment can be signed. Lamports, but for the fees."""

    simulation: Simulation
    blockhash: Seen[Blockhash]
    balance: int
    fees: tuple[PriorityFee, ...]
    # What the fee payer must have beside the fee: the rent that it pays, and its own.
    rent: int


async def prepare(
    rpc: Rpc,
    payment: Payment,
    judgement: Judgement,
    vault: Signer,
    fee_payer: Signer,
    policy: FeePolicy,
    prices: RecentPrices | None = None,
) -> Signed:
    """Simulate a payment that was judged, and sign it. The vault may be its own fee payer.

    What is simulated differs from what is signed in its limit, its price and its blockhash only,
    so that all questions can be asked at the same time.

    Raises PaymentRefused, FeePayerTooLow, SigningFailed and RpcErrors, and ValueError for the
    signer of another vault.
    """
    if vault.address != payment.vault:
        raise ValueError("the signer is not the vault's")
    draft = _Draft(payment, judgement.needs_account, fee_payer.address)
    trial = _unsigned(draft.message(policy.units_max, 0, str(Hash.default())))
    found = await _ask(rpc, draft, trial, prices or RecentPrices())
    simulation, price = found.simulation, policy.price(found.fees)
    if simulation.err is not None:
        needed = _fee(draft.signers, policy.units_max, price) + found.rent
        simulation = await _second_opinion(rpc, draft, trial, FeePayerTooLow(needed, found.balance))
    units = policy.units(simulation.units)
    needed = _fee(draft.signers, units, price) + found.rent
    if found.balance < needed:
        await _check_balance(rpc, draft.fee_payer, needed)
    blockhash = found.blockhash.value
    message = draft.message(units, price, blockhash.blockhash)
    transaction = await _signed(message, (fee_payer, vault))
    return Signed(
        signature=str(transaction.signatures[0]),
        transaction=bytes(transaction),
        blockhash=blockhash.blockhash,
        last_valid_block_height=blockhash.last_valid_block_height,
        slot=found.blockhash.slot,
    )


async def _ask(rpc: Rpc, draft: _Draft, trial: bytes, prices: RecentPrices) -> _Answers:
    async with _together() as group:
        simulation = group.create_task(_simulate(rpc, trial))
        blockhash = group.create_task(rpc.newest_blockhash(PREFLIGHT_COMMITMENT))
        balance = group.create_task(rpc.balance(draft.fee_payer, PREFLIGHT_COMMITMENT))
        fees = group.create_task(prices.priority_fees(rpc, draft.writable))
        rent = group.create_task(_rent(rpc, draft, prices))
    return _Answers(
        simulation.result(),
        blockhash.result(),
        balance.result().value,
        fees.result(),
        rent.result(),
    )


async def _rent(rpc: Reads, draft: _Draft, prices: RecentPrices) -> int:
    own = await prices.rent(rpc, 0)
    if not draft.needs_account:
        return own
    return own + await prices.rent(rpc, TOKEN_ACCOUNT_BYTES)


async def _simulate(rpc: Reads, trial: bytes, min_context_slot: int | None = None) -> Simulation:
    found = await rpc.simulate(
        trial,
        commitment=PREFLIGHT_COMMITMENT,
        replace_blockhash=True,
        min_context_slot=min_context_slot,
    )
    return found.value


async def _check_balance(rpc: Rpc, fee_payer: str, needed: int) -> None:
    """Have every endpoint say what one said: that the fee payer has too little. It may lag."""

    async def look(node: Reads, slot: int) -> int:
        found = await node.balance(fee_payer, PREFLIGHT_COMMITMENT, min_context_slot=slot)
        return found.value

    had = await rpc.agreed(look, lambda lamports: "too low" if lamports < needed else None)
    if had < needed:
        raise FeePayerTooLow(needed, had)


def _fee(signers: int, units: int, price: int) -> int:
    """Return the lamports that a transaction costs, landed or failed."""
    return signers * LAMPORTS_OF_A_SIGNATURE + _ceiling(units * price, MICRO_LAMPORTS_OF_A_LAMPORT)


def _ceiling(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


async def _second_opinion(
    rpc: Rpc, draft: _Draft, trial: bytes, too_low: FeePayerTooLow
) -> Simulation:
    """Have every endpoint simulate what failed at one: it may lag, or lie.

    Returns a simulation that succeeded, whoever ran it, or raises what the failure means.
    """

    def verdict(simulation: Simulation) -> Hashable | None:
        err = simulation.err
        return None if err is None else (_refusal(err, draft) or err.name)

    simulation = await rpc.agreed(lambda node, slot: _simulate(node, trial, slot), verdict)
    if simulation.err is None:
        return simulation
    refusal = _refusal(simulation.err, draft)
    if refusal is Refusal.REJECTED:
        await _must_still_be_payable(rpc, draft)
    if refusal is not None:
        raise PaymentRefused(refusal, _text(simulation.err))
    if simulation.err.name in _OF_THE_MOMENT:
        raise RpcUnavailable(f"the payment cannot be simulated now: {simulation.err.name}")
    raise too_low


async def _must_still_be_payable(rpc: Rpc, draft: _Draft) -> None:
    """Find a better name for a refusal: since it was judged an account may have been closed."""
    judgement = await judge(rpc, draft.payment)
    if judgement.needs_account and not draft.needs_account:
        text = "the recipient's token account is not there any more"
        raise PaymentRefused(Refusal.RECIPIENT_HAS_NO_ACCOUNT, text)


def _refusal(err: TransactionError, draft: _Draft) -> Refusal | None:
    """Say what a simulation's error means for the payment; None if it isn't to blame."""
    if err.name in _OF_THE_MOMENT or err.name in _OF_THE_FEE_PAYER:
        return None
    if draft.of_the_creation(err) and err.custom == SYSTEM_INSUFFICIENT_FUNDS:
        return None
    if draft.of_the_transfer(err) and err.custom == TOKEN_INSUFFICIENT_FUNDS:
        return Refusal.VAULT_HAS_TOO_LITTLE
    if draft.of_the_transfer(err) and err.custom == TOKEN_ACCOUNT_FROZEN:
        return Refusal.ACCOUNT_FROZEN
    return Refusal.REJECTED


def _text(err: TransactionError) -> str:
    parts = (err.name, err.instruction, err.reason, err.custom, err.detail)
    return "the simulation says " + " ".join(str(part) for part in parts if part is not None)


# -- Signing


async def _signed(message: MessageV0, signers: Sequence[Signer]) -> VersionedTransaction:
    """Have a message signed in the order in which it names its signers: the fee payer's first."""
    whose = {signer.address: signer for signer in signers}
    keys = message.account_keys[: message.header.num_required_signatures]
    data = to_bytes_versioned(message)
    async with _together() as group:
        tasks = [group.create_task(_signature(whose[str(key)], data)) for key in keys]
    return VersionedTransaction.populate(message, [task.result() for task in tasks])


async def _signature(signer: Signer, data: bytes) -> Signature:
    return Signature.from_bytes(await signer.sign(data))


def _unsigned(message: MessageV0) -> bytes:
    blank = [Signature.default()] * message.header.num_required_signatures
    return bytes(VersionedTransaction.populate(message, blank))


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks at the same time. When one fails the others are given up, and its error raised."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
