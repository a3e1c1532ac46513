-- API keys of tenants, for nodes with `auth: {store: true}`. The digest is SHA-256 of the whole key, in hex.

CREATE TABLE api_keys (
    prefix     TEXT COLLATE "C" PRIMARY KEY,
    digest     TEXT NOT NULL UNIQUE,
    tenant     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);
