-- migrate:up

-- How far the changes of an agent were delivered to its webhook_url: one row for each
-- agent that ever had a URL or a secret. Every change of the agent up to
-- `cursor_revision` was delivered; there is no second queue. `cursor_digest` is the check
-- value of that change, which tells whether it is still of the same history; null is
-- unknown. `delivered_revision` is the last one that was delivered. `final_revision` is
-- where a deleted agent's changes end. `attempts` counts the failures since the last
-- success, and `edition` what the owner changed: whoever delivers under an older one
-- stops. One process at a time delivers, as long as its lease lasts; an agent that waits
-- for its next attempt is leased by nobody. The claim reads the whole table, which one
-- index less keeps cheap to update.
CREATE TABLE webhooks (
    agent_id text NOT NULL,
    vault_id text NOT NULL,
    cursor_revision bigint NOT NULL,
    cursor_digest bytea,
    delivered_revision bigint,
    final_revision bigint,
    edition bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    last_error text,
    last_error_at timestamptz,
    last_success_at timestamptz,
    next_attempt_at timestamptz NOT NULL DEFAULT '-infinity',
    leased_by text,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT webhooks_pkey PRIMARY KEY (agent_id),
    CONSTRAINT webhooks_cursor_revision_is_not_negative CHECK (cursor_revision >= 0),
    CONSTRAINT webhooks_failing_has_a_beginning CHECK (
        (attempts > 0) = (failing_since IS NOT NULL)
    ),
    CONSTRAINT webhooks_last_error_has_a_time CHECK (
        (last_error IS NULL) = (last_error_at IS NULL)
    ),
    CONSTRAINT webhooks_last_error_is_bounded CHECK (length(last_error) <= 500),
    CONSTRAINT webhooks_agent_id_fkey FOREIGN KEY (agent_id)
    REFERENCES agents (id) ON DELETE CASCADE
) WITH (fillfactor = 50);

-- What deliveries are signed with, sealed as the vaults' keys are. One secret of an
-- agent has no end; those before it sign, too, until they expire.
CREATE TABLE webhook_secrets (
    agent_id text NOT NULL,
    id text NOT NULL,
    version smallint NOT NULL,
    wrapping_key_id text NOT NULL,
    wrapped_data_key bytea NOT NULL,
    sealed_secret bytea NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT webhook_secrets_pkey PRIMARY KEY (agent_id, id),
    CONSTRAINT webhook_secrets_agent_id_fkey FOREIGN KEY (agent_id)
    REFERENCES webhooks (agent_id) ON DELETE CASCADE
);

-- An agent has one current secret.
CREATE UNIQUE INDEX webhook_secrets_current_key ON webhook_secrets (agent_id)
WHERE expires_at IS NULL;

-- Agents that were given a URL before it was used: they get every change from now on.
INSERT INTO webhooks (agent_id, vault_id, cursor_revision)
SELECT
    agents.id AS agent_id,
    vaults.id AS vault_id,
    vaults.revision AS cursor_revision
FROM agents
INNER JOIN vaults ON agents.project_id = vaults.project_id
WHERE agents.webhook_url IS NOT NULL AND agents.deleted_at IS NULL;
