-- migrate:up

-- A movement of money, or a refusal of one. `created_at` is when it was decided and
-- places it in its budget windows for good. Status, amount, failure reason and
-- tx_hash may change while it is pending; `revision` is the number of its last change.
CREATE TABLE events (
    id text NOT NULL,
    type text NOT NULL,
    amount bigint NOT NULL,
    status text NOT NULL,
    tx_hash text,
    metadata text,
    vault_id text NOT NULL,
    agent_id text,
    created_at timestamptz NOT NULL,
    kind text NOT NULL,
    authorized_amount bigint,
    expires_at timestamptz,
    failure_reason text,
    decline jsonb,
    provider text,
    model text,
    refunded_event_id text,
    updated_at timestamptz NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (id),
    CONSTRAINT events_type_is_known CHECK (type IN ('funding', 'spend')),
    CONSTRAINT events_status_is_known CHECK (status IN ('pending', 'confirmed', 'failed')),
    CONSTRAINT events_kind_fits_type CHECK (
        (type = 'funding' AND kind IN ('deposit', 'credit', 'refund'))
        OR (type = 'spend' AND kind IN ('metered', 'transfer', 'withdrawal', 'settlement'))
    ),
    CONSTRAINT events_amount_has_the_sign_of_its_type CHECK (
        (type = 'funding' AND amount > 0) OR (type = 'spend' AND amount < 0)
    ),
    CONSTRAINT events_amount_is_bounded CHECK (abs(amount) <= 1000000000000000),
    CONSTRAINT events_capture_fits_hold CHECK (
        authorized_amount IS NULL OR (authorized_amount > 0 AND -amount <= authorized_amount)
    ),
    CONSTRAINT events_hold_expires CHECK ((authorized_amount IS NULL) = (expires_at IS NULL)),
    CONSTRAINT events_failure_has_a_reason CHECK (
        (status = 'failed') = (failure_reason IS NOT NULL)
    ),
    CONSTRAINT events_refund_names_its_spend CHECK (
        (kind = 'refund') = (refunded_event_id IS NOT NULL)
    ),
    CONSTRAINT events_metadata_is_bounded CHECK (octet_length(metadata) <= 16384),
    CONSTRAINT events_revision_is_positive CHECK (revision > 0),
    CONSTRAINT events_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE,
    CONSTRAINT events_agent_id_fkey FOREIGN KEY (agent_id)
    REFERENCES agents (id) ON DELETE CASCADE,
    CONSTRAINT events_refunded_event_id_fkey FOREIGN KEY (refunded_event_id)
    REFERENCES events (id) ON DELETE CASCADE
);

-- Serve ListEvents and SummarizeSpend by vault, by agent (and the recount of an
-- agent's windows), and over all.
CREATE INDEX events_vault_id_created_at_idx ON events (vault_id, created_at);
CREATE INDEX events_agent_id_created_at_idx ON events (agent_id, created_at);
CREATE INDEX events_type_created_at_idx ON events (type, created_at);

-- A Solana signature is credited once, and spent once.
CREATE UNIQUE INDEX events_tx_hash_key ON events (vault_id, type, tx_hash)
WHERE tx_hash IS NOT NULL;

-- Serves the refunds of a spend.
CREATE INDEX events_refunded_event_id_idx ON events (refunded_event_id)
WHERE refunded_event_id IS NOT NULL;

-- Serves what is pending in a vault or for an agent.
CREATE INDEX events_pending_idx ON events (vault_id, agent_id)
WHERE status = 'pending';

-- Serve the sweeper, which looks for vaults with overdue holds, and a batch, which
-- settles those of its vaults.
CREATE INDEX events_open_holds_idx ON events (expires_at)
WHERE status = 'pending' AND expires_at IS NOT NULL;
CREATE INDEX events_open_holds_of_vault_idx ON events (vault_id, expires_at)
WHERE status = 'pending' AND expires_at IS NOT NULL;

-- One row a change: the n-th thing that happened to a vault, the event as it was then,
-- and the vault's figures after it. Never updated. The revision is taken under the
-- vault's lock, so the numbers follow the order of the commits without a gap.
-- `previous_revision` is the change before of the same event. `digest` chains the
-- change, with all of its event, to the change before it: a row that was edited by
-- hand no longer fits.
CREATE TABLE event_changes (
    vault_id text NOT NULL,
    revision bigint NOT NULL,
    event_id text NOT NULL,
    previous_revision bigint,
    status text NOT NULL,
    amount bigint NOT NULL,
    failure_reason text,
    tx_hash text,
    balance_after bigint NOT NULL,
    chain_balance_after bigint NOT NULL,
    held_after bigint NOT NULL,
    changed_at timestamptz NOT NULL,
    digest bytea NOT NULL,
    CONSTRAINT event_changes_pkey PRIMARY KEY (vault_id, revision),
    CONSTRAINT event_changes_revision_is_positive CHECK (revision > 0),
    CONSTRAINT event_changes_previous_revision_is_before CHECK (previous_revision < revision),
    CONSTRAINT event_changes_balance_is_not_negative CHECK (balance_after >= 0),
    CONSTRAINT event_changes_chain_balance_is_not_negative CHECK (chain_balance_after >= 0),
    CONSTRAINT event_changes_held_is_not_negative CHECK (held_after >= 0),
    CONSTRAINT event_changes_status_is_known CHECK (
        status IN ('pending', 'confirmed', 'failed')
    ),
    CONSTRAINT event_changes_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE
);

-- One row a request that was answered: the event as the answer showed it. The scope is
-- an agent's id or a vault's. Kept as long as the event; the fingerprint is a hash a
-- field, so that a conflict can name the field.
CREATE TABLE event_requests (
    vault_id text NOT NULL,
    scope_id text NOT NULL,
    request_id text NOT NULL,
    rpc text NOT NULL,
    fingerprint text NOT NULL,
    event_id text NOT NULL,
    revision bigint NOT NULL,
    status text NOT NULL,
    amount bigint NOT NULL,
    failure_reason text,
    tx_hash text,
    answered_at timestamptz NOT NULL,
    CONSTRAINT event_requests_pkey PRIMARY KEY (vault_id, scope_id, request_id),
    CONSTRAINT event_requests_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE
);
