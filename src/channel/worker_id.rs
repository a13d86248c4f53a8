//! The number that an executor or an outbox relay is started under. Pure.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bit that is set in the number of an outbox relay, and not in that of an executor.
const OUTBOX_RELAY: u32 = 1 << 31;

/// Tells one worker from all others that the runtime worker has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(u32);

impl WorkerId {
    /// The number of the nth executor.
    pub fn executor(n: u32) -> WorkerId {
        WorkerId(n & !OUTBOX_RELAY)
    }

    /// The number of the nth outbox relay.
    pub fn outbox_relay(n: u32) -> WorkerId {
        WorkerId(n | OUTBOX_RELAY)
    }

    pub fn is_outbox_relay(self) -> bool {
        self.0 & OUTBOX_RELAY != 0
    }

    /// The argument that the worker is started with: the number, together with the database's object id.
    pub fn with_database(self, database: u32) -> u64 {
        u64::from(self.0) << 32 | u64::from(database)
    }

    /// The reverse of [`WorkerId::with_database`].
    pub fn and_database(argument: u64) -> (WorkerId, u32) {
        (WorkerId((argument >> 32) as u32), argument as u32)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_numbers_of_their_own_and_travel_with_a_database() {
        for n in [0, 1, u32::MAX >> 1, u32::MAX] {
            let (executor, relay) = (WorkerId::executor(n), WorkerId::outbox_relay(n));
            assert!(!executor.is_outbox_relay() && relay.is_outbox_relay());
            for id in [executor, relay] {
                assert_eq!(WorkerId::and_database(id.with_database(16_384)), (id, 16_384));
            }
        }
    }
}
