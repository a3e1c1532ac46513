-- Samples whose clients wait on a session's completions. A server that stopped has lost them; its successor says so,
-- and the clients submit them again.

CREATE TABLE samples (
    request          TEXT COLLATE "C" PRIMARY KEY,
    tenant           TEXT COLLATE "C" NOT NULL,
    sampling_session TEXT COLLATE "C" NOT NULL,
    clone            BIGINT NOT NULL,
    accepted_at      BIGINT NOT NULL
);
CREATE INDEX old_samples ON samples (accepted_at);

-- How many clients have joined a sampling session beside its first one.
ALTER TABLE sampling_sessions ADD COLUMN joined BIGINT NOT NULL DEFAULT 0;
