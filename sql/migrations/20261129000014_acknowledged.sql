-- migrate:up

-- Up to which slot all that had moved a vault's USDC was taken into the ledger with a drift
-- that its owner acknowledged, and with which event. A node's history can show a deposit only
-- after that: it is not credited again.
ALTER TABLE vault_scans
ADD COLUMN acknowledged_slot bigint,
ADD COLUMN acknowledged_event_id text,
ADD CONSTRAINT vault_scans_acknowledged_as_a_whole
CHECK ((acknowledged_slot IS NULL) = (acknowledged_event_id IS NULL));
