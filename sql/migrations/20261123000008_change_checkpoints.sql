-- migrate:up

-- Where the kept changes of a vault begin: what the last change that was trimmed left.
-- A vault without a row keeps all of its changes.
CREATE TABLE change_checkpoints (
    vault_id text NOT NULL,
    revision bigint NOT NULL,
    balance bigint NOT NULL,
    chain_balance bigint NOT NULL,
    held bigint NOT NULL,
    digest bytea NOT NULL,
    changed_at timestamptz NOT NULL,
    CONSTRAINT change_checkpoints_pkey PRIMARY KEY (vault_id),
    CONSTRAINT change_checkpoints_revision_is_positive CHECK (revision > 0),
    CONSTRAINT change_checkpoints_vault_id_fkey FOREIGN KEY (vault_id)
    REFERENCES vaults (id) ON DELETE CASCADE
);
