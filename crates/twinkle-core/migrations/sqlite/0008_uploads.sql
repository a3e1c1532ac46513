-- Uploads of checkpoints to hubs: how each is doing, so that it can be told after a restart. No token is kept. The error is
-- MessagePack of an error, NULL unless it failed. `state`: 0 under way, 1 completed, 2 failed.

CREATE TABLE uploads (
    request    TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    state      INTEGER NOT NULL,
    sent       INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    error      BLOB,
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_of_tenant ON uploads (tenant, changed_at);
CREATE INDEX old_uploads ON uploads (changed_at);

-- What the metrics of an adapter have counted since its client last asked; NULL: nothing.
ALTER TABLE adapters ADD COLUMN counters BLOB;
