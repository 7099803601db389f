-- migrate:up

-- What a user's agents spend for. A status change happens under the vault's lock.
CREATE TABLE projects (
    id text NOT NULL,
    name text NOT NULL,
    description text,
    status text NOT NULL DEFAULT 'active',
    user_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT projects_pkey PRIMARY KEY (id),
    CONSTRAINT projects_status_is_known CHECK (status IN ('active', 'paused', 'archived')),
    CONSTRAINT projects_user_id_fkey FOREIGN KEY (user_id)
    REFERENCES users (id) ON DELETE CASCADE
);

-- Serves ListProjects, and the cascade from users.
CREATE INDEX projects_user_id_idx ON projects (user_id, created_at);
