//! How many runs a tenant may have open; checked in the very transaction that makes one.

use super::codec::from_integer;
use super::connection::Connection;
use super::failure::Failure;
use super::sql::query;
use crate::call::RunRecord;
use crate::error::{Error, ErrorCode};

/// How many runs an error names.
const NAMED: u32 = 5;

/// How many open runs a tenant may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// On the whole node (`per_token_model_limit`); `None` for no limit.
    pub per_tenant: Option<u32>,
    /// On one base model (`per_token_adapter_limit`); `None` for no limit.
    pub per_model: Option<u32>,
}

impl RunLimits {
    /// Refuses when one more run of this tenant would be too many.
    pub(super) async fn check(self, connection: &mut Connection, new: &RunRecord) -> Result<(), Failure> {
        let limits = [
            (self.per_tenant, None, "`per_token_model_limit`"),
            (self.per_model, Some(new.base_model.as_str()), "`per_token_adapter_limit` of this model"),
        ];
        for (limit, base_model, name) in limits {
            let Some(limit) = limit else { continue };
            let open: i64 = query(
                "SELECT COUNT(*) AS open FROM runs
                 WHERE tenant = $1 AND closed = 0 AND (CAST($2 AS TEXT) IS NULL OR base_model = $2)",
            )
            .bind(new.tenant.as_str())
            .bind(base_model)
            .fetch_value("open", &mut *connection)
            .await?;
            if from_integer(open)? >= u64::from(limit) {
                return Err(too_many(connection, new, base_model, limit, name).await?.into());
            }
        }
        Ok(())
    }
}

/// What a person needs to know: how many, which, and how to end one.
async fn too_many(
    connection: &mut Connection,
    new: &RunRecord,
    base_model: Option<&str>,
    limit: u32,
    name: &str,
) -> Result<Error, Failure> {
    let idle: Vec<String> = query(
        "SELECT id FROM runs WHERE tenant = $1 AND closed = 0 AND (CAST($2 AS TEXT) IS NULL OR base_model = $2)
         ORDER BY last_used_at, id LIMIT $3",
    )
    .bind(new.tenant.as_str())
    .bind(base_model)
    .bind(NAMED)
    .fetch_column("id", connection)
    .await?;
    let runs: Vec<String> = idle.iter().map(|run| format!("`{run}`")).collect();
    let on_model = base_model.map_or_else(String::new, |model| format!(" on base model `{model}`"));
    Ok(Error::new(
        ErrorCode::LimitReached,
        format!("{limit} runs are open{on_model}, which is {name}; idle longest: {}", runs.join(", ")),
    )
    .hint("end one with `unload_model`, or finish its session: `POST /api/v1/sessions/<session>/finish`; checkpoints stay"))
}
