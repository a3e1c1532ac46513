-- Samples whose clients wait on a session's completions. A server that stopped has lost them; its successor says so,
-- and the clients submit them again.

CREATE TABLE samples (
    request          TEXT PRIMARY KEY,
    tenant           TEXT NOT NULL,
    sampling_session TEXT NOT NULL,
    clone            INTEGER NOT NULL,
    accepted_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX old_samples ON samples (accepted_at);

-- How many clients have joined a sampling session beside its first one.
ALTER TABLE sampling_sessions ADD COLUMN joined INTEGER NOT NULL DEFAULT 0;
