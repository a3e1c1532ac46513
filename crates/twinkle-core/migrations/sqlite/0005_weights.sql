-- Where sessions are filed and how their clients ended them (MessagePack, NULL until told), and who may read a checkpoint.

ALTER TABLE sessions ADD COLUMN project TEXT;
ALTER TABLE sessions ADD COLUMN display_name TEXT;
ALTER TABLE sessions ADD COLUMN client_end BLOB;
CREATE INDEX sessions_of_tenant ON sessions (tenant, created_at DESC, id);

ALTER TABLE checkpoints ADD COLUMN public INTEGER NOT NULL DEFAULT 0;
CREATE INDEX checkpoints_of_run ON checkpoints (run, kind, name);
CREATE INDEX passing_checkpoints ON checkpoints (expires_at) WHERE expires_at IS NOT NULL;
