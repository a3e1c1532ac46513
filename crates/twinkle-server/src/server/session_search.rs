//! Finding sessions by what is known of them.

use twinkle_core::call::{
    ClientEnd, DEFAULT_PROJECT, FoundSession, ServeOutcome, SessionPlace, SessionRecord, SessionSearch, SessionState,
};
use twinkle_core::error::Result;
use twinkle_core::ids::TenantId;
use twinkle_core::state::StateStore;

/// Most sessions in one page; a larger wish gets this many.
const LARGEST_PAGE: u32 = 200;
/// Sessions read at once.
const BATCH: u32 = 250;
/// Batches looked at for one answer; a client goes on from there with the next one.
const MOST_BATCHES: u32 = 40;

/// One page of the tenant's sessions that match, newest first.
pub(crate) async fn search(store: &StateStore, tenant: &TenantId, search: SessionSearch) -> Result<ServeOutcome> {
    let most = search.limit.clamp(1, LARGEST_PAGE) as usize;
    let (found, next) = find(store, tenant, &search, most).await?;
    let mut sessions = Vec::with_capacity(found.len());
    for record in found {
        let (checkpoints, checkpoint_bytes) = store.checkpoints_of_session(tenant, &record.id).await?;
        sessions.push(FoundSession { record, checkpoints, checkpoint_bytes });
    }
    Ok(ServeOutcome::FoundSessions { sessions, next })
}

/// At most `most` sessions, and where the next page begins if there may be more.
async fn find(
    store: &StateStore,
    tenant: &TenantId,
    search: &SessionSearch,
    most: usize,
) -> Result<(Vec<SessionRecord>, Option<SessionPlace>)> {
    let mut found: Vec<SessionRecord> = Vec::new();
    let mut place = search.after.clone();
    for _ in 0..MOST_BATCHES {
        let batch = store.sessions_after(tenant, place.as_ref(), BATCH).await?;
        let is_last = batch.len() < BATCH as usize;
        for record in batch {
            place = Some(place_of(&record));
            if !matches(search, &record) {
                continue;
            }
            if found.len() == most {
                let next = found.last().map(place_of);
                return Ok((found, next));
            }
            found.push(record);
        }
        if is_last {
            return Ok((found, None));
        }
    }
    Ok((found, place))
}

fn place_of(record: &SessionRecord) -> SessionPlace {
    SessionPlace { created_at: record.created_at, session: record.id.clone() }
}

fn matches(search: &SessionSearch, record: &SessionRecord) -> bool {
    let project = record.project_id.as_deref().unwrap_or(DEFAULT_PROJECT);
    is_named(search, record)
        && search.projects.as_ref().is_none_or(|projects| projects.iter().any(|wanted| wanted == project))
        && search.user_metadata.iter().all(|(name, value)| record.user_metadata.get(name) == Some(value))
        && search.states.as_ref().is_none_or(|states| states.iter().any(|state| is_in(state, record)))
}

/// Either of the two names is enough; without any, every session is meant.
fn is_named(search: &SessionSearch, record: &SessionRecord) -> bool {
    if search.session.is_none() && search.words.is_none() {
        return true;
    }
    let by_id = search.session.as_ref().is_some_and(|session| *session == record.id);
    let shown = record.display_name.as_ref().map(|name| name.to_lowercase());
    let by_words = match (&search.words, &shown) {
        (Some(words), Some(shown)) => words.iter().all(|word| shown.contains(word.as_str())),
        _ => false,
    };
    by_id || by_words
}

fn is_in(state: &SessionState, record: &SessionRecord) -> bool {
    match (state, &record.client_end) {
        (SessionState::Active, _) => !record.finished,
        (SessionState::ClientFinished(None), end) => end.is_some(),
        (SessionState::ClientFinished(Some(reasons)), Some(ClientEnd { reason, .. })) => reasons.contains(reason),
        (SessionState::ClientFinished(Some(_)), None) | (SessionState::Never, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use twinkle_core::ids::SessionId;

    use super::*;

    fn session(number: i64) -> SessionRecord {
        SessionRecord {
            id: SessionId::new(format!("s{number}")),
            tenant: TenantId::new("alice"),
            tags: Vec::new(),
            user_metadata: [("run".to_owned(), (number % 2).to_string())].into(),
            sdk_version: None,
            finished: false,
            created_at: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(number),
            project_id: (number > 2).then(|| "late".to_owned()),
            display_name: Some(format!("Nightly Run {number}")),
            client_end: None,
        }
    }

    async fn found(store: &StateStore, wanted: SessionSearch) -> (Vec<String>, Option<SessionPlace>) {
        let wanted = SessionSearch { limit: wanted.limit.max(1), ..wanted };
        match search(store, &TenantId::new("alice"), wanted).await.unwrap() {
            ServeOutcome::FoundSessions { sessions, next } => {
                (sessions.into_iter().map(|found| found.record.id.to_string()).collect(), next)
            }
            other => panic!("answered {other:?}"),
        }
    }

    #[tokio::test]
    async fn pages_follow_each_other_and_end() {
        let store = StateStore::open_in_memory().await.unwrap();
        for number in 0..5 {
            store.create_session(&session(number)).await.unwrap();
        }
        let mut wanted = SessionSearch { limit: 2, ..SessionSearch::default() };
        let mut pages = Vec::new();
        loop {
            let (names, next) = found(&store, wanted.clone()).await;
            pages.push(names);
            wanted.after = next;
            if wanted.after.is_none() {
                break;
            }
        }
        assert_eq!(pages, [vec!["s4", "s3"], vec!["s2", "s1"], vec!["s0"]]);
    }

    #[tokio::test]
    async fn every_filter_holds() {
        let store = StateStore::open_in_memory().await.unwrap();
        for number in 0..5 {
            store.create_session(&session(number)).await.unwrap();
        }
        let end = ClientEnd { reason: "errored".to_owned(), detail: None };
        store.finish_session_with(&TenantId::new("alice"), &SessionId::new("s1"), Some(end)).await.unwrap();
        let names = async |search| found(&store, SessionSearch { limit: 10, ..search }).await.0;
        let all = SessionSearch::default();
        let of = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());

        assert_eq!(names(SessionSearch { words: of(&["nightly", "3"]), ..all.clone() }).await, ["s3"]);
        let either = SessionSearch { session: Some(SessionId::new("s0")), words: of(&["3"]), ..all.clone() };
        assert_eq!(names(either).await, ["s3", "s0"]);
        assert_eq!(names(SessionSearch { projects: of(&["late"]), ..all.clone() }).await, ["s4", "s3"]);
        assert_eq!(names(SessionSearch { projects: of(&["default"]), ..all.clone() }).await, ["s2", "s1", "s0"]);
        let odd = [("run".to_owned(), "1".to_owned())].into();
        assert_eq!(names(SessionSearch { user_metadata: odd, ..all.clone() }).await, ["s3", "s1"]);
        let ended = |reasons| Some(vec![SessionState::ClientFinished(reasons)]);
        assert_eq!(names(SessionSearch { states: ended(of(&["errored"])), ..all.clone() }).await, ["s1"]);
        assert_eq!(names(SessionSearch { states: ended(of(&["success"])), ..all.clone() }).await, Vec::<String>::new());
        let active = Some(vec![SessionState::Active]);
        assert_eq!(names(SessionSearch { states: active, ..all }).await, ["s4", "s3", "s2", "s0"]);
    }
}
