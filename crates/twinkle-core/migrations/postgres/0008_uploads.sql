-- Uploads of checkpoints to hubs: how each is doing, so that it can be told after a restart. No token is kept. The error is
-- MessagePack of an error, NULL unless it failed. `state`: 0 under way, 1 completed, 2 failed.

CREATE TABLE uploads (
    request    TEXT COLLATE "C" PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    state      BIGINT NOT NULL,
    sent       BIGINT NOT NULL,
    total      BIGINT NOT NULL,
    error      BYTEA,
    changed_at BIGINT NOT NULL
);
CREATE INDEX uploads_of_tenant ON uploads (tenant, changed_at);
CREATE INDEX old_uploads ON uploads (changed_at);

-- What the metrics of an adapter have counted since its client last asked; NULL: nothing.
ALTER TABLE adapters ADD COLUMN counters BYTEA;
