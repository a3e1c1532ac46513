//! File descriptors: one for every connection, and one client may hold thousands of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors below which thousands of parked polls do not fit.
const COMFORTABLE: u64 = 4_096;

/// Raises the process's limit as far as the system allows: shells start programs with as little as 1,024.
pub(super) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(?current, ?maximum, %error, "the limit of open files could not be raised");
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < COMFORTABLE => {
            warn!(limit, "few open files are allowed, so few clients at once: raise `ulimit -n`");
        }
        limit => debug!(?limit, "open files"),
    }
}
