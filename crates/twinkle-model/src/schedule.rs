//! Who is next: fair over tenants, first come first served within one.
//!
//! Start-time fair queueing (Goyal et al. 1996): every tenant has a virtual time that grows by the cost
//! of what it was served; the waiting tenant with the least virtual time is next. A tenant that was
//! idle starts at the present, so it neither pays for nor profits from its absence. Pure: it never
//! touches a device or a clock.

use std::collections::{HashMap, VecDeque};

use twinkle_core::ids::TenantId;

/// Work waiting for the device. `push` and `take` take time linear in the tenants that wait.
#[derive(Debug)]
pub struct Schedule<Work> {
    tenants: HashMap<TenantId, Line<Work>>,
    /// The virtual time at which the last work was started.
    now: u64,
    arrivals: u64,
}

#[derive(Debug)]
struct Line<Work> {
    /// How much this tenant was served.
    virtual_time: u64,
    waiting: VecDeque<Waiting<Work>>,
}

#[derive(Debug)]
struct Waiting<Work> {
    arrival: u64,
    cost: u64,
    work: Work,
}

impl<Work> Default for Schedule<Work> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), now: 0, arrivals: 0 }
    }
}

impl<Work> Schedule<Work> {
    /// Puts work at the end of its tenant's line. `cost` is in tokens; nothing is free.
    pub fn push(&mut self, tenant: TenantId, cost: u64, work: Work) {
        self.arrivals += 1;
        let now = self.now;
        let line = self.tenants.entry(tenant).or_insert_with(|| Line { virtual_time: now, waiting: VecDeque::new() });
        line.waiting.push_back(Waiting { arrival: self.arrivals, cost: cost.max(1), work });
    }

    /// Takes the next work: of the least served tenant, its oldest; ties go to the older arrival.
    pub fn take(&mut self) -> Option<Work> {
        let tenant = self
            .tenants
            .iter()
            .filter_map(|(tenant, line)| Some(((line.virtual_time, line.waiting.front()?.arrival), tenant)))
            .min_by_key(|(order, _)| *order)
            .map(|(_, tenant)| tenant.clone())?;
        let line = self.tenants.get_mut(&tenant)?;
        let next = line.waiting.pop_front()?;
        self.now = line.virtual_time;
        line.virtual_time += next.cost;
        // A tenant that owes nothing and waits for nothing is forgotten, so lines do not pile up.
        let now = self.now;
        self.tenants.retain(|_, line| !line.waiting.is_empty() || line.virtual_time > now);
        Some(next.work)
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.values().all(|line| line.waiting.is_empty())
    }

    /// How much waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tenants.values().map(|line| line.waiting.len()).sum()
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
    fn a_newcomer_does_not_wait_behind_anothers_backlog() {
        let mut schedule = Schedule::default();
        for number in 0..100 {
            schedule.push(tenant("busy"), 1000, ("busy", number));
        }
        assert_eq!(schedule.take(), Some(("busy", 0)));
        schedule.push(tenant("new"), 10, ("new", 0));
        assert_eq!(schedule.take(), Some(("new", 0)));
        assert_eq!(schedule.take(), Some(("busy", 1)));
    }

    #[test]
    fn two_busy_tenants_share_by_tokens_not_by_requests() {
        let mut schedule = Schedule::default();
        for _ in 0..100 {
            schedule.push(tenant("large"), 400, "large");
            schedule.push(tenant("small"), 100, "small");
        }
        let served: Vec<_> = (0..50).filter_map(|_| schedule.take()).collect();
        let small = served.iter().filter(|name| **name == "small").count();
        assert_eq!(small, 40, "four small pieces of work for each large one");
    }

    proptest! {
        #[test]
        fn everything_is_served_once_and_in_its_tenants_order(
            work in proptest::collection::vec((0_u8..5, 1_u64..5000, any::<bool>()), 0..200)
        ) {
            let mut schedule = Schedule::default();
            let mut served: HashMap<u8, Vec<usize>> = HashMap::new();
            let mut serve = |schedule: &mut Schedule<(u8, usize)>| {
                if let Some((name, number)) = schedule.take() {
                    served.entry(name).or_default().push(number);
                }
            };
            for (number, (name, cost, take_one)) in work.iter().enumerate() {
                schedule.push(tenant(&name.to_string()), *cost, (*name, number));
                if *take_one { serve(&mut schedule); }
            }
            while !schedule.is_empty() { serve(&mut schedule); }
            prop_assert_eq!(served.values().map(Vec::len).sum::<usize>(), work.len());
            for numbers in served.values() {
                prop_assert!(numbers.is_sorted());
            }
        }
    }
}
