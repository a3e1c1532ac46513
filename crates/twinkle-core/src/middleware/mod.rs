//! The layers around a component, one file each: config value, layer, service, tests.

pub mod concurrency;
pub mod journal;
pub mod measure;
pub mod places;
pub mod quota;
pub mod rescue;
pub mod turns;
