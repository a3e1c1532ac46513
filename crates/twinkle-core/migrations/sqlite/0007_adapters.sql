-- What Twinkle clients set for their adapters: the settings are MessagePack with field names.

CREATE TABLE adapters (
    session  TEXT NOT NULL,
    name     TEXT NOT NULL,
    tenant   TEXT NOT NULL,
    run      TEXT NOT NULL,
    settings BLOB NOT NULL,
    PRIMARY KEY (session, name)
) STRICT, WITHOUT ROWID;
