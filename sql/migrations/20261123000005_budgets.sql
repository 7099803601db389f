-- migrate:up

-- An agent's limits and what its spends have taken of them. The counters belong to
-- the UTC day and month of `last_reset_at`: `*_spent` sums the pending and confirmed
-- spends that were authorized in that window, `*_held` the pending part of it.
-- Changes under the vault's lock.
CREATE TABLE agent_budget_rules (
    id text NOT NULL,
    daily_limit bigint NOT NULL,
    per_tx_limit bigint NOT NULL,
    monthly_limit bigint,
    daily_spent bigint NOT NULL DEFAULT 0,
    monthly_spent bigint NOT NULL DEFAULT 0,
    last_reset_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    agent_id text NOT NULL,
    daily_held bigint NOT NULL DEFAULT 0,
    monthly_held bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT agent_budget_rules_pkey PRIMARY KEY (id),
    CONSTRAINT agent_budget_rules_agent_id_key UNIQUE (agent_id),
    CONSTRAINT agent_budget_rules_daily_limit_is_positive CHECK (daily_limit > 0),
    CONSTRAINT agent_budget_rules_per_tx_limit_is_positive CHECK (per_tx_limit > 0),
    CONSTRAINT agent_budget_rules_monthly_limit_is_positive CHECK (monthly_limit > 0),
    CONSTRAINT agent_budget_rules_held_is_not_negative CHECK (
        daily_held >= 0 AND monthly_held >= 0
    ),
    CONSTRAINT agent_budget_rules_spent_covers_held CHECK (
        daily_spent >= daily_held AND monthly_spent >= monthly_held
    ),
    CONSTRAINT agent_budget_rules_month_covers_day CHECK (monthly_spent >= daily_spent),
    CONSTRAINT agent_budget_rules_agent_id_fkey FOREIGN KEY (agent_id)
    REFERENCES agents (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
