-- migrate:up

-- A project's money, and the lock that every decision about it takes.
-- `balance` is what may still be spent; `chain_balance` is the USDC on chain; `held`
-- is the sum of the open holds. `revision` numbers the changes of the vault's events,
-- and `digest` is the check value of the last one. `last_change_at` is the time that
-- no later decision may precede.
CREATE TABLE vaults (
    id text NOT NULL,
    address text NOT NULL,
    balance bigint NOT NULL DEFAULT 0,
    project_id text NOT NULL,
    chain_balance bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    revision bigint NOT NULL DEFAULT 0,
    digest bytea NOT NULL DEFAULT '',
    last_change_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT vaults_pkey PRIMARY KEY (id),
    CONSTRAINT vaults_address_key UNIQUE (address),
    CONSTRAINT vaults_project_id_key UNIQUE (project_id),
    CONSTRAINT vaults_balance_is_not_negative CHECK (balance >= 0),
    CONSTRAINT vaults_chain_balance_is_not_negative CHECK (chain_balance >= 0),
    CONSTRAINT vaults_held_is_not_negative CHECK (held >= 0),
    CONSTRAINT vaults_revision_is_not_negative CHECK (revision >= 0),
    CONSTRAINT vaults_project_id_fkey FOREIGN KEY (project_id)
    REFERENCES projects (id) ON DELETE CASCADE
) WITH (fillfactor = 50);

-- The sealed secret of each vault's wallet: AES-256-GCM under a data key of its own,
-- which is wrapped by a key from outside the database. It has no foreign key: money
-- that arrives at the address of a deleted project can still be reached.
CREATE TABLE vault_keys (
    vault_id text NOT NULL,
    address text NOT NULL,
    version smallint NOT NULL,
    wrapping_key_id text NOT NULL,
    wrapped_data_key bytea NOT NULL,
    sealed_secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT vault_keys_pkey PRIMARY KEY (vault_id),
    CONSTRAINT vault_keys_address_key UNIQUE (address)
);
