//! The state store: one contract for every kind, and what happens when a database goes away.

mod contract;
mod databases;
mod fixtures;
mod lab;
mod outages;
