//! How many threads libtorch may use.

use crate::error::Result;
use crate::ffi;

/// Threads one operation is spread over.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn intra_op() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the shim writes one int to a live int.
    ffi::check(unsafe { ffi::twinkle_intra_op_threads(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(1))
}

/// Sets [`intra_op`] for the whole process. libtorch refuses 0.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn set_intra_op(count: usize) -> Result<()> {
    // SAFETY: takes an int by value.
    ffi::check(unsafe { ffi::twinkle_set_intra_op_threads(i32::try_from(count).unwrap_or(i32::MAX)) })
}

/// Operations that may run at once.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn inter_op() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the shim writes one int to a live int.
    ffi::check(unsafe { ffi::twinkle_inter_op_threads(&raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(1))
}

/// Sets [`inter_op`]; libtorch allows it once, before the first parallel work.
#[expect(unsafe_code, reason = "calls the shim")]
pub fn set_inter_op(count: usize) -> Result<()> {
    // SAFETY: takes an int by value.
    ffi::check(unsafe { ffi::twinkle_set_inter_op_threads(i32::try_from(count).unwrap_or(i32::MAX)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_can_be_set_and_zero_is_an_error() {
        set_intra_op(1).unwrap();
        assert_eq!(intra_op().unwrap(), 1);
        set_intra_op(2).unwrap();
        assert_eq!(intra_op().unwrap(), 2);
        assert!(set_intra_op(0).is_err());
        assert!(inter_op().unwrap() >= 1);
    }

    #[test]
    fn a_second_setting_of_inter_op_threads_is_an_error_and_not_an_abort() {
        let first = set_inter_op(1);
        let second = set_inter_op(1);
        assert!(first.is_err() || second.is_err());
    }
}
