//! Sessions that fell silent, runs whose time is over, and why a run ended.

use jiff::Timestamp;

use super::StateStore;
use super::codec::{from_blob, from_nanoseconds, to_nanoseconds};
use super::connection::Connection;
use super::failure::Failure;
use super::runs::closed_run;
use super::sql::{Row, query};
use super::writer::Write;
use crate::call::{Ending, RunOutcome};
use crate::error::{Error, ErrorCode, Result};
use crate::ids::{RunId, SessionId, TenantId};

/// Which runs are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfRuns {
    /// Those made before this; `None`: however old they are.
    pub made_before: Option<Timestamp>,
    /// Those whose session is finished, and was last heard of before this.
    pub session_silent_before: Timestamp,
}

/// An open run whose time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueRun {
    /// Its name.
    pub id: RunId,
    /// Its owner.
    pub tenant: TenantId,
    /// Why its time is over.
    pub ending: Ending,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Timestamp,
}

/// One page of open runs of a base model.
#[derive(Clone, Copy, Debug)]
pub struct RunPage<'a> {
    /// The base model's public name.
    pub base_model: &'a str,
    /// Only runs whose names come after this one.
    pub after: Option<&'a RunId>,
    /// At most this many.
    pub limit: u32,
}

impl StateStore {
    /// Finishes at most `limit` sessions that were neither heard of nor used since `silent_since`, and names them.
    pub async fn finish_silent_sessions(&self, silent_since: Timestamp, limit: u32) -> Result<Vec<SessionId>> {
        self.writer.write(FinishSilentSessions { silent_since: to_nanoseconds(silent_since), limit }).await
    }

    /// Open runs whose time is over, in order of their names.
    pub async fn due_runs(&self, page: RunPage<'_>, end: EndOfRuns) -> Result<Vec<DueRun>> {
        let made_before = end.made_before.map_or(i64::MIN, to_nanoseconds);
        let rows = query(
            "SELECT runs.id AS id, runs.tenant AS tenant, runs.created_at AS created_at,
                    runs.last_used_at AS last_used_at, sessions.finished AS finished
             FROM runs JOIN sessions ON sessions.id = runs.session
             WHERE runs.closed = 0 AND runs.base_model = $1 AND runs.id > $2
             AND (runs.created_at < $3 OR (sessions.finished = 1 AND sessions.last_seen_at < $4))
             ORDER BY runs.id LIMIT $5",
        )
        .bind(page.base_model)
        .bind(page.after.map_or("", RunId::as_str))
        .bind(made_before)
        .bind(to_nanoseconds(end.session_silent_before))
        .bind(page.limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_due_run).collect()
    }

    /// Open runs that fell silent between `from` and `until`: since then neither they nor their sessions were used.
    pub async fn silenced_runs(
        &self,
        page: RunPage<'_>,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<(TenantId, RunId)>> {
        let rows = query(
            "SELECT runs.id AS id, runs.tenant AS tenant FROM runs JOIN sessions ON sessions.id = runs.session
             WHERE runs.closed = 0 AND runs.base_model = $1 AND runs.id > $2
             AND runs.last_used_at < $3 AND sessions.last_seen_at < $3
             AND (runs.last_used_at >= $4 OR sessions.last_seen_at >= $4)
             ORDER BY runs.id LIMIT $5",
        )
        .bind(page.base_model)
        .bind(page.after.map_or("", RunId::as_str))
        .bind(to_nanoseconds(until))
        .bind(to_nanoseconds(from))
        .bind(page.limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| Ok((TenantId::new(row.get::<String>("tenant")?), RunId::new(row.get::<String>("id")?))))
            .collect()
    }

    /// Whether nobody can use what belongs to the session any more: it is finished and silent since before `time`,
    /// or not on record.
    pub async fn is_over(&self, session: &SessionId, time: Timestamp) -> Result<bool> {
        let row = query("SELECT finished, last_seen_at FROM sessions WHERE id = $1")
            .bind(session.as_str())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(true) };
        Ok(row.get::<bool>("finished")? && row.get::<i64>("last_seen_at")? < to_nanoseconds(time))
    }

    /// Whether the run is on record and not closed.
    pub async fn is_open(&self, run: &RunId) -> Result<bool> {
        let closed: Option<bool> = query("SELECT closed FROM runs WHERE id = $1")
            .bind(run.as_str())
            .fetch_optional_value("closed", &self.readers)
            .await?;
        Ok(closed == Some(false))
    }

    /// What is answered about a run that is closed: why it ended and where it can be taken up from.
    pub async fn end_of(&self, run: &RunId) -> Result<Error> {
        let ending: Option<Option<Vec<u8>>> = query("SELECT ending FROM runs WHERE id = $1")
            .bind(run.as_str())
            .fetch_optional_value("ending", &self.readers)
            .await?;
        match ending.flatten() {
            Some(blob) => {
                let end: Error = from_blob(&blob)?;
                // Asking again would not help, whatever ended it.
                Ok(if end.code.is_users_fault() { end } else { Error { code: ErrorCode::NotFound, ..end } })
            }
            None => Ok(closed_run(run)),
        }
    }
}

/// What is answered about a run that this outcome ended.
pub(crate) fn end_by(run: &RunId, outcome: Option<&RunOutcome>) -> Error {
    let Some(RunOutcome::Expired { path, ending, .. }) = outcome else { return closed_run(run) };
    let why = match ending {
        Ending::Session => "its session is over",
        Ending::Lifetime => "it lived as long as a run may on this server",
    };
    Error::new(ErrorCode::Gone, format!("run `{run}` was ended because {why}; it was saved as `{path}`"))
        .hint("create a new run from that checkpoint")
}

fn read_due_run(row: &Row) -> Result<DueRun> {
    let ending = if row.get::<bool>("finished")? { Ending::Session } else { Ending::Lifetime };
    Ok(DueRun {
        id: RunId::new(row.get::<String>("id")?),
        tenant: TenantId::new(row.get::<String>("tenant")?),
        ending,
        created_at: from_nanoseconds(row.get("created_at")?)?,
        last_used_at: from_nanoseconds(row.get("last_used_at")?)?,
    })
}

struct FinishSilentSessions {
    silent_since: i64,
    limit: u32,
}

impl Write for FinishSilentSessions {
    type Answer = Vec<SessionId>;

    /// When it was last heard of stays as it is: the session has been over since then.
    async fn apply(&self, connection: &mut Connection) -> Result<Vec<SessionId>, Failure> {
        let finished: Vec<String> = query(
            "UPDATE sessions SET finished = 1 WHERE id IN (SELECT id FROM sessions
             WHERE finished = 0 AND last_seen_at < $1
             AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.session = sessions.id AND runs.last_used_at >= $1)
             LIMIT $2) RETURNING id",
        )
        .bind(self.silent_since)
        .bind(self.limit)
        .fetch_column("id", connection)
        .await?;
        Ok(finished.into_iter().map(SessionId::new).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::call::{LoraSpec, Position, RunRecord, SessionRecord};
    use crate::ids::{CheckpointKind, CheckpointPath, RequestId};
    use crate::state::{NewOperation, NewRun, Retention, RunLimits};

    const TINY: RunPage<'_> = RunPage { base_model: "tiny", after: None, limit: 10 };

    /// Minutes after the beginning.
    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_mins(minutes)
    }

    fn alice() -> TenantId {
        TenantId::new("alice")
    }

    async fn open_session(store: &StateStore, id: &str, created_at: Timestamp) {
        let session = SessionRecord {
            id: SessionId::new(id),
            tenant: alice(),
            tags: vec![],
            user_metadata: BTreeMap::new(),
            sdk_version: None,
            finished: false,
            created_at,
            project_id: None,
            display_name: None,
            client_end: None,
        };
        store.create_session(&session).await.unwrap();
    }

    fn run(session: &str, number: u64, tenant: TenantId, created_at: Timestamp, last_used_at: Timestamp) -> NewRun {
        let session = SessionId::new(session);
        let id = RunId::of_session(&session, number);
        let record = RunRecord {
            id: id.clone(),
            tenant: tenant.clone(),
            session,
            base_model: "tiny".to_owned(),
            lora: LoraSpec { rank: 4, train_unembed: false, ..LoraSpec::default() },
            user_metadata: BTreeMap::new(),
            closed: false,
            created_at,
            last_used_at,
        };
        let operation = NewOperation {
            request: RequestId::journaled(),
            tenant,
            run: id,
            position: Position::default(),
            name: "create_model",
            payload: vec![],
            fingerprint: [0; 32],
        };
        NewRun { record, operation }
    }

    async fn insert(store: &StateStore, session: &str, number: u64, created_at: Timestamp, last_used_at: Timestamp) {
        store.insert_run(run(session, number, alice(), created_at, last_used_at)).await.unwrap();
    }

    #[tokio::test]
    async fn only_sessions_without_a_sign_of_life_are_finished() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "silent", at(0)).await;
        open_session(&store, "trains", at(0)).await;
        insert(&store, "trains", 0, at(0), at(9)).await;
        open_session(&store, "beats", at(0)).await;
        store.touch_session(&alice(), &SessionId::new("beats")).await.unwrap();

        assert_eq!(store.finish_silent_sessions(at(5), 10).await.unwrap(), [SessionId::new("silent")]);
        assert_eq!(store.finish_silent_sessions(at(5), 10).await.unwrap(), []);
        assert_eq!(store.finish_silent_sessions(at(10), 10).await.unwrap(), [SessionId::new("trains")]);
        let beat = store.touch_session(&alice(), &SessionId::new("silent")).await.unwrap_err();
        assert_eq!(beat.code, ErrorCode::Gone);
    }

    #[tokio::test]
    async fn runs_are_due_by_age_or_because_their_session_is_over() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", at(0)).await;
        open_session(&store, "b", at(0)).await;
        insert(&store, "a", 0, at(0), at(8)).await;
        insert(&store, "a", 1, at(7), at(8)).await;
        insert(&store, "b", 0, at(7), at(7)).await;
        let end = EndOfRuns { made_before: Some(at(5)), session_silent_before: at(5) };
        let names = |due: Vec<DueRun>| due.into_iter().map(|run| (run.id.to_string(), run.ending)).collect::<Vec<_>>();

        let due = store.due_runs(TINY, end).await.unwrap();
        assert_eq!(names(due), [("a:train:0".to_owned(), Ending::Lifetime)]);

        // `b` was silent since the beginning; its run is newer and was used before the end.
        store.finish_silent_sessions(at(8), 10).await.unwrap();
        let due = store.due_runs(TINY, end).await.unwrap();
        let expected = [("a:train:0".to_owned(), Ending::Lifetime), ("b:train:0".to_owned(), Ending::Session)];
        assert_eq!(names(due), expected);
        let first = RunId::new("a:train:0");
        let rest = store.due_runs(RunPage { after: Some(&first), ..TINY }, end).await.unwrap();
        assert_eq!(names(rest), expected[1..]);
        assert_eq!(store.due_runs(RunPage { base_model: "other", ..TINY }, end).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_run_falls_silent_once() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", at(1)).await;
        insert(&store, "a", 0, at(1), at(3)).await;
        let silenced = async |from, until| store.silenced_runs(TINY, at(from), at(until)).await.unwrap();
        assert_eq!(silenced(0, 3).await, [], "it is used until minute 3");
        assert_eq!(silenced(3, 4).await, [(alice(), RunId::new("a:train:0"))]);
        assert_eq!(silenced(4, 9).await, []);
    }

    #[tokio::test]
    async fn a_closed_run_says_where_it_was_saved() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", Timestamp::now()).await;
        let new = run("a", 0, alice(), at(0), at(0));
        let (id, request) = (new.record.id.clone(), new.operation.request.clone());
        store.insert_run(new).await.unwrap();
        assert!(store.is_open(&id).await.unwrap());
        let path = CheckpointPath::new(id.clone(), CheckpointKind::Weights, "expired-1").unwrap();
        let outcome = Ok(RunOutcome::Expired { run: id.clone(), path, ending: Ending::Lifetime });
        assert!(store.finish(&request, &outcome).await.unwrap().closed);

        assert!(!store.is_open(&id).await.unwrap());
        let end = store.end_of(&id).await.unwrap();
        assert_eq!(end.code, ErrorCode::Gone);
        assert!(end.message.contains("tinker://a:train:0/weights/expired-1"), "{end}");
    }

    #[tokio::test]
    async fn one_run_too_many_is_refused_with_what_to_do_until_one_is_closed() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", Timestamp::now()).await;
        let limits = RunLimits { per_tenant: Some(2), per_model: None };
        let new = |number| run("a", number, alice(), at(0), at(9 - number.cast_signed()));
        for number in 0..2 {
            store.insert_run_within(new(number), limits).await.unwrap();
        }
        let refused = store.insert_run_within(new(2), limits).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::LimitReached);
        assert!(refused.message.contains("2 runs are open"), "{refused}");
        assert!(refused.message.contains("`a:train:1`, `a:train:0`"), "the idle ones first: {refused}");
        assert!(refused.hint.unwrap().contains("unload_model"));
        // The same request again is answered as before, limit or not.
        store.insert_run_within(new(0), limits).await.unwrap();

        store.close_run(&RunId::new("a:train:0"), &Error::not_found("unloaded")).await.unwrap();
        store.insert_run_within(new(2), limits).await.unwrap();
        let of_model = RunLimits { per_tenant: None, per_model: Some(2) };
        let refused = store.insert_run_within(new(3), of_model).await.unwrap_err();
        assert!(refused.message.contains("on base model `tiny`"), "{refused}");
    }

    #[tokio::test]
    async fn a_closed_run_is_forgotten_with_its_session_when_nothing_of_it_is_left() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", at(0)).await;
        let (gone, kept) = (RunId::new("a:train:0"), RunId::new("a:train:1"));
        for number in 0..2 {
            insert(&store, "a", number, at(0), at(0)).await;
        }
        store.close_run(&gone, &Error::not_found("unloaded")).await.unwrap();
        let retention =
            Retention { results: Duration::ZERO, idle_sessions: Duration::from_mins(1), ..Retention::default() };
        assert_eq!(store.sweep(&retention).await.unwrap().runs, 0, "its session is open");
        store.finish_silent_sessions(at(1), 10).await.unwrap();
        assert_eq!(store.sweep(&retention).await.unwrap().runs, 1);
        assert_eq!(store.run(&alice(), &gone).await.unwrap_err().code, ErrorCode::NotFound);
        store.run(&alice(), &kept).await.unwrap();
        assert!(store.session(&alice(), &SessionId::new("a")).await.unwrap().finished, "it has a run on record");
    }

    #[tokio::test]
    async fn a_session_is_over_when_it_is_finished_for_long_or_unknown() {
        let store = StateStore::open_in_memory().await.unwrap();
        open_session(&store, "a", at(0)).await;
        let id = SessionId::new("a");
        assert!(!store.is_over(&id, Timestamp::MAX).await.unwrap());
        store.finish_session(&alice(), &id).await.unwrap();
        assert!(!store.is_over(&id, at(0)).await.unwrap(), "it was finished just now");
        let later = Timestamp::now() + Duration::from_secs(1);
        assert!(store.is_over(&id, later).await.unwrap());
        assert!(store.is_over(&SessionId::new("unknown"), at(0)).await.unwrap());
    }
}
