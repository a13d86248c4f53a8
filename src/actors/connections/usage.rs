//! Who uses a connection, and when the connection is to be closed. A plain struct of the supervisor; in the actor
//! thread.

use std::time::{Duration, Instant};

use super::lease::ConnectionUser;

/// A connection that nobody has used for this long is closed.
const UNUSED_LIMIT: Duration = Duration::from_secs(300);

/// The users of a connection.
#[derive(Debug, Default)]
pub struct Usage {
    sessions: usize,
    workers: usize,
    unused_since: Option<Instant>,
    /// Whether the connection is closed when its last user has gone, and not only some time later.
    closes_at_once: bool,
}

impl Usage {
    /// `is_private`: the connection is one session's own, so nobody else can use it later.
    pub fn new(is_private: bool) -> Usage {
        Usage {
            closes_at_once: is_private,
            ..Usage::default()
        }
    }

    pub fn sessions(&self) -> usize {
        self.sessions
    }

    pub fn is_unused(&self) -> bool {
        self.sessions + self.workers == 0
    }

    /// Counts a user more.
    pub fn begin(&mut self, user: ConnectionUser) {
        *self.count(user) += 1;
        self.unused_since = None;
    }

    /// Counts a user less. `true` if the connection is to be closed now.
    pub fn end(&mut self, user: ConnectionUser, now: Instant) -> bool {
        let count = self.count(user);
        *count = count.saturating_sub(1);
        if self.is_unused() {
            self.unused_since = Some(now);
        }
        self.is_unused() && self.closes_at_once
    }

    /// The connection is to be closed as soon as nobody uses it. `true` if it is to be closed now.
    pub fn close_when_unused(&mut self) -> bool {
        self.closes_at_once = true;
        self.is_unused()
    }

    /// Whether nobody has used the connection for so long that it is to be closed.
    pub fn is_forgotten(&self, now: Instant) -> bool {
        self.unused_since
            .is_some_and(|since| now.duration_since(since) >= UNUSED_LIMIT)
    }

    fn count(&mut self, user: ConnectionUser) -> &mut usize {
        match user {
            ConnectionUser::Session => &mut self.sessions,
            ConnectionUser::Worker => &mut self.workers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_connection_is_kept_for_a_while() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut usage = Usage::new(false);
        usage.begin(ConnectionUser::Session);
        usage.begin(ConnectionUser::Worker);
        assert!(!usage.end(ConnectionUser::Session, after(1)));
        assert_eq!((usage.sessions(), usage.is_unused()), (0, false));
        assert!(!usage.is_forgotten(after(1000)), "a worker uses it");
        assert!(!usage.end(ConnectionUser::Worker, after(10)));
        assert!(usage.is_unused() && !usage.is_forgotten(after(309)));
        assert!(usage.is_forgotten(after(310)));
        usage.begin(ConnectionUser::Session);
        assert!(!usage.is_forgotten(after(1000)));
    }

    #[test]
    fn a_private_one_ends_with_its_session() {
        let mut usage = Usage::new(true);
        usage.begin(ConnectionUser::Session);
        assert!(usage.end(ConnectionUser::Session, Instant::now()));
    }

    #[test]
    fn one_of_a_dropped_database_ends_with_its_last_user() {
        let mut usage = Usage::new(false);
        usage.begin(ConnectionUser::Worker);
        assert!(!usage.close_when_unused());
        assert!(usage.end(ConnectionUser::Worker, Instant::now()));
        assert!(Usage::new(false).close_when_unused(), "nobody uses it");
    }
}
