"""Token accounts and mints as bytes, and the instructions of the faucet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM_PROGRAM
from solders.system_program import CreateAccountParams, create_account
from spl.token.constants import MINT_LEN, TOKEN_2022_PROGRAM_ID, TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    initialize_mint2,
    mint_to_checked,
)
from spl.token.models import InitializeMint2Params, MintToCheckedParams

from pilot_grpc.solana.clusters import MAINNET_USDC_MINT

USDC: Final = Pubkey.from_string(MAINNET_USDC_MINT)
USDC_DECIMALS: Final = 6

# The mint and freeze authority of every mint here, and who pays for airdrops. Its secret is in
# this line, so it is worth nothing anywhere else.
FAUCET: Final = Keypair.from_seed(hashlib.sha256(b"pilot localnet faucet").digest())

MEMO_PROGRAM: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
TOKEN_PROGRAMS: Final = (TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID)

# What stands for an account that is not there.
NO_ACCOUNT: Final = Account(0, b"", SYSTEM_PROGRAM, executable=False, rent_epoch=0)

ACCOUNT_BYTES: Final = 165
STATES: Final = {1: "initialized", 2: "frozen"}
# Token-2022 says after the classic part which kind of account its extensions belong to.
KIND_MINT: Final = 1
KIND_ACCOUNT: Final = 2


@dataclass(frozen=True, slots=True)
class Holding:
    """A token account: so many units of a mint that belong to a wallet."""

    mint: Pubkey
    owner: Pubkey
    amount: int
    state: str
    delegate: Pubkey | None
    delegated: int
    close_authority: Pubkey | None


@dataclass(frozen=True, slots=True)
class Mint:
    """A mint, as far as anybody asks."""

    supply: int
    decimals: int
    mint_authority: Pubkey | None
    freeze_authority: Pubkey | None


def holding(account: Account | None) -> Holding | None:
    """Read a token account, of either token program; None when it is something else."""
    if account is None or account.owner not in TOKEN_PROGRAMS:
        return None
    data = bytes(account.data)
    if len(data) < ACCOUNT_BYTES or data[108] not in STATES:
        return None
    if len(data) > ACCOUNT_BYTES and data[ACCOUNT_BYTES] != KIND_ACCOUNT:
        return None
    return Holding(
        mint=Pubkey.from_bytes(data[0:32]),
        owner=Pubkey.from_bytes(data[32:64]),
        amount=int.from_bytes(data[64:72], "little"),
        state=STATES[data[108]],
        delegate=_optional(data, 72),
        delegated=int.from_bytes(data[121:129], "little"),
        close_authority=_optional(data, 129),
    )


def mint(account: Account | None) -> Mint | None:
    """Read a mint, of either token program; None when it is something else."""
    if account is None or account.owner not in TOKEN_PROGRAMS:
        return None
    data = bytes(account.data)
    extended = len(data) > ACCOUNT_BYTES and data[ACCOUNT_BYTES] == KIND_MINT
    if not (len(data) == MINT_LEN or extended) or not data[45]:
        return None
    return Mint(
        supply=int.from_bytes(data[36:44], "little"),
        decimals=data[44],
        mint_authority=_optional(data, 0),
        freeze_authority=_optional(data, 46),
    )


def usdc_mint(rent: int) -> Account:
    """The account of USDC's mint, with no unit minted yet, and the faucet as its authority."""
    authority = (1).to_bytes(4, "little") + bytes(FAUCET.pubkey())
    data = authority + (0).to_bytes(8, "little") + bytes([USDC_DECIMALS, 1]) + authority
    return Account(rent, data, TOKEN_PROGRAM_ID, executable=False, rent_epoch=0)


def deposit(
    wallet: Pubkey, amount: int, of_mint: Pubkey, decimals: int, program: Pubkey
) -> list[Instruction]:
    """Mint to a wallet's associated token account, which is made when there is none."""
    faucet = FAUCET.pubkey()
    return [
        create_idempotent_associated_token_account(faucet, wallet, of_mint, program),
        mint_to_checked(
            MintToCheckedParams(
                program_id=program,
                mint=of_mint,
                dest=get_associated_token_address(wallet, of_mint, program),
                mint_authority=faucet,
                amount=amount,
                decimals=decimals,
            )
        ),
    ]


def new_mint(address: Pubkey, decimals: int, program: Pubkey, rent: int) -> list[Instruction]:
    """Make another mint, with the faucet as its authority."""
    faucet = FAUCET.pubkey()
    return [
        create_account(
            CreateAccountParams(
                from_pubkey=faucet, to_pubkey=address, lamports=rent, space=MINT_LEN, owner=program
            )
        ),
        initialize_mint2(
            InitializeMint2Params(
                decimals=decimals,
                program_id=program,
                mint=address,
                mint_authority=faucet,
                freeze_authority=faucet,
            )
        ),
    ]


def memo(text: str) -> Instruction:
    """Say something that makes a transaction differ from all others; the faucet signs it."""
    signer = AccountMeta(FAUCET.pubkey(), is_signer=True, is_writable=False)
    return Instruction(MEMO_PROGRAM, text.encode(), [signer])


def _optional(data: bytes, at: int) -> Pubkey | None:
    """Read an address behind the four bytes that say whether it is there."""
    there = int.from_bytes(data[at : at + 4], "little")
    return Pubkey.from_bytes(data[at + 4 : at + 36]) if there else None
