-- Everything a node remembers over a restart. Times are nanoseconds since 1970 (UTC);
-- nested values are MessagePack with field names.

CREATE TABLE sessions (
    id            TEXT PRIMARY KEY,
    tenant        TEXT NOT NULL,
    tags          BLOB NOT NULL,
    user_metadata BLOB NOT NULL,
    sdk_version   TEXT,
    finished      INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_last_seen ON sessions (last_seen_at);

CREATE TABLE sampling_sessions (
    id         TEXT PRIMARY KEY,
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    base_model TEXT NOT NULL,
    source     BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sampling_sessions_of_session ON sampling_sessions (session);

CREATE TABLE runs (
    id             TEXT PRIMARY KEY,
    tenant         TEXT NOT NULL,
    session        TEXT NOT NULL,
    base_model     TEXT NOT NULL,
    lora           BLOB NOT NULL,
    user_metadata  BLOB NOT NULL,
    closed         INTEGER NOT NULL DEFAULT 0,
    created_at     INTEGER NOT NULL,
    last_used_at   INTEGER NOT NULL,
    -- Every number up to this one is used up, whether or not `operations` still has its row.
    passed_through INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_of_tenant ON runs (tenant, created_at DESC, id);
CREATE INDEX runs_of_session ON runs (session);

CREATE TABLE snapshots (
    run       TEXT PRIMARY KEY REFERENCES runs (id),
    directory TEXT NOT NULL,
    after     INTEGER NOT NULL,
    arrival   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The journal and the futures in one: an operation is a row from its acceptance to its expiry.
CREATE TABLE operations (
    id          INTEGER PRIMARY KEY,
    request     TEXT NOT NULL UNIQUE,
    tenant      TEXT NOT NULL,
    run         TEXT NOT NULL,
    after       INTEGER NOT NULL,       -- its place in the run: the number of the operation,
    arrival     INTEGER NOT NULL,       -- and 0, or an arrival number for one without a number
    name        TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    payload     BLOB,                   -- NULL once a snapshot covers it
    state       INTEGER NOT NULL,       -- 0 pending, 1 done, 2 failed, 3 number used up by a refusal
    outcome     BLOB,                   -- NULL while pending and after expiry
    finished_at INTEGER,
    UNIQUE (run, after, arrival)
) STRICT;
CREATE INDEX unfinished_operations ON operations (run) WHERE state = 0;
CREATE INDEX finished_operations ON operations (finished_at) WHERE state <> 0;

CREATE TABLE checkpoints (
    tenant        TEXT NOT NULL,
    run           TEXT NOT NULL,
    kind          TEXT NOT NULL,
    name          TEXT NOT NULL,
    base_model    TEXT NOT NULL,
    lora          BLOB NOT NULL,
    size_bytes    INTEGER NOT NULL,
    user_metadata BLOB NOT NULL,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER,
    PRIMARY KEY (tenant, run, kind, name)
) STRICT, WITHOUT ROWID;
