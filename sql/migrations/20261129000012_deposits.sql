-- migrate:up

-- What has moved the USDC of a vault on chain, and is final: one row a transaction, those
-- that failed or moved nothing included, so that none is looked at twice. `event_id` is
-- the event that it belongs to; an outflow without one is not Pilot's. A confirmed
-- deposit, transfer, withdrawal or settlement has its row from the same transaction.
CREATE TABLE vault_transactions (
    vault_id text NOT NULL,
    signature text NOT NULL,
    slot bigint NOT NULL,
    delta bigint NOT NULL,
    event_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT vault_transactions_pkey PRIMARY KEY (vault_id, signature),
    CONSTRAINT vault_transactions_slot_is_not_negative CHECK (slot >= 0),
    CONSTRAINT vault_transactions_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE
);

-- Serves what moved after a slot, and the outflows that are not Pilot's.
CREATE INDEX vault_transactions_vault_id_slot_idx ON vault_transactions (vault_id, slot);
CREATE INDEX vault_transactions_foreign_idx ON vault_transactions (vault_id)
WHERE event_id IS NULL AND delta < 0;

-- How far each vault's history on chain was read. Everything final up to `scanned_slot`
-- is in vault_transactions. `watched_amount` is what the account held when somebody last
-- looked; another amount means that there is something to read. One process at a time
-- looks, because it puts the next look off before it does.
CREATE TABLE vault_scans (
    vault_id text NOT NULL,
    scanned_slot bigint NOT NULL DEFAULT 0,
    watched_amount bigint,
    next_watch_at timestamptz NOT NULL DEFAULT '-infinity',
    next_scan_at timestamptz NOT NULL DEFAULT '-infinity',
    next_reconcile_at timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT vault_scans_pkey PRIMARY KEY (vault_id),
    CONSTRAINT vault_scans_scanned_slot_is_not_negative CHECK (scanned_slot >= 0),
    CONSTRAINT vault_scans_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE
) WITH (fillfactor = 50);

-- Serve the choice of the vaults whose turn it is.
CREATE INDEX vault_scans_next_watch_at_idx ON vault_scans (next_watch_at);
CREATE INDEX vault_scans_next_reconcile_at_idx ON vault_scans (next_reconcile_at);

INSERT INTO vault_scans (vault_id)
SELECT id FROM vaults;
