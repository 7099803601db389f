"""Addresses, and links to pay to them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from pilot_grpc.solana.addresses import (
    LABEL_CHARACTERS_MAX,
    is_wallet,
    payment_link,
    token_account,
)
from pilot_grpc.solana.answers import TOKEN_2022_PROGRAM
from pilot_grpc.solana.clusters import MAINNET_USDC_MINT
from tests.solana.payments import ata

# A wallet of mainnet.
BINANCE = "5tzFkiKscXHK5ZXCGbXZxdw7gTjjD1mBwuoFbhUvuAi9"
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def wallet() -> str:
    return str(Keypair().pubkey())


def test_a_wallets_token_account_is_the_one_that_the_chain_makes() -> None:
    address = wallet()

    assert token_account(address, MAINNET_USDC_MINT) == str(ata(Pubkey.from_string(address)))
    assert token_account(address, MAINNET_USDC_MINT) != str(
        ata(Pubkey.from_string(address), program=Pubkey.from_string(TOKEN_2022_PROGRAM))
    )


@pytest.mark.parametrize("bad", ["", "x", "0" * 40, "1" * 45, "1" * 31, "z" * 44, "1" * 1_000_000])
def test_what_is_no_address_has_no_token_account(bad: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        token_account(bad, MAINNET_USDC_MINT)
    with pytest.raises(ValueError, match="no address"):
        token_account(BINANCE, bad)


def test_wallets_are_on_the_curve_and_token_accounts_are_not() -> None:
    owner = wallet()
    account = token_account(owner, MAINNET_USDC_MINT)

    assert is_wallet(owner)
    assert is_wallet(BINANCE)
    assert not is_wallet(account)
    assert not is_wallet(str(Pubkey.find_program_address([b"vault"], Pubkey.default())[0]))


@given(
    st.text()
    | st.text(
        "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", min_size=30, max_size=46
    )
    | st.binary(min_size=32, max_size=32).map(lambda data: str(Pubkey.from_bytes(data)))
)
@example("")
@example("1" * 1_000_000)
@example("\ud800" * 44)
@example("é" * 40)
@example(f"{BINANCE}\n")
@example(f" {BINANCE}")
@example("\0" * 44)
def test_no_text_breaks_the_question_whether_it_is_a_wallet(text: str) -> None:
    assert is_wallet(text) in {True, False}
    if is_wallet(text):
        assert str(Pubkey.from_string(text)) == text


def test_a_link_names_the_wallet_and_the_mint() -> None:
    assert payment_link(BINANCE, MAINNET_USDC_MINT) == (
        f"solana:{BINANCE}?spl-token={MAINNET_USDC_MINT}"
    )


def test_a_link_says_how_much_and_for_what() -> None:
    """A space becomes %20, not +: wallets decode it as URIs are, not as forms are."""
    link = payment_link(BINANCE, MAINNET_USDC_MINT, 1_500_000, "Ann & Bob: 50 %")

    assert link == (
        f"solana:{BINANCE}?amount=1.500000&spl-token={MAINNET_USDC_MINT}"
        "&label=Ann%20%26%20Bob%3A%2050%20%25"
    )


@given(st.integers(1, 10**15), st.text(st.characters(codec="utf-8"), max_size=200))
@example(1, "")
@example(999_999, "a#b?c")
@example(9_007_199_254_740_993, "é")
def test_what_a_link_says_can_be_read_back(amount: int, label: str) -> None:
    """To the unit, also where a float would have lost it."""
    parts = urlsplit(payment_link(BINANCE, MAINNET_USDC_MINT, amount, label))
    fields = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))

    assert (parts.scheme, parts.path, parts.fragment) == ("solana", BINANCE, "")
    assert fields["label"] == label
    assert re.fullmatch(r"(0|[1-9]\d*)\.\d{6}", fields["amount"])
    assert int(fields["amount"].replace(".", "")) == amount


@pytest.mark.parametrize("amount", [0, -1])
def test_a_link_asks_for_something(amount: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        payment_link(BINANCE, MAINNET_USDC_MINT, amount)


def test_a_link_is_short_and_of_real_addresses() -> None:
    with pytest.raises(ValueError, match="label"):
        payment_link(BINANCE, MAINNET_USDC_MINT, label="x" * (LABEL_CHARACTERS_MAX + 1))
    with pytest.raises(ValueError, match="address"):
        payment_link(f"{BINANCE}?amount=5", MAINNET_USDC_MINT)
    with pytest.raises(ValueError, match="address"):
        payment_link(BINANCE, "USDC")
