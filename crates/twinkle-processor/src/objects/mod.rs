//! The objects that clients make on a server and call: data sets, loaders, preprocessors, rewards, advantages.

mod arguments;

pub use arguments::Arguments;
pub(crate) use arguments::decoded;
