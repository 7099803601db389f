-- migrate:up

-- `drift` is the difference between ledger and chain that stops the vault's transfers
-- until its owner acknowledges it: JSON text, null when there is none.
ALTER TABLE vaults
ADD COLUMN drift text;

-- A change of a vault is one of an event, or one of its drift: found, changed, or over.
-- Of a drift, `amount` is the difference, which can have any sign; one of 0 is over.
ALTER TABLE event_changes
ADD COLUMN drift text,
ALTER COLUMN event_id DROP NOT NULL,
ADD CONSTRAINT event_changes_is_of_one_thing CHECK ((event_id IS NULL) = (drift IS NOT NULL)),
ADD CONSTRAINT event_changes_drift_is_bounded CHECK (octet_length(drift) <= 65536);

-- Serves the recount, which asks for the last of them.
CREATE INDEX event_changes_drift_idx ON event_changes (vault_id, revision)
WHERE event_id IS NULL;
