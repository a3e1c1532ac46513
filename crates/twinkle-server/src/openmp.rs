//! How libtorch's threads wait for each other.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// Rounds a thread spins before it sleeps, some tens of microseconds.
///
/// Trainer and sampler each have a team of OpenMP threads. By default an idle team spins for milliseconds and takes the
/// cores from the one that works; asleep at once, it costs a wake-up for each of thousands of small products. This is
/// between the two: measured on two cores, nearly all of the speed alone, and none of the collapse together.
const ROUNDS: &str = "1000";

/// Starts this program again, in the same process, with a short spin, unless the operator chose how threads wait.
///
/// OpenMP reads the variable before `main`, so setting it here is too late: hence the new start.
pub(crate) fn spin_briefly() {
    if env::var_os(SPIN_COUNT).is_some() || env::var_os("OMP_WAIT_POLICY").is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    // Returns only if it failed; the server then works as well, more slowly under load.
    let error = Command::new(program).args(env::args_os().skip(1)).env(SPIN_COUNT, ROUNDS).exec();
    tracing::debug!(%error, "`{SPIN_COUNT}` could not be set");
}
