//! Which samples have finished, in order: what a client asks for instead of polling every sample by itself.
//!
//! A stream belongs to one client of one sampling session. A completion stays in it until the client has seen it (by
//! the cursor it sends), has fetched the result, or has not come for it for a long time. Positions are microseconds
//! since 1970 at least: they grow over a restart too, so a cursor from before it acknowledges nothing that came after.
//!
//! Pure: no clock, no task.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::ids::{RequestId, SamplingSessionId, TenantId};

/// The stream of one client of a sampling session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Who asks.
    pub tenant: TenantId,
    /// Where its samples are submitted.
    pub session: SamplingSessionId,
    /// Which of the sampling session's clients it is; 0 is the first.
    pub client: u64,
}

/// A sample that has finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The sample.
    pub request: RequestId,
    /// About how many bytes its result takes; `None` when it failed.
    pub bytes: Option<u64>,
}

/// Completions nobody has come for that are kept at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) per_tenant: usize,
    pub(super) in_all: usize,
    /// How long one is kept, in microseconds.
    pub(super) age: u64,
}

/// The streams of all tenants.
#[derive(Debug)]
pub(super) struct Streams {
    bounds: Bounds,
    by_key: HashMap<Arc<StreamKey>, Stream>,
    samples: HashMap<RequestId, Place>,
    /// The completions of each tenant, the oldest first.
    finished: HashMap<TenantId, BTreeMap<u64, RequestId>>,
    in_all: usize,
    last_position: u64,
}

#[derive(Debug, Default)]
struct Stream {
    completions: BTreeMap<u64, Completion>,
    /// Samples that are not finished.
    expected: usize,
    /// Polls that look at it.
    polls: usize,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Place {
    stream: Arc<StreamKey>,
    /// `None` until it has finished.
    position: Option<u64>,
}

impl Streams {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            by_key: HashMap::new(),
            samples: HashMap::new(),
            finished: HashMap::new(),
            in_all: 0,
            last_position: 0,
        }
    }

    /// A sample is under way.
    pub(super) fn expect(&mut self, request: &RequestId, stream: StreamKey) {
        let stream = Arc::new(stream);
        self.by_key.entry(Arc::clone(&stream)).or_default().expected += 1;
        self.samples.insert(request.clone(), Place { stream, position: None });
    }

    /// A sample has finished. Returns what was given up for it: samples nobody has come for.
    pub(super) fn finish(&mut self, completion: Completion, now: u64) -> Vec<RequestId> {
        let Some(place) = self.samples.get_mut(&completion.request) else { return Vec::new() };
        if place.position.is_some() {
            return Vec::new();
        }
        self.last_position = now.max(self.last_position + 1);
        let position = self.last_position;
        place.position = Some(position);
        let key = Arc::clone(&place.stream);
        let stream = self.by_key.entry(Arc::clone(&key)).or_default();
        stream.expected = stream.expected.saturating_sub(1);
        self.finished.entry(key.tenant.clone()).or_default().insert(position, completion.request.clone());
        stream.completions.insert(position, completion);
        stream.changed.notify_waiters();
        self.in_all += 1;
        self.give_up(&key.tenant, now)
    }

    /// The client has fetched a result, or does not want it. Says whether it was in a stream.
    pub(super) fn fetched(&mut self, request: &RequestId) -> bool {
        let Some(place) = self.samples.get(request) else { return false };
        let Some(position) = place.position else { return false };
        let stream = Arc::clone(&place.stream);
        self.remove(&stream, position);
        true
    }

    /// The client has seen everything up to `cursor`: what is forgotten by that.
    pub(super) fn acknowledge(&mut self, key: &StreamKey, cursor: u64) -> Vec<RequestId> {
        let Some((key, stream)) = self.by_key.get_key_value(key) else { return Vec::new() };
        let seen: Vec<u64> = stream.completions.range(..=cursor).map(|(position, _)| *position).collect();
        // A cursor of the future is not one of ours: the clock was set back between two starts of the server.
        if cursor > self.last_position {
            return Vec::new();
        }
        let key = Arc::clone(key);
        seen.into_iter().filter_map(|position| self.remove(&key, position)).collect()
    }

    /// Completions after `cursor`, `most` of them, and the cursor behind the last one.
    pub(super) fn after(&self, key: &StreamKey, cursor: u64, most: usize) -> (Vec<Completion>, u64) {
        let from = if cursor > self.last_position { Bound::Unbounded } else { Bound::Excluded(cursor) };
        let Some(stream) = self.by_key.get(key) else { return (Vec::new(), cursor) };
        let found: Vec<_> = stream.completions.range((from, Bound::Unbounded)).take(most).collect();
        let cursor = found.last().map_or(cursor, |(position, _)| **position);
        (found.into_iter().map(|(_, completion)| completion.clone()).collect(), cursor)
    }

    /// A poll begins to look at the stream: what tells it of changes.
    pub(super) fn look(&mut self, key: &StreamKey) -> Arc<Notify> {
        let stream = self.by_key.entry(Arc::new(key.clone())).or_default();
        stream.polls += 1;
        Arc::clone(&stream.changed)
    }

    /// A poll has ended.
    pub(super) fn look_away(&mut self, key: &StreamKey) {
        if let Some(stream) = self.by_key.get_mut(key) {
            stream.polls = stream.polls.saturating_sub(1);
        }
        self.tidy(key);
    }

    /// Streams and completions that are kept.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.by_key.len(), self.in_all)
    }

    /// Forgets completions that are too old or too many, the oldest first, of whoever has the most.
    fn give_up(&mut self, tenant: &TenantId, now: u64) -> Vec<RequestId> {
        let oldest = now.saturating_sub(self.bounds.age);
        let mut given_up = Vec::new();
        while let Some((position, request)) = self.first_of(tenant) {
            let too_many = self.finished.get(tenant).map_or(0, BTreeMap::len) > self.bounds.per_tenant;
            if position >= oldest && !too_many {
                break;
            }
            given_up.extend(self.remove_sample(&request));
        }
        while self.in_all > self.bounds.in_all {
            let most = self.finished.iter().max_by_key(|(_, finished)| finished.len());
            let Some((_, request)) = most.map(|(tenant, _)| tenant.clone()).and_then(|tenant| self.first_of(&tenant))
            else {
                break;
            };
            given_up.extend(self.remove_sample(&request));
        }
        given_up
    }

    fn first_of(&self, tenant: &TenantId) -> Option<(u64, RequestId)> {
        let (position, request) = self.finished.get(tenant)?.first_key_value()?;
        Some((*position, request.clone()))
    }

    fn remove_sample(&mut self, request: &RequestId) -> Option<RequestId> {
        let place = self.samples.get(request)?;
        let (stream, position) = (Arc::clone(&place.stream), place.position?);
        self.remove(&stream, position)
    }

    fn remove(&mut self, key: &StreamKey, position: u64) -> Option<RequestId> {
        let request = self.by_key.get_mut(key)?.completions.remove(&position)?.request;
        self.samples.remove(&request);
        self.in_all -= 1;
        if let Some(finished) = self.finished.get_mut(&key.tenant) {
            finished.remove(&position);
            if finished.is_empty() {
                self.finished.remove(&key.tenant);
            }
        }
        self.tidy(key);
        Some(request)
    }

    /// Forgets a stream that nobody looks at and in which nothing is or will be.
    fn tidy(&mut self, key: &StreamKey) {
        let is_over = |stream: &Stream| stream.polls == 0 && stream.expected == 0 && stream.completions.is_empty();
        if self.by_key.get(key).is_some_and(is_over) {
            self.by_key.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { per_tenant: 4, in_all: 6, age: 100 };

    fn key(tenant: &str, client: u64) -> StreamKey {
        StreamKey { tenant: TenantId::new(tenant), session: SamplingSessionId::new("s"), client }
    }

    fn request(name: &str) -> RequestId {
        RequestId::new(name)
    }

    fn finish(streams: &mut Streams, name: &str, now: u64) -> Vec<RequestId> {
        streams.finish(Completion { request: request(name), bytes: Some(1) }, now)
    }

    /// Samples that finish one after the other, from `now` on.
    fn finished(streams: &mut Streams, of: &StreamKey, names: &[&str], now: u64) {
        for (name, now) in names.iter().zip(now..) {
            streams.expect(&request(name), of.clone());
            finish(streams, name, now);
        }
    }

    fn names((completions, _): (Vec<Completion>, u64)) -> Vec<String> {
        completions.into_iter().map(|completion| completion.request.to_string()).collect()
    }

    #[test]
    fn completions_come_in_order_and_again_until_they_are_acknowledged() {
        let (mut streams, mine) = (Streams::new(BOUNDS), key("alice", 0));
        finished(&mut streams, &mine, &["a", "b"], 1000);
        let (first, cursor) = streams.after(&mine, 0, 1);
        assert_eq!(names((first, cursor)), ["a"]);
        assert_eq!(names(streams.after(&mine, 0, 9)), ["a", "b"], "the answer was lost");
        assert_eq!(streams.acknowledge(&mine, cursor), [request("a")]);
        assert_eq!(names(streams.after(&mine, 0, 9)), ["b"]);
        assert_eq!(names(streams.after(&mine, cursor, 9)), ["b"]);
    }

    #[test]
    fn clients_and_tenants_see_their_own() {
        let mut streams = Streams::new(BOUNDS);
        finished(&mut streams, &key("alice", 0), &["a"], 1000);
        finished(&mut streams, &key("alice", 7), &["b"], 1000);
        assert_eq!(names(streams.after(&key("alice", 0), 0, 9)), ["a"]);
        assert_eq!(names(streams.after(&key("alice", 7), 0, 9)), ["b"]);
        assert!(names(streams.after(&key("bob", 0), 0, 9)).is_empty());
        assert!(streams.acknowledge(&key("bob", 0), 2000).is_empty());
    }

    #[test]
    fn a_cursor_from_before_a_restart_acknowledges_nothing() {
        let (mut streams, mine) = (Streams::new(BOUNDS), key("alice", 0));
        finished(&mut streams, &mine, &["a"], 5000);
        assert!(streams.acknowledge(&mine, 4000).is_empty());
        assert_eq!(names(streams.after(&mine, 4000, 9)), ["a"]);
        // The clock was set back: nothing may be lost by that either.
        assert!(streams.acknowledge(&mine, 9000).is_empty());
        assert_eq!(names(streams.after(&mine, 9000, 9)), ["a"]);
    }

    #[test]
    fn what_is_fetched_or_acknowledged_leaves_nothing_behind() {
        let (mut streams, mine) = (Streams::new(BOUNDS), key("alice", 0));
        finished(&mut streams, &mine, &["a", "b"], 1000);
        assert!(streams.fetched(&request("a")));
        assert!(!streams.fetched(&request("a")));
        assert_eq!(streams.acknowledge(&mine, 1001), [request("b")]);
        assert_eq!(streams.held(), (0, 0));
        let _changed = streams.look(&mine);
        assert_eq!(streams.held(), (1, 0));
        streams.look_away(&mine);
        assert_eq!(streams.held(), (0, 0));
        assert!(streams.samples.is_empty() && streams.finished.is_empty());
    }

    #[test]
    fn what_nobody_comes_for_is_given_up_the_oldest_first() {
        let (mut streams, mine) = (Streams::new(BOUNDS), key("alice", 0));
        finished(&mut streams, &mine, &["a", "b", "c", "d"], 1000);
        streams.expect(&request("e"), mine.clone());
        assert_eq!(finish(&mut streams, "e", 1010), [request("a")], "over the tenant's bound");
        streams.expect(&request("f"), mine.clone());
        let gone = finish(&mut streams, "f", 1105);
        assert_eq!(gone, ["b", "c", "d"].map(request), "too old");
    }

    #[test]
    fn a_crowd_is_at_the_cost_of_whoever_has_the_most() {
        let mut streams = Streams::new(BOUNDS);
        finished(&mut streams, &key("alice", 0), &["a", "b", "c", "d"], 1000);
        finished(&mut streams, &key("bob", 0), &["x", "y"], 1010);
        streams.expect(&request("z"), key("bob", 0));
        assert_eq!(finish(&mut streams, "z", 1020), [request("a")]);
        assert_eq!(names(streams.after(&key("bob", 0), 0, 9)), ["x", "y", "z"]);
    }

    #[test]
    fn finishing_twice_tells_it_once() {
        let (mut streams, mine) = (Streams::new(BOUNDS), key("alice", 0));
        finished(&mut streams, &mine, &["a"], 1000);
        finish(&mut streams, "a", 1001);
        finish(&mut streams, "unknown", 1001);
        assert_eq!(names(streams.after(&mine, 0, 9)), ["a"]);
    }
}
