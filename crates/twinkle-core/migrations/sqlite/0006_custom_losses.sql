-- Losses that clients wrote: the graph is MessagePack with field names.

CREATE TABLE custom_losses (
    id      TEXT PRIMARY KEY,
    tenant  TEXT NOT NULL,
    session TEXT NOT NULL,
    graph   BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX custom_losses_of_session ON custom_losses (session);
