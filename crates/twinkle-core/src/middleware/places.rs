//! Who may work now and who waits: bounded, and fair between tenants.
//!
//! Pure: no clock, no task. A caller gets a turn at once while there is room; otherwise it waits in its tenant's own
//! line. Turns that become free go round the tenants that wait, and to the longest waiting within one, so the order
//! of one tenant's calls is kept and nobody waits behind another's backlog.

use std::collections::{HashMap, VecDeque};

use crate::ids::TenantId;

/// Bounds of [`Places`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Callers that work at once.
    pub working: usize,
    /// Callers that wait.
    pub waiting: usize,
    /// Callers of one tenant that wait.
    pub waiting_per_tenant: usize,
}

/// What became of a caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It works.
    Works,
    /// It waits, under this number.
    Waits(u64),
    /// Too many wait.
    Full,
    /// Too many of this tenant wait.
    ShareUsedUp,
}

/// The callers of one component.
#[derive(Debug)]
pub struct Places<W> {
    room: Room,
    working: usize,
    waiting: usize,
    lines: HashMap<TenantId, VecDeque<(u64, W)>>,
    /// The tenants that wait; the first one has the next turn.
    round: VecDeque<TenantId>,
    arrivals: u64,
}

impl<W> Places<W> {
    /// Nobody works, nobody waits.
    #[must_use]
    pub fn new(room: Room) -> Self {
        Self { room, working: 0, waiting: 0, lines: HashMap::new(), round: VecDeque::new(), arrivals: 0 }
    }

    /// A caller of this tenant; `waiter` is kept when it has to wait.
    pub fn arrive(&mut self, tenant: &TenantId, waiter: W) -> Arrival {
        if self.working < self.room.working {
            self.working += 1;
            return Arrival::Works;
        }
        if self.waiting >= self.room.waiting {
            return Arrival::Full;
        }
        let line = self.lines.entry(tenant.clone()).or_default();
        if line.len() >= self.room.waiting_per_tenant {
            // Not reachable with an empty line unless nobody may wait at all.
            if line.is_empty() {
                self.lines.remove(tenant);
            }
            return Arrival::ShareUsedUp;
        }
        if line.is_empty() {
            self.round.push_back(tenant.clone());
        }
        self.arrivals += 1;
        line.push_back((self.arrivals, waiter));
        self.waiting += 1;
        Arrival::Waits(self.arrivals)
    }

    /// A caller that works is done. Its turn goes to the waiter that is returned, if there is one.
    pub fn finish(&mut self) -> Option<W> {
        let Some(tenant) = self.round.pop_front() else {
            self.working = self.working.saturating_sub(1);
            return None;
        };
        let line = self.lines.get_mut(&tenant)?;
        let (_, waiter) = line.pop_front()?;
        self.waiting -= 1;
        if line.is_empty() {
            self.lines.remove(&tenant);
        } else {
            self.round.push_back(tenant);
        }
        Some(waiter)
    }

    /// A caller gives up waiting. `false` when it does not wait: then it was given a turn.
    pub fn leave(&mut self, tenant: &TenantId, number: u64) -> bool {
        let Some(line) = self.lines.get_mut(tenant) else { return false };
        let Some(place) = line.iter().position(|(waiting, _)| *waiting == number) else { return false };
        line.remove(place);
        self.waiting -= 1;
        if line.is_empty() {
            self.lines.remove(tenant);
            self.round.retain(|waiting| waiting != tenant);
        }
        true
    }

    /// How many work.
    #[must_use]
    pub fn working(&self) -> usize {
        self.working
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name)
    }

    #[test]
    fn turns_go_round_the_tenants_and_keep_each_ones_order() {
        let mut places = Places::new(Room { working: 1, waiting: 10, waiting_per_tenant: 10 });
        assert_eq!(places.arrive(&tenant("a"), "a0"), Arrival::Works);
        for name in ["a1", "a2", "a3", "b1", "c1", "b2"] {
            assert!(matches!(places.arrive(&tenant(&name[..1]), name), Arrival::Waits(_)));
        }
        let order: Vec<_> = std::iter::from_fn(|| places.finish()).collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!((places.working(), places.waiting()), (0, 0));
    }

    #[test]
    fn one_tenant_cannot_fill_the_queue() {
        let mut places = Places::new(Room { working: 1, waiting: 4, waiting_per_tenant: 2 });
        assert_eq!(places.arrive(&tenant("a"), 0), Arrival::Works);
        assert_eq!(places.arrive(&tenant("a"), 1), Arrival::Waits(1));
        assert_eq!(places.arrive(&tenant("a"), 2), Arrival::Waits(2));
        assert_eq!(places.arrive(&tenant("a"), 3), Arrival::ShareUsedUp);
        assert_eq!(places.arrive(&tenant("b"), 4), Arrival::Waits(3));
        assert_eq!(places.arrive(&tenant("c"), 5), Arrival::Waits(4));
        assert_eq!(places.arrive(&tenant("d"), 6), Arrival::Full);
    }

    #[test]
    fn whoever_leaves_is_passed_over() {
        let mut places = Places::new(Room { working: 1, waiting: 4, waiting_per_tenant: 4 });
        places.arrive(&tenant("a"), "works");
        let Arrival::Waits(number) = places.arrive(&tenant("b"), "leaves") else { panic!("it waits") };
        places.arrive(&tenant("c"), "stays");
        assert!(places.leave(&tenant("b"), number));
        assert!(!places.leave(&tenant("b"), number), "it is not there any more");
        assert_eq!(places.finish(), Some("stays"));
    }

    proptest! {
        /// Arrivals (tenant), departures of the oldest waiter (10) and ends of work (11), in any order.
        #[test]
        fn the_bounds_hold_and_nobody_is_lost(
            steps in prop::collection::vec(0_u8..12, 0..300), working in 1_usize..4, waiting in 0_usize..8, share in 1_usize..8,
        ) {
            let mut places = Places::new(Room { working, waiting, waiting_per_tenant: share });
            let mut expected: Vec<(TenantId, u64)> = Vec::new();
            let mut works = 0;
            for step in steps {
                match step {
                    10 => if let Some((tenant, number)) = expected.pop() {
                        prop_assert!(places.leave(&tenant, number));
                    },
                    11 => if works > 0 {
                        if let Some(number) = places.finish() {
                            let before = expected.len();
                            expected.retain(|(_, waiting)| *waiting != number);
                            prop_assert_eq!(expected.len() + 1, before);
                        } else {
                            prop_assert!(expected.is_empty());
                            works -= 1;
                        }
                    },
                    name => {
                        let tenant = tenant(&name.to_string());
                        // The waiter is the number it will get.
                        let next = places.arrivals + 1;
                        match places.arrive(&tenant, next) {
                            Arrival::Works => works += 1,
                            Arrival::Waits(number) => { prop_assert_eq!(number, next); expected.push((tenant, number)); }
                            Arrival::Full => prop_assert_eq!(expected.len(), waiting),
                            Arrival::ShareUsedUp => {
                                prop_assert_eq!(expected.iter().filter(|(of, _)| *of == tenant).count(), share);
                            }
                        }
                    }
                }
                prop_assert_eq!(places.working(), works);
                prop_assert_eq!(places.waiting(), expected.len());
                prop_assert!(works <= working && expected.len() <= waiting);
                prop_assert_eq!(places.round.len(), places.lines.len());
            }
        }
    }
}
