-- migrate:up

-- `recipient` is the wallet that is paid on chain. `counterpart_event_id` is the other
-- side of a payment between two vaults: the spend names the deposit by the id that it
-- will have, and the deposit names the spend.
ALTER TABLE events
ADD COLUMN recipient text,
ADD COLUMN counterpart_event_id text,
ADD CONSTRAINT events_recipient_is_paid_on_chain CHECK (
    recipient IS NULL OR kind IN ('transfer', 'withdrawal', 'settlement')
);

-- What is on its way: one row for each pending event that pays a recipient, written with
-- it and gone with its decision. `signature` is that of the transaction of this attempt,
-- null until one is signed; whoever signs sets it once, and only what it names is sent.
-- One process at a time works on a row, as long as its lease lasts; what keeps a payment
-- from being made twice is the signature, not the lease. Workers read the whole table,
-- which one index less keeps cheap to update.
CREATE TABLE pending_transfers (
    event_id text NOT NULL,
    vault_id text NOT NULL,
    attempt integer NOT NULL DEFAULT 1,
    signature text,
    next_attempt_at timestamptz NOT NULL DEFAULT '-infinity',
    leased_by text,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pending_transfers_pkey PRIMARY KEY (event_id),
    CONSTRAINT pending_transfers_attempt_is_positive CHECK (attempt > 0),
    CONSTRAINT pending_transfers_event_id_fkey FOREIGN KEY (event_id)
    REFERENCES events (id) ON DELETE CASCADE
) WITH (fillfactor = 50);

-- Every transaction that was ever signed for an event, stored before it is sent: what is
-- sent again are these bytes. After `last_valid_block_height` it can no longer land, and
-- `slot` is where a history must begin that says so. Kept with the event, so that a
-- payment is recognised as Pilot's own whenever it is met on chain.
CREATE TABLE transfer_signatures (
    signature text NOT NULL,
    event_id text NOT NULL,
    attempt integer NOT NULL,
    transaction bytea NOT NULL,
    blockhash text NOT NULL,
    last_valid_block_height bigint NOT NULL,
    slot bigint NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT transfer_signatures_pkey PRIMARY KEY (signature),
    CONSTRAINT transfer_signatures_event_id_attempt_key UNIQUE (event_id, attempt),
    CONSTRAINT transfer_signatures_event_id_fkey FOREIGN KEY (event_id)
    REFERENCES events (id) ON DELETE CASCADE
);

-- The USDC accounts that the fee payer has made for recipients, and paid the rent of:
-- one a recipient, ever, and so many a day. It has no foreign key: what was paid for
-- counts when its project is gone, too.
CREATE TABLE recipient_accounts (
    address text NOT NULL,
    event_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT recipient_accounts_pkey PRIMARY KEY (address)
);

-- Serves the count of a day.
CREATE INDEX recipient_accounts_created_at_idx ON recipient_accounts (created_at);
