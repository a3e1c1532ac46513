-- What Twinkle clients set for their adapters: the settings are MessagePack with field names.

CREATE TABLE adapters (
    session  TEXT COLLATE "C" NOT NULL,
    name     TEXT COLLATE "C" NOT NULL,
    tenant   TEXT COLLATE "C" NOT NULL,
    run      TEXT COLLATE "C" NOT NULL,
    settings BYTEA NOT NULL,
    PRIMARY KEY (session, name)
);
