//! Threads that own a device: how they are asked, watched and started again.
//!
//! An engine is a loop over a channel of commands on a thread of its own. It gets every question with a
//! [`ticket::Ticket`], which answers by itself when the engine is lost; it writes what it does to a [`pulse::Pulse`],
//! from which health and status are read without waiting; and [`supervisor`] starts it again when it fails.
//! [`suspects`] remembers which question was in progress each time.

pub mod pulse;
pub mod supervisor;
pub mod suspects;
pub mod ticket;
