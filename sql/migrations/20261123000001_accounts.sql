-- migrate:up

-- A person who owns projects. The address is stored in lower case.
CREATE TABLE users (
    id text NOT NULL,
    email text NOT NULL,
    password_hash text NOT NULL,
    name text NOT NULL,
    avatar text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_key UNIQUE (email),
    CONSTRAINT users_email_is_lower_case CHECK (email = lower(email))
);

-- One sign-in. `token` is the SHA-256 of the credential, never the credential.
CREATE TABLE sessions (
    id text NOT NULL,
    token text NOT NULL,
    expires_at timestamptz NOT NULL,
    user_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_token_key UNIQUE (token),
    CONSTRAINT sessions_token_is_sha256 CHECK (token ~ '^[0-9a-f]{64}$'),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id)
    REFERENCES users (id) ON DELETE CASCADE
);

-- Serves ListSessions, and the cascade from users.
CREATE INDEX sessions_user_id_idx ON sessions (user_id, created_at);

-- Serves the removal of sessions that have expired.
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at);

-- A credential for programs. `key_hash` is the SHA-256 of the key, `key_prefix` its
-- first 8 characters, for display. `request_count` and `last_used_at` are written
-- from memory about once a second.
CREATE TABLE api_keys (
    id text NOT NULL,
    name text NOT NULL,
    key_hash text NOT NULL,
    key_prefix text NOT NULL,
    last_used_at timestamptz,
    expires_at timestamptz,
    permissions text[] NOT NULL,
    request_count bigint NOT NULL DEFAULT 0,
    user_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_key_hash_is_sha256 CHECK (key_hash ~ '^[0-9a-f]{64}$'),
    CONSTRAINT api_keys_key_prefix_is_8_characters CHECK (length(key_prefix) = 8),
    CONSTRAINT api_keys_permissions_are_known CHECK (
        permissions <@ ARRAY['read', 'write', 'execute'] AND cardinality(permissions) > 0
    ),
    CONSTRAINT api_keys_request_count_is_not_negative CHECK (request_count >= 0),
    CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id)
    REFERENCES users (id) ON DELETE CASCADE
);

-- Serves ListApiKeys, and the cascade from users.
CREATE INDEX api_keys_user_id_idx ON api_keys (user_id, created_at);

-- How often an address was tried since `window_started_at`. Kept for unknown
-- addresses too, so that the limit does not tell them apart; by hash, so that it
-- keeps no list of what people typed.
CREATE TABLE sign_in_attempts (
    email_hash text NOT NULL,
    attempts integer NOT NULL,
    window_started_at timestamptz NOT NULL,
    CONSTRAINT sign_in_attempts_pkey PRIMARY KEY (email_hash),
    CONSTRAINT sign_in_attempts_attempts_are_positive CHECK (attempts > 0)
);

-- Serves the removal of windows that are over.
CREATE INDEX sign_in_attempts_window_started_at_idx ON sign_in_attempts (window_started_at);

-- The answers of Create requests that carried a request_id, kept for 7 days. The
-- fingerprint is a hash a field, so that a conflict can name the field; the answer
-- holds no secret.
CREATE TABLE requests (
    user_id text NOT NULL,
    request_id text NOT NULL,
    rpc text NOT NULL,
    fingerprint text NOT NULL,
    answer jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT requests_pkey PRIMARY KEY (user_id, request_id),
    CONSTRAINT requests_user_id_fkey FOREIGN KEY (user_id)
    REFERENCES users (id) ON DELETE CASCADE
);

-- Serves the removal of answers that are older than 7 days.
CREATE INDEX requests_created_at_idx ON requests (created_at);
