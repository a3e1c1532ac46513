//! How much memory the rows of one tenant may take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use twinkle_core::error::{Error, ErrorCode, Result};

/// Bytes that several tables share.
#[derive(Debug)]
pub struct Room {
    limit: u64,
    used: AtomicU64,
    /// The room it is a part of.
    around: Option<Arc<Self>>,
}

/// Bytes of a [`Room`]; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), around: None })
    }

    /// Room for so many bytes out of another.
    #[must_use]
    pub fn within(around: &Arc<Self>, limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), around: Some(Arc::clone(around)) })
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<()> {
        if let Some(around) = &self.around {
            around.take(bytes)?;
        }
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.limit)
        });
        if taken.is_ok() {
            return Ok(());
        }
        if let Some(around) = &self.around {
            around.give_back(bytes);
        }
        let text = format!("the rows of the data sets would take more than {} MiB", self.limit >> 20);
        Err(Error::new(ErrorCode::TooLarge, text)
            .hint("read with `IterableDataset`, take a part with `data_slice`, or drop data sets you no longer use"))
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(around) = &self.around {
            around.give_back(bytes);
        }
    }

    /// A reservation of nothing, to grow.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { room: Arc::clone(self), bytes: 0 }
    }
}

impl Reservation {
    /// The room it is of.
    #[must_use]
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Takes so many bytes more, or none and an error.
    pub fn grow(&mut self, bytes: u64) -> Result<()> {
        self.room.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Puts another reservation of the same room into this one.
    pub fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.room.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_takes_nothing_and_what_is_dropped_comes_back() {
        let room = Room::new(10);
        let mut first = room.reserve();
        first.grow(6).unwrap();
        let mut second = room.reserve();
        assert_eq!(second.grow(5).unwrap_err().code, ErrorCode::TooLarge);
        second.grow(4).unwrap();
        assert_eq!(room.used(), 10);
        drop(first);
        assert_eq!(room.used(), 4);
        let mut third = room.reserve();
        third.grow(1).unwrap();
        second.join(third);
        assert_eq!(room.used(), 5);
        drop(second);
        assert_eq!(room.used(), 0);
    }
}
