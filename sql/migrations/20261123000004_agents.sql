-- migrate:up

-- A program that spends. `api_key_hash` is the SHA-256 of its key; `open_holds` counts
-- its open holds. A deleted agent keeps its row, so that its events keep their agent.
-- What a decision reads of it changes under the vault's lock.
CREATE TABLE agents (
    id text NOT NULL,
    name text NOT NULL,
    provider text,
    model text,
    status text NOT NULL DEFAULT 'needs_setup',
    api_key_hash text,
    webhook_url text,
    project_id text NOT NULL,
    open_holds integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at timestamptz,
    CONSTRAINT agents_pkey PRIMARY KEY (id),
    CONSTRAINT agents_api_key_hash_key UNIQUE (api_key_hash),
    CONSTRAINT agents_api_key_hash_is_sha256 CHECK (api_key_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT agents_status_is_known CHECK (
        status IN ('active', 'paused', 'error', 'needs_setup')
    ),
    CONSTRAINT agents_open_holds_is_not_negative CHECK (open_holds >= 0),
    CONSTRAINT agents_deleted_has_no_key CHECK (deleted_at IS NULL OR api_key_hash IS NULL),
    CONSTRAINT agents_project_id_fkey FOREIGN KEY (project_id)
    REFERENCES projects (id) ON DELETE CASCADE
) WITH (fillfactor = 80);

-- Serves ListAgents, and the cascade from projects.
CREATE INDEX agents_project_id_idx ON agents (project_id, created_at);
