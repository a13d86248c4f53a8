//! What a durable subscription's task keeps beyond a single consumer, and what it says of itself in the views and in the
//! log. In the actor thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deliveries::Gap;
use super::watcher;
use crate::actors::base::tasks;
use crate::actors::handlers::handler::MessageHandler;
use crate::error::{Error, Kind};
use crate::flood::Flood;

/// The view says so long what was wrong.
const NOTICE: Duration = Duration::from_secs(60);
/// Fewest messages to pull ahead.
const LEAST_AHEAD: usize = 16;

/// Why pulling has ended.
pub enum PullEnd {
    /// The connection or the subscription has ended.
    Over,
    /// The consumer was there, and can be used no longer.
    Lost,
    /// The consumer could not be found or made.
    Failed(Error),
}

/// What outlasts a single consumer.
pub struct Supply {
    pub handler: Arc<MessageHandler>,
    /// Most messages that are ack pending or pulled.
    pub ahead: usize,
    /// Messages that another client has acknowledged: they lie between these sequences.
    pub behind: Option<Gap>,
    /// What was wrong lately, and until when the view says so.
    notice: Option<(Error, Instant)>,
    complaints: Flood,
}

impl Supply {
    pub fn new(handler: Arc<MessageHandler>) -> Supply {
        let definition = handler.definition();
        let consumer = definition.consumer.as_ref();
        let batch = consumer.map_or(1, |consumer| consumer.batch_size as usize);
        Supply {
            handler,
            ahead: (batch * 2).max(LEAST_AHEAD),
            behind: None,
            notice: None,
            complaints: Flood::default(),
        }
    }

    /// Shows that the handler gets messages, or that its consumer is paused.
    pub fn show(&mut self, paused: Option<Error>) {
        self.notice.take_if(|(_, until)| *until < Instant::now());
        match paused {
            Some(problem) => {
                self.handler.stall(problem);
                self.look();
            }
            None => self
                .handler
                .set_live(self.notice.as_ref().map(|(notice, _)| notice.clone())),
        }
    }

    /// Learns what waits for a consumer that delivers nothing.
    fn look(&self) {
        if let Some(connection) = self.handler.connection.clone() {
            let handler = self.handler.clone();
            tasks::spawn("question for the state of a paused consumer", async move {
                watcher::look(&handler, &connection).await;
            });
        }
    }

    /// Another client has acknowledged messages of the consumer.
    pub fn notice_gap(&mut self, stream: &str, durable: &str, gap: Gap, keeps_messages: bool) {
        let Gap { after, before } = gap;
        let fate = if keeps_messages {
            "They are fetched again."
        } else {
            "The stream has removed what was acknowledged."
        };
        let text = format!("another client has taken messages from consumer \"{durable}\"");
        let problem = Error::new(Kind::JetStreamRefused, text).detail(format!(
            "Their sequences lie between {after} and {before}. {fate}"
        ));
        self.notice(stream, problem);
    }

    /// Says in the log, and for a while in the view, what was wrong.
    pub fn notice(&mut self, stream: &str, problem: Error) {
        if let Some(suppressed) = self.complaints.pass() {
            log::warn!("durable subscription of stream \"{stream}\": {problem}{suppressed}");
        }
        self.notice = Some((problem, Instant::now() + NOTICE));
    }

    pub fn report(&mut self, error: Error) {
        if let Some(suppressed) = self.complaints.pass() {
            let definition = self.handler.definition();
            log::warn!(
                "durable subscription of stream \"{}\" for {} waits: {error}{suppressed}",
                definition.subject,
                definition.function
            );
        }
        self.handler.stall(error);
    }
}
