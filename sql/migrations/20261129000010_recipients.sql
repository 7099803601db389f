-- migrate:up

-- Whom an agent may pay on chain: Solana wallets. An agent without a row pays nobody,
-- unless its rule lets it pay anybody. A spend looks up its recipient by the primary key.
CREATE TABLE agent_recipients (
    agent_id text NOT NULL,
    address text NOT NULL,
    label text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT agent_recipients_pkey PRIMARY KEY (agent_id, address),
    CONSTRAINT agent_recipients_agent_id_fkey FOREIGN KEY (agent_id)
    REFERENCES agents (id) ON DELETE CASCADE
);

-- Whether an agent may pay wallets that are not on its list.
ALTER TABLE agent_budget_rules
ADD COLUMN any_recipient boolean NOT NULL DEFAULT FALSE;
