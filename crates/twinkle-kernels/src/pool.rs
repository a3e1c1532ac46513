//! The threads that kernels run on: one pool for the whole process, whoever calls.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

/// Multiply-adds below which waking another thread costs more than it saves.
const WORTH_SHARING: usize = 1 << 21;

static POOL: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();

fn pool() -> Option<&'static rayon::ThreadPool> {
    let start = || {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("kernel-{index}")).build().ok()
    };
    POOL.get_or_init(start).as_ref()
}

/// How many threads there are.
pub(crate) fn threads() -> usize {
    pool().map_or(1, rayon::ThreadPool::current_num_threads)
}

/// Calls `work` with every number below `tasks`, on all threads if there is enough of it; `cost` is in multiply-adds.
pub(crate) fn for_each(tasks: usize, cost: usize, work: impl Fn(usize) + Send + Sync) {
    match pool() {
        Some(pool) if tasks > 1 && cost >= WORTH_SHARING && threads() > 1 => {
            pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(work));
        }
        _ => (0..tasks).for_each(work),
    }
}

/// A slice that tasks write disjoint parts of.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: it stands for a `&mut [T]`, which may go to another thread; that its users touch disjoint parts is the promise
// they make where they use it.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), slice: PhantomData }
    }

    /// Where the element `place` is.
    pub(crate) fn at(self, place: usize) -> *mut T {
        assert!(place < self.length, "element {place} of {}", self.length);
        // SAFETY: inside the slice.
        unsafe { self.start.add(place) }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other part in use at the same time may overlap it.
    pub(crate) unsafe fn part(self, place: Range<usize>) -> &'a mut [T] {
        assert!(place.start <= place.end && place.end <= self.length, "{place:?} of {}", self.length);
        // SAFETY: inside the slice, and no one else uses it by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(place.start), place.len()) }
    }
}
