//! Whose turn it is in one run: strict order by number, whatever the order of arrival.
//!
//! Pure: no clock, no task. Every number from 1 on is either released exactly once, in order, or
//! used up without work. Items that wait for a lower number are bounded.

use std::collections::BTreeMap;

/// The numbered operations of one run that are not yet released.
#[derive(Debug)]
pub struct Turns<T> {
    /// The number whose turn it is.
    next: u64,
    /// Numbers beyond `next`: with their item, or used up.
    ahead: BTreeMap<u64, Option<T>>,
    limit: usize,
}

/// Where a number stands before it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be offered.
    Free,
    /// It was offered before, or is used up.
    Taken,
    /// Too many others wait already.
    Full,
}

impl<T> Turns<T> {
    /// The turns of a run in which every number up to `passed_through` had its turn; at most `limit` others wait.
    #[must_use]
    pub fn new(passed_through: u64, limit: usize) -> Self {
        Self { next: passed_through.saturating_add(1), ahead: BTreeMap::new(), limit }
    }

    /// The highest number that had its turn.
    #[must_use]
    pub fn passed_through(&self) -> u64 {
        self.next - 1
    }

    /// Whether `number` can be offered. The number whose turn it is always can.
    #[must_use]
    pub fn standing(&self, number: u64) -> Standing {
        if number < self.next || self.ahead.contains_key(&number) {
            return Standing::Taken;
        }
        if number > self.next && self.ahead.len() >= self.limit {
            return Standing::Full;
        }
        Standing::Free
    }

    /// Offers an item. Returns what is released by it, in order; nothing when it must wait.
    ///
    /// An item whose number is not [`Standing::Free`] comes back as an error.
    pub fn offer(&mut self, number: u64, item: T) -> Result<Vec<T>, (Standing, T)> {
        match self.standing(number) {
            Standing::Free => Ok(self.take_place(number, Some(item))),
            refused => Err((refused, item)),
        }
    }

    /// Marks a number as used up without work. Returns what is released by it, or why it changed nothing.
    pub fn consume(&mut self, number: u64) -> Result<Vec<T>, Standing> {
        match self.standing(number) {
            Standing::Free => Ok(self.take_place(number, None)),
            refused => Err(refused),
        }
    }

    /// The first item that waits, with its number.
    #[must_use]
    pub fn first_waiting(&self) -> Option<(u64, &T)> {
        self.ahead.iter().find_map(|(number, item)| item.as_ref().map(|item| (*number, item)))
    }

    /// Gives up on the numbers before the first item that waits, and releases it and what follows it.
    pub fn skip_gap(&mut self) -> Vec<T> {
        let Some((number, _)) = self.first_waiting() else {
            return Vec::new();
        };
        self.next = number;
        self.ahead = self.ahead.split_off(&number);
        self.release()
    }

    /// Takes everything that waits.
    pub fn drain(&mut self) -> Vec<T> {
        std::mem::take(&mut self.ahead).into_values().flatten().collect()
    }

    fn take_place(&mut self, number: u64, item: Option<T>) -> Vec<T> {
        self.ahead.insert(number, item);
        self.release()
    }

    fn release(&mut self) -> Vec<T> {
        let mut released = Vec::new();
        while let Some(item) = self.ahead.remove(&self.next) {
            self.next += 1;
            released.extend(item);
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every number of `1..=count`, shuffled, each perhaps offered several times.
    fn arrivals() -> impl Strategy<Value = (u64, Vec<u64>)> {
        (1_u64..40).prop_flat_map(|count| {
            let once: Vec<u64> = (1..=count).collect();
            let again = prop::collection::vec(1..=count, 0..20);
            again.prop_flat_map(move |again| {
                let all: Vec<u64> = once.iter().copied().chain(again).collect();
                Just(all).prop_shuffle().prop_map(move |all| (count, all))
            })
        })
    }

    proptest! {
        #[test]
        fn any_order_of_arrival_releases_each_number_once_in_order((count, arrivals) in arrivals()) {
            let mut turns = Turns::new(0, 64);
            let mut released = Vec::new();
            for number in arrivals {
                if let Ok(now) = turns.offer(number, number) {
                    released.extend(now);
                }
            }
            prop_assert_eq!(released, (1..=count).collect::<Vec<_>>());
            prop_assert_eq!(turns.passed_through(), count);
        }

        #[test]
        fn used_up_numbers_are_passed_over_and_hold_nobody_up((count, arrivals) in arrivals(), used_up in prop::collection::btree_set(1_u64..40, 0..20)) {
            let mut turns = Turns::new(0, 64);
            let mut released = Vec::new();
            for number in arrivals {
                let now = if used_up.contains(&number) {
                    turns.consume(number).unwrap_or_default()
                } else {
                    turns.offer(number, number).unwrap_or_default()
                };
                released.extend(now);
            }
            let expected: Vec<u64> = (1..=count).filter(|number| !used_up.contains(number)).collect();
            prop_assert_eq!(released, expected);
        }

        #[test]
        fn skipping_every_gap_releases_what_arrived_in_order(arrived in prop::collection::btree_set(1_u64..1_000, 1..40)) {
            let mut turns = Turns::new(0, 64);
            let mut released = Vec::new();
            for number in arrived.iter().rev() {
                released.extend(turns.offer(*number, *number).unwrap());
            }
            while turns.first_waiting().is_some() {
                released.extend(turns.skip_gap());
            }
            prop_assert_eq!(released, arrived.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_more_than_the_limit_ever_waits(limit in 0_usize..8, arrivals in prop::collection::vec(1_u64..30, 0..60)) {
            let mut turns = Turns::new(0, limit);
            for number in arrivals {
                let _ = turns.offer(number, number);
                prop_assert!(turns.ahead.len() <= limit);
            }
        }
    }

    #[test]
    fn the_awaited_number_is_welcome_even_when_the_waiting_room_is_full() {
        let mut turns = Turns::new(0, 2);
        assert_eq!(turns.offer(2, "b"), Ok(vec![]));
        assert_eq!(turns.offer(3, "c"), Ok(vec![]));
        assert_eq!(turns.offer(4, "d"), Err((Standing::Full, "d")));
        assert_eq!(turns.offer(1, "a"), Ok(vec!["a", "b", "c"]));
    }

    #[test]
    fn a_number_that_was_passed_over_cannot_come_back() {
        let mut turns = Turns::new(5, 8);
        assert_eq!(turns.offer(8, "h"), Ok(vec![]));
        assert_eq!(turns.skip_gap(), vec!["h"]);
        assert_eq!(turns.offer(7, "g"), Err((Standing::Taken, "g")));
        assert_eq!(turns.passed_through(), 8);
    }
}
