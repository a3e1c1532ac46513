-- What is answered about a run that is closed: MessagePack of an error, NULL for runs closed by earlier versions.

ALTER TABLE runs ADD COLUMN ending BYTEA;
CREATE INDEX open_runs ON runs (base_model, id) WHERE closed = 0;
CREATE INDEX closed_runs ON runs (last_used_at) WHERE closed = 1;
