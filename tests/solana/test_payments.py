"""One payment: judged, simulated and signed, on the embedded chain, where it then lands or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from solders.compute_budget import ID as BUDGET_PROGRAM
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import CreateAccountParams, create_account
from solders.transaction import VersionedTransaction
from spl.memo.constants import MEMO_PROGRAM_ID
from spl.token.constants import ACCOUNT_LEN, TOKEN_2022_PROGRAM_ID, TOKEN_PROGRAM_ID
from spl.token.instructions import (
    close_account,
    create_idempotent_associated_token_account,
    initialize_account3,
    set_authority,
)
from spl.token.models import (
    AuthorityType,
    CloseAccountParams,
    InitializeAccount3Params,
    SetAuthorityParams,
)

from pilot_grpc.solana.answers import (
    SYSTEM_PROGRAM,
    TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM,
    Commitment,
    PriorityFee,
)
from pilot_grpc.solana.clusters import DEVNET_USDC_MINT, MAINNET_USDC_MINT
from pilot_grpc.solana.faults import RpcDisagreed, RpcError, RpcUnavailable
from pilot_grpc.solana.localnet import FAUCET, FOR_EVER, USDC, Fault, Kind, Localnet
from pilot_grpc.solana.payments import (
    DETAIL_CHARACTERS_MAX,
    MEMO_BYTES_MAX,
    PREFLIGHT_COMMITMENT,
    FeePayerTooLow,
    FeePolicy,
    Judgement,
    Payment,
    PaymentRefused,
    RecentPrices,
    Refusal,
    Signed,
    judge,
    prepare,
)
from pilot_grpc.solana.rpc import Rpc
from pilot_grpc.solana.signing import SigningFailed
from tests.solana import scripted, sound
from tests.solana.payments import SOL, Payer, ata, funded
from tests.solana.ports import KeySigner, done, frozen, opened

POLICY = FeePolicy()
SEEN_ACCOUNT = Judgement(needs_account=False)
NO_ACCOUNT = Judgement(needs_account=True)


@dataclass
class Vault:
    """A vault with USDC on the chain, its fee payer, and whom it pays."""

    net: Localnet
    rpc: Rpc
    payer: Payer
    recipient: Keypair

    def payment(self, amount: int = 2_500_000, **changes: Any) -> Payment:
        payment = Payment(
            event_id="evt_1",
            vault=str(self.payer.vault.pubkey()),
            recipient=str(self.recipient.pubkey()),
            amount=amount,
            mint=MAINNET_USDC_MINT,
        )
        return replace(payment, **changes)

    def signers(self) -> tuple[KeySigner, KeySigner]:
        return KeySigner(self.payer.vault), KeySigner(self.payer.fees)

    async def prepared(
        self,
        payment: Payment | None = None,
        judgement: Judgement = SEEN_ACCOUNT,
        policy: FeePolicy = POLICY,
    ) -> Signed:
        payment = payment or self.payment()
        return await prepare(self.rpc, payment, judgement, *self.signers(), policy)

    async def landed(self, signed: Signed) -> None:
        sent = await self.rpc.send(signed.transaction, preflight_commitment=PREFLIGHT_COMMITMENT)
        self.net.finalize()
        fate = await self.rpc.fate(signed.signature, signed.last_valid_block_height)
        assert sent == signed.signature
        assert fate.status is not None
        assert fate.status.err is None

    async def received(self) -> int:
        account = (await self.rpc.token_account(str(ata(self.recipient.pubkey())))).value
        return account.amount if account is not None else 0


@pytest.fixture
async def rpc(net: Localnet) -> AsyncIterator[Rpc]:
    """Pilot's port to both nodes."""
    async with opened(*net.urls) as rpc:
        yield rpc


@pytest.fixture
async def vault(net: Localnet, rpc: Rpc) -> Vault:
    """A vault with 10 USDC that pays somebody who has an account already."""
    vault = Vault(net, rpc, funded(net), Keypair())
    opening = create_idempotent_associated_token_account(
        FAUCET.pubkey(), vault.recipient.pubkey(), USDC, TOKEN_PROGRAM_ID
    )
    done(net, [opening])
    return vault


async def refused(rpc: Rpc, payment: Payment) -> PaymentRefused:
    with pytest.raises(PaymentRefused) as found:
        await judge(rpc, payment)
    return found.value


async def refusal(rpc: Rpc, payment: Payment) -> Refusal:
    return (await refused(rpc, payment)).refusal


@asynccontextmanager
async def scripted_nodes(
    **steps: list[scripted.Step],
) -> AsyncIterator[tuple[Rpc, Payment, tuple[KeySigner, KeySigner]]]:
    """Two nodes with the same answers, sound ones where nothing else is said, and a payment."""
    signers = (KeySigner(Keypair()), KeySigner(Keypair()))
    payment = Payment("evt_1", signers[0].address, str(Keypair().pubkey()), 5, DEVNET_USDC_MINT)
    owner, data = bytes(Pubkey.from_string(sound.OWNER)), sound.token_data()
    holders = (payment.recipient, payment.vault)
    accounts = [
        sound.account(data.replace(owner, bytes(Pubkey.from_string(each)))) for each in holders
    ]
    answers = {method: [scripted.result(answer)] for method, (answer, _) in sound.ANSWERS.items()}
    answers["getMultipleAccounts"] = [scripted.seen([None, *accounts])]
    answers |= steps
    async with (
        scripted.node(**answers) as one,
        scripted.node(**{method: list(each) for method, each in answers.items()}) as two,
        scripted.port(one, two) as rpc,
    ):
        yield rpc, payment, signers


def simulated(err: object) -> list[scripted.Step]:
    return [scripted.seen({"err": err, "logs": [], "unitsConsumed": 5_000})]


# -- Good payments


async def test_a_payment_that_was_judged_good_pays_what_it_says(vault: Vault) -> None:
    payment = vault.payment()

    judgement = await judge(vault.rpc, payment)
    signed = await vault.prepared(payment, judgement)
    await vault.landed(signed)

    assert judgement == SEEN_ACCOUNT
    assert await vault.received() == 2_500_000


async def test_a_recipient_without_an_account_gets_one(vault: Vault) -> None:
    """The rent is the fee payer's; to somebody who has none, a payment says so beforehand."""
    vault.recipient = Keypair()
    before = (await vault.rpc.balance(str(vault.payer.fees.pubkey()))).value

    judgement = await judge(vault.rpc, vault.payment())
    await vault.landed(await vault.prepared(judgement=judgement))

    rent = await vault.rpc.minimum_rent(165)
    after = (await vault.rpc.balance(str(vault.payer.fees.pubkey()))).value
    assert judgement == NO_ACCOUNT
    assert await vault.received() == 2_500_000
    assert rent < before - after < rent + 100_000


async def test_an_account_that_was_made_in_the_meantime_is_no_trouble(vault: Vault) -> None:
    await vault.landed(await vault.prepared(judgement=NO_ACCOUNT))

    assert await vault.received() == 2_500_000


async def test_sol_at_the_address_of_the_account_to_be_is_no_account(vault: Vault) -> None:
    """Anybody can send SOL there before the token account exists."""
    vault.recipient = Keypair()
    vault.net.airdrop(ata(vault.recipient.pubkey()), SOL)
    vault.net.finalize()

    judgement = await judge(vault.rpc, vault.payment())
    await vault.landed(await vault.prepared(judgement=judgement))

    assert judgement == NO_ACCOUNT
    assert await vault.received() == 2_500_000


async def test_what_is_signed_is_what_was_asked_for(vault: Vault) -> None:
    """Compute budget, TransferChecked, and a memo that the vault signs; no account is made."""
    vault.net.chain.prioritization_fee = 777
    signed = await vault.prepared()
    transaction = VersionedTransaction.from_bytes(signed.transaction)
    message = transaction.message
    keys = message.account_keys
    limit, price, transfer, memo = message.instructions

    assert all(transaction.verify_with_results())
    assert [str(key) for key in keys[:2]] == [each.address for each in vault.signers()][::-1]
    assert signed.signature == str(transaction.signatures[0])
    assert signed.blockhash == str(message.recent_blockhash)
    assert keys[limit.program_id_index] == keys[price.program_id_index] == BUDGET_PROGRAM
    assert 5_000 < int.from_bytes(limit.data[1:], "little") <= 30_000
    assert int.from_bytes(price.data[1:], "little") == 777
    assert keys[transfer.program_id_index] == TOKEN_PROGRAM_ID
    assert transfer.data == bytes([12]) + (2_500_000).to_bytes(8, "little") + bytes([6])
    assert [keys[index] for index in transfer.accounts] == [
        vault.payer.account,
        USDC,
        ata(vault.recipient.pubkey()),
        vault.payer.vault.pubkey(),
    ]
    assert keys[memo.program_id_index] == MEMO_PROGRAM_ID
    assert memo.data == b"evt_1"
    assert [keys[index] for index in memo.accounts] == [vault.payer.vault.pubkey()]


async def test_two_equal_payments_of_two_events_are_two(vault: Vault) -> None:
    """Under the same blockhash they would be one without the memo."""
    first, second = [
        await vault.prepared(vault.payment(event_id=event_id)) for event_id in ("evt_1", "evt_2")
    ]
    await vault.landed(first)
    await vault.landed(second)

    assert first.blockhash == second.blockhash
    assert first.signature != second.signature
    assert await vault.received() == 5_000_000


async def test_a_vault_can_pay_its_own_fees(vault: Vault) -> None:
    vault.payer = Payer(vault.payer.vault, vault.payer.vault)
    vault.net.airdrop(vault.payer.vault.pubkey(), SOL)
    vault.net.finalize()
    signed = await vault.prepared()
    await vault.landed(signed)

    assert len(VersionedTransaction.from_bytes(signed.transaction).signatures) == 1
    assert await vault.received() == 2_500_000


async def test_it_can_land_as_long_as_it_says(vault: Vault) -> None:
    signed = await vault.prepared()
    net = vault.net
    height = await vault.rpc.block_height(Commitment.PROCESSED)
    net.tick(signed.last_valid_block_height - height - 1)
    await vault.rpc.send(
        signed.transaction, preflight_commitment=PREFLIGHT_COMMITMENT, skip_preflight=True
    )
    net.finalize()

    assert await vault.received() == 2_500_000
    assert 145 <= signed.last_valid_block_height - height <= 150


async def test_a_node_that_lags_does_not_shorten_a_payments_life(vault: Vault) -> None:
    """The blockhash is the newest that any node has."""
    fresh = await vault.prepared()
    vault.net.endpoints[0].node.lag = 50
    signed = await vault.prepared()

    assert signed.blockhash == fresh.blockhash
    assert signed.slot == fresh.slot == vault.net.chain.tip - 1
    assert signed.last_valid_block_height == fresh.last_valid_block_height


# -- Recipients


async def test_a_token_account_is_no_wallet(vault: Vault) -> None:
    """Paid as a wallet it would get an account of its own, whose money nobody could move."""
    account = str(ata(vault.recipient.pubkey()))

    assert await refusal(vault.rpc, vault.payment(recipient=account)) is (
        Refusal.RECIPIENT_NOT_A_WALLET
    )


@pytest.mark.parametrize(
    ("recipient", "why"),
    [
        (str(Pubkey.find_program_address([b"x"], Pubkey.default())[0]), "nobody"),
        ("", "nobody"),
        ("me", "nobody"),
        ("1" * 10_000, "nobody"),
        (MAINNET_USDC_MINT, TOKEN_PROGRAM),
        (TOKEN_PROGRAM, "is a program"),
        (SYSTEM_PROGRAM, "is a program"),
        ("SysvarC1ock11111111111111111111111111111111", "Sysvar"),
    ],
)
async def test_addresses_that_nobody_has_the_key_of_are_refused(
    vault: Vault, recipient: str, why: str
) -> None:
    found = await refused(vault.rpc, vault.payment(recipient=recipient))

    assert found.refusal is Refusal.RECIPIENT_NOT_A_WALLET
    assert why in found.detail


@pytest.mark.parametrize("program", [TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID])
async def test_a_token_account_with_a_key_of_its_own_is_no_wallet(
    vault: Vault, program: Pubkey
) -> None:
    """Such an account is on the curve: only the chain shows what it is. So is a mint."""
    net, account = vault.net, Keypair()
    mint = net.chain.create_mint(6, program)
    net.finalize()
    rent = net.chain.rent(ACCOUNT_LEN)
    params = CreateAccountParams(
        from_pubkey=FAUCET.pubkey(),
        to_pubkey=account.pubkey(),
        lamports=rent,
        space=ACCOUNT_LEN,
        owner=program,
    )
    initialising = InitializeAccount3Params(
        program_id=program, account=account.pubkey(), mint=mint, owner=vault.recipient.pubkey()
    )
    done(net, [create_account(params), initialize_account3(initialising)], account)

    for address, why in ((account.pubkey(), "token account"), (mint, str(program))):
        found = await refused(vault.rpc, vault.payment(recipient=str(address)))
        assert found.refusal is Refusal.RECIPIENT_NOT_A_WALLET
        assert why in found.detail


async def test_a_vault_does_not_pay_itself(vault: Vault) -> None:
    for address in (vault.payer.vault.pubkey(), vault.payer.account):
        payment = vault.payment(recipient=str(address))
        assert await refusal(vault.rpc, payment) is Refusal.RECIPIENT_IS_THE_VAULT


async def test_a_wallet_that_gave_its_account_away_is_not_paid(vault: Vault) -> None:
    """The account stays where it was derived from the wallet, and is another's."""
    params = SetAuthorityParams(
        program_id=TOKEN_PROGRAM_ID,
        account=ata(vault.recipient.pubkey()),
        authority=AuthorityType.ACCOUNT_OWNER,
        current_authority=vault.recipient.pubkey(),
        new_authority=Keypair().pubkey(),
    )
    done(vault.net, [set_authority(params)], vault.recipient)

    assert await refusal(vault.rpc, vault.payment()) is Refusal.RECIPIENT_HAS_NO_ACCOUNT


# -- Accounts that cannot pay or be paid


async def test_frozen_accounts_are_told(vault: Vault) -> None:
    """Whether it is seen beforehand or in the simulation only."""
    payment = vault.payment()
    for account in (ata(vault.recipient.pubkey()), vault.payer.account):
        frozen(vault.net, account)
        assert await refusal(vault.rpc, payment) is Refusal.ACCOUNT_FROZEN
        with pytest.raises(PaymentRefused) as found:
            await vault.prepared(payment)
        assert found.value.refusal is Refusal.ACCOUNT_FROZEN


async def test_more_than_the_vault_holds_is_told(vault: Vault) -> None:
    payment = vault.payment(10_000_001)

    assert await judge(vault.rpc, vault.payment(10_000_000)) == SEEN_ACCOUNT
    assert await refusal(vault.rpc, payment) is Refusal.VAULT_HAS_TOO_LITTLE
    with pytest.raises(PaymentRefused) as found:
        await vault.prepared(payment)
    assert found.value.refusal is Refusal.VAULT_HAS_TOO_LITTLE


async def test_a_vault_that_never_had_any_has_too_little(vault: Vault) -> None:
    stranger = str(Keypair().pubkey())

    assert await refusal(vault.rpc, vault.payment(vault=stranger)) is Refusal.VAULT_HAS_TOO_LITTLE


async def test_an_account_that_was_closed_in_the_meantime_is_told(vault: Vault) -> None:
    params = CloseAccountParams(
        program_id=TOKEN_PROGRAM_ID,
        account=ata(vault.recipient.pubkey()),
        dest=FAUCET.pubkey(),
        owner=vault.recipient.pubkey(),
    )
    done(vault.net, [close_account(params)], vault.recipient)

    with pytest.raises(PaymentRefused) as found:
        await vault.prepared()
    assert found.value.refusal is Refusal.RECIPIENT_HAS_NO_ACCOUNT


async def test_what_the_chain_would_not_execute_is_rejected_with_its_words(vault: Vault) -> None:
    """Here the account that the vault's USDC is in belongs to somebody else now."""
    params = SetAuthorityParams(
        program_id=TOKEN_PROGRAM_ID,
        account=vault.payer.account,
        authority=AuthorityType.ACCOUNT_OWNER,
        current_authority=vault.payer.vault.pubkey(),
        new_authority=Keypair().pubkey(),
    )
    done(vault.net, [set_authority(params)], vault.payer.vault)

    assert await refusal(vault.rpc, vault.payment()) is Refusal.REJECTED
    with pytest.raises(PaymentRefused) as found:
        await vault.prepared()
    assert found.value.refusal is Refusal.REJECTED


def test_a_refusals_detail_is_short_and_clean() -> None:
    refused = PaymentRefused(Refusal.REJECTED, "a\nb\x00" + "x" * 10_000)

    assert refused.detail.startswith("a b x")
    assert len(refused.detail) == DETAIL_CHARACTERS_MAX


# -- Nodes that lag, lie, or are away


async def test_a_lagging_node_does_not_refuse_a_good_payment(vault: Vault) -> None:
    """It has not seen the money, nor the recipient's account; the other one has."""
    vault.net.endpoints[0].node.lag = 100
    judgement = await judge(vault.rpc, vault.payment())
    signed = await vault.prepared(judgement=judgement)
    vault.net.endpoints[0].node.lag = 0
    await vault.landed(signed)

    assert judgement == SEEN_ACCOUNT
    assert await vault.received() == 2_500_000


async def test_a_refusal_needs_two_nodes(vault: Vault) -> None:
    payment = vault.payment(10_000_001)
    vault.net.endpoints[1].faults.add(Fault(Kind.UNAVAILABLE, count=FOR_EVER))

    with pytest.raises(RpcUnavailable):
        await judge(vault.rpc, payment)
    with pytest.raises(RpcUnavailable):
        await vault.prepared(payment)


async def test_with_one_node_its_word_is_enough(vault: Vault) -> None:
    async with opened(vault.net.url) as rpc:
        assert await refusal(rpc, vault.payment(10_000_001)) is Refusal.VAULT_HAS_TOO_LITTLE


async def test_two_nodes_that_refuse_for_different_reasons_decide_nothing(vault: Vault) -> None:
    """To one the vault's account is frozen, to the other it holds too little."""
    payment = vault.payment(10_000_001)
    frozen(vault.net, vault.payer.account)
    vault.net.endpoints[1].node.lag = vault.net.chain.finalized_slots + 1

    with pytest.raises(RpcDisagreed):
        await judge(vault.rpc, payment)
    with pytest.raises(RpcDisagreed):
        await vault.prepared(payment)


@pytest.mark.parametrize("err", ["BlockhashNotFound", "AccountInUse", "ClusterMaintenance"])
async def test_an_error_of_the_moment_refuses_nothing(err: str) -> None:
    async with scripted_nodes(simulateTransaction=simulated(err)) as (rpc, payment, signers):
        with pytest.raises(RpcUnavailable, match=err):
            await prepare(rpc, payment, SEEN_ACCOUNT, *signers, POLICY)


@pytest.mark.parametrize(
    ("err", "needs_account"),
    [
        ("InsufficientFundsForFee", False),
        ("AccountNotFound", False),
        ({"InsufficientFundsForRent": {"account_index": 0}}, False),
        ({"InstructionError": [2, {"Custom": 1}]}, True),
    ],
)
async def test_an_error_about_the_fee_payer_is_not_the_payments(
    err: object, needs_account: bool
) -> None:
    """Custom(1) of the account's creation is the System program's, not the Token program's."""
    async with scripted_nodes(simulateTransaction=simulated(err)) as (rpc, payment, signers):
        with pytest.raises(FeePayerTooLow):
            await prepare(rpc, payment, Judgement(needs_account), *signers, POLICY)
    assert all(signer.signatures == 0 for signer in signers)


@pytest.mark.parametrize(
    ("err", "wanted"),
    [
        ({"InstructionError": [2, {"Custom": 1}]}, Refusal.VAULT_HAS_TOO_LITTLE),
        ({"InstructionError": [2, {"Custom": 17}]}, Refusal.ACCOUNT_FROZEN),
        ({"InstructionError": [2, {"Custom": 18}]}, Refusal.REJECTED),
        ({"InstructionError": [3, {"Custom": 17}]}, Refusal.REJECTED),
        ({"InstructionError": [3, {"Custom": 1}]}, Refusal.REJECTED),
        ({"InstructionError": [2, "InvalidAccountData"]}, Refusal.REJECTED),
        ({"SomethingNew": {"of": ["another", "version"]}}, Refusal.REJECTED),
    ],
)
async def test_a_simulations_error_becomes_a_refusal(err: object, wanted: Refusal) -> None:
    async with scripted_nodes(simulateTransaction=simulated(err)) as (rpc, payment, signers):
        with pytest.raises(PaymentRefused) as found:
            await prepare(rpc, payment, SEEN_ACCOUNT, *signers, POLICY)

    assert found.value.refusal is wanted
    assert all(signer.signatures == 0 for signer in signers)


async def test_an_account_that_cannot_be_where_it_is_decides_nothing() -> None:
    """No sound node says that another mint's account is at the address of the vault's USDC."""
    strange = sound.account(sound.token_data(), TOKEN_2022_PROGRAM)
    accounts = [scripted.seen([None, None, strange])]
    async with scripted_nodes(getMultipleAccounts=accounts) as (rpc, payment, _):
        with pytest.raises(RpcError):
            await judge(rpc, payment)


# -- Fees


async def test_a_fee_payer_that_cannot_pay_is_told(vault: Vault) -> None:
    """Of the rent of a new account, too; and nothing is signed."""
    rent = await vault.rpc.minimum_rent(165)
    own = await vault.rpc.minimum_rent(0)
    for lamports, judgement in ((0, SEEN_ACCOUNT), (own + 5_000, SEEN_ACCOUNT), (rent, NO_ACCOUNT)):
        vault.payer = Payer(vault.payer.vault, Keypair())
        if lamports:
            vault.net.airdrop(vault.payer.fees.pubkey(), lamports)
            vault.net.finalize()
        signers = vault.signers()
        with pytest.raises(FeePayerTooLow) as found:
            await prepare(vault.rpc, vault.payment(), judgement, *signers, POLICY)

        assert found.value.had == lamports < found.value.needed
        assert [each.signatures for each in signers] == [0, 0]


async def test_a_fee_payer_with_just_enough_pays(vault: Vault) -> None:
    """`needed` is enough: with so much the payment lands."""
    vault.recipient = Keypair()
    vault.payer = Payer(vault.payer.vault, Keypair())
    with pytest.raises(FeePayerTooLow) as found:
        await vault.prepared(judgement=NO_ACCOUNT)
    vault.net.airdrop(vault.payer.fees.pubkey(), found.value.needed)
    vault.net.finalize()
    await vault.landed(await vault.prepared(judgement=NO_ACCOUNT))

    assert await vault.received() == 2_500_000


def fees(*paid: int) -> list[PriorityFee]:
    return [PriorityFee(slot, fee) for slot, fee in enumerate(paid)]


def test_the_price_is_what_most_pay_within_bounds() -> None:
    policy = FeePolicy(price_max=1_000, price_min=10, price_percentile=75)

    assert policy.price(fees()) == 10
    assert policy.price(fees(0, 0, 0, 0)) == 10
    assert policy.price(fees(400, 100, 300, 200, 500)) == 400
    assert policy.price(fees(*[10**12] * 150)) == 1_000


def test_units_have_a_margin_and_bounds() -> None:
    policy = FeePolicy(units_margin_percent=30, units_min=10_000, units_max=40_000)

    assert policy.units(5_300) == 10_000
    assert policy.units(20_001) == 26_002
    assert policy.units(39_000) == 40_000
    assert policy.units(None) == 40_000


@pytest.mark.parametrize(
    "values",
    [
        {"price_max": -1},
        {"price_min": 2, "price_max": 1},
        {"price_max": 2**64},
        {"price_percentile": 101},
        {"units_min": 0},
        {"units_min": 2, "units_max": 1},
        {"units_max": 1_400_001},
        {"units_margin_percent": -1},
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must hold|percentile|margin"):
        FeePolicy(**values)


async def test_the_fee_is_never_more_than_the_policy_allows(vault: Vault) -> None:
    vault.net.chain.prioritization_fee = 10**12
    policy = FeePolicy(price_max=50_000)
    before = (await vault.rpc.balance(str(vault.payer.fees.pubkey()))).value
    await vault.landed(await vault.prepared(policy=policy))
    after = (await vault.rpc.balance(str(vault.payer.fees.pubkey()))).value

    assert before - after <= 10_000 + 50_000 * 30_000 // 1_000_000


async def test_prices_are_asked_for_once_in_a_while(vault: Vault) -> None:
    """And never more than so many are remembered."""
    now = 0.0
    prices = RecentPrices(lambda: now)
    vault.net.chain.prioritization_fee = 5
    first = await prices.priority_fees(vault.rpc, [MAINNET_USDC_MINT])
    vault.net.chain.prioritization_fee = 6
    second = await prices.priority_fees(vault.rpc, [MAINNET_USDC_MINT])
    other = await prices.priority_fees(vault.rpc, [DEVNET_USDC_MINT])
    now = prices.SECONDS
    third = await prices.priority_fees(vault.rpc, [MAINNET_USDC_MINT])

    assert [each[0].fee for each in (first, second, other, third)] == [5, 5, 6, 6]
    assert await prices.rent(vault.rpc, 165) == await vault.rpc.minimum_rent(165)

    prices.ENTRIES_MAX = 3  # type: ignore[misc]
    for size in range(10):
        await prices.rent(vault.rpc, size)
        assert len(prices._found) <= 3


# -- What is no payment, and what is no signature


@pytest.mark.parametrize(
    "changes", [{"amount": 0}, {"amount": -5}, {"amount": 2**64}, {"event_id": ""}]
)
def test_what_is_no_payment_is_refused_at_once(changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "event_id": "x" * MEMO_BYTES_MAX,
        "vault": sound.OWNER,
        "recipient": sound.OTHER,
        "amount": 2**64 - 1,
        "mint": MAINNET_USDC_MINT,
    }

    assert Payment(**good).amount == good["amount"]
    with pytest.raises(ValueError, match=r"amount|memo"):
        Payment(**good | changes)
    with pytest.raises(ValueError, match="memo"):
        Payment(**good | {"event_id": "é" * MEMO_BYTES_MAX})


async def test_another_vaults_signer_is_refused(vault: Vault) -> None:
    signer = KeySigner(Keypair())
    with pytest.raises(ValueError, match="signer"):
        await prepare(vault.rpc, vault.payment(), SEEN_ACCOUNT, signer, signer, POLICY)


@pytest.mark.parametrize("which", [0, 1])
async def test_without_one_of_the_keys_there_is_no_payment(vault: Vault, which: int) -> None:
    signers = vault.signers()
    signers[which].broken = True
    with pytest.raises(SigningFailed):
        await prepare(vault.rpc, vault.payment(), SEEN_ACCOUNT, *signers, POLICY)


async def test_the_longest_payment_fits_into_a_transaction(vault: Vault) -> None:
    vault.recipient = Keypair()
    payment = vault.payment(event_id="x" * MEMO_BYTES_MAX)
    signed = await vault.prepared(payment, NO_ACCOUNT)
    await vault.landed(signed)

    assert len(signed.transaction) < 1_000
    assert await vault.received() == 2_500_000


async def test_the_bytes_are_not_shown(vault: Vault) -> None:
    signed = await vault.prepared()

    assert signed.signature in repr(signed)
    assert "transaction" not in repr(signed)
    assert str(Signature.from_bytes(signed.transaction[1:65])) == signed.signature


# -- Garbage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner),
    max_leaves=10,
)
ERRORS = st.sampled_from(["InstructionError", "InsufficientFundsForFee", "X", "Custom"]) | JSON
ASKED = [
    "getMultipleAccounts",
    "simulateTransaction",
    "getLatestBlockhash",
    "getBalance",
    "getRecentPrioritizationFees",
    "getMinimumBalanceForRentExemption",
    "getSlot",
]


@given(method=st.sampled_from(ASKED), junk=JSON, wrapped=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_garbage_is_never_signed_upon(method: str, junk: object, wrapped: bool) -> None:
    """Whatever a node answers: a payment, a refusal, or an RpcError."""
    step = scripted.seen(junk) if wrapped else scripted.result(junk)
    async with scripted_nodes(**{method: [step]}) as (rpc, payment, signers):
        try:
            judgement = await judge(rpc, payment)
            await prepare(rpc, payment, judgement, *signers, POLICY)
        except (PaymentRefused, FeePayerTooLow, RpcError):
            assert [each.signatures for each in signers] == [0, 0]


@given(st.builds(lambda name, inner: {name: inner}, st.text(max_size=20), ERRORS) | ERRORS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_error_of_a_simulation_is_taken_for_success(err: object) -> None:
    async with scripted_nodes(simulateTransaction=simulated(err)) as (rpc, payment, signers):
        if err is None:
            return
        with pytest.raises((PaymentRefused, FeePayerTooLow, RpcError)):
            await prepare(rpc, payment, NO_ACCOUNT, *signers, POLICY)
        assert [each.signatures for each in signers] == [0, 0]
