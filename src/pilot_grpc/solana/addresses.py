"""What can be said of an address without asking the chain."""

import re
from contextlib import suppress
from typing import Final
from urllib.parse import quote, urlencode

from solders.pubkey import Pubkey
from solders.token.associated import get_associated_token_address

USDC_DECIMALS: Final = 6
UNITS_OF_ONE_USDC: Final = 10**USDC_DECIMALS
LABEL_CHARACTERS_MAX: Final = 200

# 32 bytes in base58. Anything longer never reaches the native code.
_ADDRESS: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}")


def token_account(wallet: str, mint: str) -> str:
    """Return where a wallet's tokens of a mint are: its associated token account.

    It is that of the classic Token program, which USDC is a mint of. Raises ValueError for what
    is no address.
    """
    return str(get_associated_token_address(_key(wallet), _key(mint)))


def is_wallet(address: str) -> bool:
    """Say whether somebody can have the key of an address: 32 bytes of base58, on the curve.

    Token accounts and other addresses that programs derive are not on it. That is not enough to
    pay one: a mint, or a token account that has a key, may be at an address that is.
    """
    try:
        return _key(address).is_on_curve()
    except ValueError:
        return False


def payment_link(
    wallet: str, mint: str, amount: int | None = None, label: str | None = None
) -> str:
    """Return a link that wallets open as a transfer (Solana Pay's transfer request).

    It names the wallet, never its token account: wallets derive that, and would otherwise pay
    into a token account of the token account. The amount is in minor units; without one the
    payer chooses. Raises ValueError for what is no address, and for what is no amount or label.
    """
    fields = {"spl-token": str(_key(mint))}
    if amount is not None:
        fields = {"amount": _decimal(amount), **fields}
    if label is not None:
        if len(label) > LABEL_CHARACTERS_MAX:
            raise ValueError(f"a label has {LABEL_CHARACTERS_MAX} characters at most")
        fields["label"] = label
    return f"solana:{_key(wallet)}?{urlencode(fields, quote_via=quote, safe='')}"


def _key(address: str) -> Pubkey:
    if _ADDRESS.fullmatch(address):
        with suppress(ValueError):
            return Pubkey.from_string(address)
    raise ValueError("it is no address")


def _decimal(units: int) -> str:
    """Write minor units as USDC, with all six places: floats cannot."""
    if units < 1:
        raise ValueError("an amount is positive")
    whole, part = divmod(units, UNITS_OF_ONE_USDC)
    return f"{whole}.{part:0{USDC_DECIMALS}}"
