-- API keys of tenants, for nodes with `auth: {store: true}`. The digest is SHA-256 of the whole key, in hex.

CREATE TABLE api_keys (
    prefix     TEXT PRIMARY KEY,
    digest     TEXT NOT NULL UNIQUE,
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);
