-- Losses that clients wrote: the graph is MessagePack with field names.

CREATE TABLE custom_losses (
    id      TEXT COLLATE "C" PRIMARY KEY,
    tenant  TEXT COLLATE "C" NOT NULL,
    session TEXT COLLATE "C" NOT NULL,
    graph   BYTEA NOT NULL
);
CREATE INDEX custom_losses_of_session ON custom_losses (session);
