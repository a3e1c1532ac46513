//! How libtorch's threads wait for each other.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "OMP_WAIT_POLICY";

/// Starts this program again, in the same process, with `OMP_WAIT_POLICY=passive`, unless the operator chose a policy.
///
/// Trainer and sampler each have a team of OpenMP threads. By default an idle team spins, and takes the cores from the
/// one that works. OpenMP reads the variable before `main`, so setting it here is too late: hence the new start.
pub(crate) fn wait_passively() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    // Returns only if it failed; the server then works as well, more slowly under load.
    let error = Command::new(program).args(env::args_os().skip(1)).env(VARIABLE, "passive").exec();
    tracing::debug!(%error, "`{VARIABLE}` could not be set");
}
