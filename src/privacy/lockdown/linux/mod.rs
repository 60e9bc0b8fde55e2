//! The order of a lockdown: try everything, then the filter, then Landlock.

mod calls;
mod files;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::Mutex;
use std::time::Duration;

use self::files::Kernel;
use self::threads::{Act, Broadcast, Ruleset};
use super::{Enforced, Lockdown, LockdownError, Requirement, Restriction};

/// How long threads have to answer. They do within microseconds, unless they are stopped or block the signal.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Whether this process, or the one that it was forked from, is locked down. Held while a lockdown runs, because there is
/// one signal handler for all.
static LOCKED_DOWN: Mutex<bool> = Mutex::new(false);

pub fn enforce(lockdown: &Lockdown) -> Result<Enforced, LockdownError> {
    enforce_on(Kernel::probe(), lockdown)
}

/// Does what [`enforce`] does, with a kernel that may pretend to have less than it has.
fn enforce_on(kernel: Kernel, lockdown: &Lockdown) -> Result<Enforced, LockdownError> {
    let mut locked_down = LOCKED_DOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *locked_down {
        return Err(LockdownError::Already);
    }
    let hard = lockdown.requirement == Requirement::Hard;
    let mut missing = kernel.missing();
    if hard && !missing.is_empty() {
        return Err(LockdownError::Missing(missing));
    }
    let ruleset = files::ruleset(kernel, &lockdown.readable)?;
    let filter = calls::filter(lockdown.deny_accept, lockdown.allow_sendmsg)?;
    let ruleset = ruleset.map(Ruleset::tried).transpose()?;
    let broadcast = Broadcast::new(TIME_LIMIT)?;
    if ruleset.is_some() {
        let silent = broadcast.to_all(Act::Answer).unreached;
        if hard && silent > 0 {
            return Err(LockdownError::Threads { silent });
        }
    }

    // From here on things are enforced. The filter first: it is on all threads or on none.
    let system_calls = kernel.filters_calls
        && match calls::apply(&filter) {
            Err(error) if hard => return Err(error),
            applied => applied.is_ok(),
        };
    *locked_down = system_calls;
    if kernel.filters_calls && !system_calls {
        missing.push(Restriction::SystemCalls);
    }
    let mut reached = Default::default();
    if let Some(ruleset) = ruleset {
        *locked_down = true;
        reached = broadcast.to_all(Act::Confine(ruleset));
        if hard && reached.unreached > 0 {
            return Err(LockdownError::Partial { confined: reached.done, unconfined: reached.unreached });
        }
        if reached.unreached > 0 {
            missing.push(Restriction::AllThreads);
        }
    }
    Ok(Enforced {
        landlock_abi: kernel.landlock_abi,
        system_calls,
        threads: reached.done,
        threads_unconfined: reached.unreached,
        readable_paths: if kernel.landlock_abi > 0 { lockdown.readable.len() } else { 0 },
        missing,
    })
}
