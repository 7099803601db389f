-- migrate:up

-- The key that resume tokens are signed with, the same for all processes: one row, made
-- by the first process that needs it.
CREATE TABLE stream_key (
    id boolean NOT NULL DEFAULT TRUE,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT stream_key_pkey PRIMARY KEY (id),
    CONSTRAINT stream_key_is_one_row CHECK (id)
);
