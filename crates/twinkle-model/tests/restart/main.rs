//! What a failing device, a stop and a kill cost: nothing that was accepted, and no bit of any run.
//!
//! The node of these tests is the journal over the real component; its backend fails where the test says so.

mod engine;
mod faults;
mod full_weights;
mod node;
mod shared_passes;
mod stops;
