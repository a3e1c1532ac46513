//! Values as the store's columns hold them.

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// A nested value as `MessagePack` with field names, so that fields can be added later.
pub(crate) fn to_blob(value: &impl Serialize) -> Result<Vec<u8>> {
    rmp_serde::to_vec_named(value).map_err(|error| Error::internal(format!("a value could not be encoded: {error}")))
}

/// The inverse of [`to_blob`].
pub(crate) fn from_blob<T: DeserializeOwned>(blob: &[u8]) -> Result<T> {
    rmp_serde::from_slice(blob).map_err(|error| Error::internal(format!("a stored value could not be read: {error}")))
}

/// Nanoseconds since 1970; saturates in the year 2262.
pub(super) fn to_nanoseconds(time: Timestamp) -> i64 {
    let nanoseconds = time.as_nanosecond();
    // Beyond what 64 bits hold: before all stored times, or after them.
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// The inverse of [`to_nanoseconds`].
pub(super) fn from_nanoseconds(nanoseconds: i64) -> Result<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds))
        .map_err(|error| Error::internal(format!("a stored time could not be read: {error}")))
}

/// A count as `SQLite` stores it.
pub(super) fn to_integer(count: u64) -> Result<i64> {
    i64::try_from(count).map_err(|_| Error::invalid(format!("`{count}` is too large, the limit is {}", i64::MAX)))
}

/// The inverse of [`to_integer`].
pub(super) fn from_integer(integer: i64) -> Result<u64> {
    u64::try_from(integer).map_err(|_| Error::internal(format!("a stored count is negative: `{integer}`")))
}

/// Now, as the store's columns hold it.
pub(super) fn now() -> i64 {
    to_nanoseconds(Timestamp::now())
}
