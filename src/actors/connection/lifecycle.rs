//! The states of a NATS connection, and which client counts. A plain struct of the connection actor, without I/O; in
//! the actor thread.
//!
//! ```text
//!            connected                    all held messages handed over
//!   Down ─────────────────> Handover ───────────────────────────────────> Up
//!    ^                         │ lost                                      │ lost        Up ──reload──> Handover
//!    └─────────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! Each attempt to connect has a number. A client's generation is the number of the attempt that made it; by the
//! generation, a late report of an older client is told from a report of the current one.

/// The state of a connection.
#[derive(Debug)]
enum Phase<C> {
    Down,
    /// The new client takes the held messages; later messages queue up behind these.
    Handover(C),
    Up(C),
}

/// What the handover needs next.
#[derive(Debug, PartialEq, Eq)]
pub enum HandoverStep<C> {
    /// Nothing now: there is no handover, or something is under way that has to end first.
    Wait,
    /// The held messages are to be handed to this client.
    HandOver(C),
    /// No message is held any more: the connection is up now, with this client.
    Up(C),
}

/// The states of a connection whose clients are of type `C`.
#[derive(Debug)]
pub struct Lifecycle<C> {
    phase: Phase<C>,
    /// Number of the latest attempt to connect.
    attempts: u64,
    /// Generation of the client that was installed last.
    generation: u64,
    /// The latest generation that was reported lost, perhaps before the client was installed.
    lost: u64,
    /// Attempt of the latest reload that has taken effect; reloads that began earlier are overtaken.
    reloaded: u64,
    /// Attempt of the latest reload that has failed.
    failed_reload: u64,
    /// Replaced clients that have not yet delivered what they hold; until then the new client gets no message.
    retiring: usize,
    is_handing_over: bool,
}

impl<C> Default for Lifecycle<C> {
    fn default() -> Self {
        Lifecycle {
            phase: Phase::Down,
            attempts: 0,
            generation: 0,
            lost: 0,
            reloaded: 0,
            failed_reload: 0,
            retiring: 0,
            is_handing_over: false,
        }
    }
}

impl<C: Clone> Lifecycle<C> {
    /// Returns the number of a new attempt to connect.
    pub fn begin_attempt(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    pub fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Down)
    }

    pub fn is_in_handover(&self) -> bool {
        matches!(self.phase, Phase::Handover(_))
    }

    /// The client, if it takes messages now: `None` unless the connection is up.
    pub fn up(&self) -> Option<&C> {
        match &self.phase {
            Phase::Up(client) => Some(client),
            Phase::Down | Phase::Handover(_) => None,
        }
    }

    /// The client, whether or not it takes messages yet; `None` while the connection is down.
    pub fn client(&self) -> Option<&C> {
        match &self.phase {
            Phase::Up(client) | Phase::Handover(client) => Some(client),
            Phase::Down => None,
        }
    }

    /// Generation of the client that was installed last; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Puts a connected client in the place of the former one, which is returned and has to be retired; `None` if the
    /// connection was down. [`Lifecycle::retired`] has to follow in either case.
    pub fn install(&mut self, client: C, generation: u64) -> Option<C> {
        self.generation = generation;
        self.retiring += 1;
        match std::mem::replace(&mut self.phase, Phase::Handover(client)) {
            Phase::Up(former) | Phase::Handover(former) => Some(former),
            Phase::Down => None,
        }
    }

    /// Whether the client was reported lost before it was installed.
    pub fn is_lost(&self) -> bool {
        self.lost >= self.generation
    }

    /// The client of a generation reports that its connection broke. `true` if it is the current client.
    pub fn report_lost(&mut self, generation: u64) -> bool {
        self.lost = self.lost.max(generation);
        generation == self.generation && !self.is_down()
    }

    /// The connection is down; returns the client that it had.
    pub fn lose(&mut self) -> Option<C> {
        match std::mem::replace(&mut self.phase, Phase::Down) {
            Phase::Up(client) | Phase::Handover(client) => Some(client),
            Phase::Down => None,
        }
    }

    /// The client that [`Lifecycle::install`] has replaced, if any, has delivered what it held.
    pub fn retired(&mut self) {
        self.retiring = self.retiring.saturating_sub(1);
    }

    /// The next step of a handover, if there is one. `holds_messages`: whether messages are held.
    pub fn next_step(&mut self, holds_messages: bool) -> HandoverStep<C> {
        let Phase::Handover(client) = &self.phase else {
            return HandoverStep::Wait;
        };
        if self.is_handing_over || self.retiring > 0 {
            return HandoverStep::Wait;
        }
        let client = client.clone();
        if holds_messages {
            self.is_handing_over = true;
            return HandoverStep::HandOver(client);
        }
        self.phase = Phase::Up(client.clone());
        HandoverStep::Up(client)
    }

    /// The messages of [`HandoverStep::HandOver`] have been handed over.
    pub fn handed_over(&mut self) {
        self.is_handing_over = false;
    }

    /// New settings that need no new client take effect; reloads that began earlier are overtaken.
    pub fn reloaded_in_place(&mut self) {
        self.reloaded = self.begin_attempt();
    }

    /// The attempt of a reload has connected. `false` if a later reload has overtaken it.
    pub fn reload_connected(&mut self, attempt: u64) -> bool {
        let counts = attempt >= self.reloaded;
        if counts {
            self.reloaded = attempt;
        }
        counts
    }

    /// The attempt of a reload has failed. `true` if the reload is the latest one, whose settings are to be tried
    /// further if the connection is down.
    pub fn reload_failed(&mut self, attempt: u64) -> bool {
        let is_latest = attempt > self.reloaded.max(self.failed_reload);
        if is_latest {
            self.failed_reload = attempt;
        }
        is_latest
    }

    /// The settings of a failed reload take effect all the same; reloads that began earlier are overtaken.
    pub fn reload_counts(&mut self, attempt: u64) {
        self.reloaded = attempt;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection whose client is up.
    fn up(name: &'static str) -> Lifecycle<&'static str> {
        let mut lifecycle = Lifecycle::default();
        let attempt = lifecycle.begin_attempt();
        assert_eq!(lifecycle.install(name, attempt), None);
        lifecycle.retired();
        assert_eq!(lifecycle.next_step(false), HandoverStep::Up(name));
        lifecycle
    }

    #[test]
    fn held_messages_are_handed_over_before_the_connection_is_up() {
        let mut lifecycle = Lifecycle::default();
        let attempt = lifecycle.begin_attempt();
        lifecycle.install("a", attempt);
        assert_eq!(
            lifecycle.next_step(true),
            HandoverStep::Wait,
            "the former one is retiring"
        );
        lifecycle.retired();
        assert_eq!(lifecycle.next_step(true), HandoverStep::HandOver("a"));
        assert_eq!(
            lifecycle.next_step(true),
            HandoverStep::Wait,
            "one batch at a time"
        );
        assert_eq!((lifecycle.up(), lifecycle.client()), (None, Some(&"a")));
        lifecycle.handed_over();
        assert_eq!(
            lifecycle.next_step(true),
            HandoverStep::HandOver("a"),
            "what came meanwhile"
        );
        lifecycle.handed_over();
        assert_eq!(lifecycle.next_step(false), HandoverStep::Up("a"));
        assert_eq!(lifecycle.next_step(false), HandoverStep::Wait);
        assert_eq!(lifecycle.up(), Some(&"a"));
    }

    #[test]
    fn a_replaced_client_delivers_first() {
        let mut lifecycle = up("old");
        let (first, second) = (lifecycle.begin_attempt(), lifecycle.begin_attempt());
        assert_eq!(lifecycle.install("new", first), Some("old"));
        assert_eq!(lifecycle.install("newer", second), Some("new"));
        lifecycle.retired();
        assert_eq!(
            lifecycle.next_step(false),
            HandoverStep::Wait,
            "one is still delivering"
        );
        lifecycle.retired();
        assert_eq!(lifecycle.next_step(false), HandoverStep::Up("newer"));
    }

    #[test]
    fn late_news_of_an_older_client_change_nothing() {
        let mut lifecycle = up("old");
        let old = lifecycle.generation();
        let attempt = lifecycle.begin_attempt();
        lifecycle.install("new", attempt);
        assert!(!lifecycle.report_lost(old));
        assert!(!lifecycle.is_lost());
        assert!(lifecycle.report_lost(attempt));
        assert_eq!(lifecycle.lose(), Some("new"));
        assert!(lifecycle.is_down());
        assert!(!lifecycle.report_lost(attempt), "said before");
    }

    #[test]
    fn a_client_may_be_lost_before_it_is_installed() {
        let mut lifecycle = Lifecycle::default();
        let attempt = lifecycle.begin_attempt();
        assert!(!lifecycle.report_lost(attempt));
        lifecycle.install("a", attempt);
        assert!(lifecycle.is_lost());
    }

    #[test]
    fn of_two_reloads_the_later_one_counts() {
        let mut lifecycle = up("a");
        let (first, second) = (lifecycle.begin_attempt(), lifecycle.begin_attempt());
        assert!(lifecycle.reload_connected(second));
        assert!(!lifecycle.reload_connected(first), "overtaken");
        let third = lifecycle.begin_attempt();
        lifecycle.reloaded_in_place();
        assert!(
            !lifecycle.reload_connected(third),
            "overtaken without a new client"
        );
    }

    #[test]
    fn of_two_reloads_that_fail_the_later_one_is_tried_on() {
        let mut lifecycle = up("a");
        let (first, second) = (lifecycle.begin_attempt(), lifecycle.begin_attempt());
        assert!(lifecycle.reload_failed(second));
        assert!(!lifecycle.reload_failed(first));
        lifecycle.reload_counts(second);
        assert!(!lifecycle.reload_connected(first));
    }
}
