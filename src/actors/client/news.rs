//! What a NATS server reports that is no message, until the connection's actor takes it. Bounded, whatever a server
//! sends. A plain struct; in the actor thread.

use std::collections::{BTreeSet, VecDeque};

/// Most errors that wait for the actor.
const MOST_ERRORS: usize = 256;
/// Most subjects that are remembered because the user may not subscribe, or publish, to them.
const MOST_REFUSED: usize = 10_000;

/// What has been reported since it was last taken.
#[derive(Debug, Default)]
pub struct News {
    /// Texts of errors.
    pub errors: VecDeque<String>,
    /// Errors for which there was no room.
    pub dropped: u64,
    /// The server's INFO has changed.
    pub has_info: bool,
    /// Messages came faster than they were taken, and some were dropped.
    pub is_slow: bool,
}

/// The news of a client, and whether its actor knows that there is some.
#[derive(Debug, Default)]
pub(super) struct NewsDesk {
    waiting: News,
    is_told: bool,
    /// Subjects that the user may not subscribe to.
    pub(super) refused: BTreeSet<String>,
    /// Subjects that the user may not publish to.
    pub(super) forbidden: BTreeSet<String>,
    /// The server has refused subscriptions for their number; how many times.
    pub(super) too_many: u64,
    /// How many times the server has refused the subscription of the replies, because the user may not have it.
    pub(super) inbox_forbidden: u64,
}

impl NewsDesk {
    /// Notes something; `true` if the actor has to be told that there is news.
    pub(super) fn note(&mut self, note: impl FnOnce(&mut News)) -> bool {
        note(&mut self.waiting);
        !std::mem::replace(&mut self.is_told, true)
    }

    pub(super) fn note_error(&mut self, text: &str) -> bool {
        self.note(|news| {
            if news.errors.len() < MOST_ERRORS {
                news.errors.push_back(text.to_string());
            } else {
                news.dropped += 1;
            }
        })
    }

    pub(super) fn note_refused(&mut self, subject: &str) {
        if self.refused.len() >= MOST_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(subject.to_string());
    }

    pub(super) fn note_forbidden(&mut self, subject: &str) {
        if self.forbidden.len() >= MOST_REFUSED {
            self.forbidden.clear();
        }
        self.forbidden.insert(subject.to_string());
    }

    pub(super) fn take(&mut self) -> News {
        self.is_told = false;
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_actor_is_told_once_and_nothing_grows() {
        let mut desk = NewsDesk::default();
        assert!(desk.note_error("first"));
        for _ in 0..1000 {
            assert!(!desk.note_error("again"));
        }
        assert!(!desk.note(|news| news.has_info = true));
        let news = desk.take();
        assert_eq!(
            (news.errors.len(), news.dropped, news.has_info),
            (MOST_ERRORS, 745, true)
        );
        assert_eq!(news.errors.front().map(String::as_str), Some("first"));
        assert!(desk.note_error("later"));
    }
}
