//! Rows out of files and into files.
//!
//! A row is an object whose columns are kept as the JSON text they were written in ([`Row`]): what nobody looks at is
//! neither parsed nor changed. [`DatasetMeta`] says which rows are wanted, [`Places`] where they may lie, [`Source`]
//! reads them again from the beginning as often as one likes, and [`Table`] holds them in memory within a bound.

mod csv;
mod format;
mod json;
mod meta;
mod parquet;
mod places;
mod readme;
mod room;
mod row;
mod save;
mod source;
mod splits;
mod table;

pub use format::Format;
pub(crate) use meta::row_of;
pub use meta::{DataSlice, DatasetMeta};
pub use places::{FetchData, Places, Repository};
pub use room::{Reservation, Room};
pub(crate) use row::raw;
pub use row::{Column, Row};
pub use save::Saver;
pub use source::{Rows, Source};
pub use table::Table;
pub(crate) use table::out_of_range;
