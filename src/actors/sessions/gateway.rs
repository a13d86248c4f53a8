//! The actor that accepts the sessions of the control channel. In the actor thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::Addresses;
use super::session::Session;
use super::wakeup_coalescing::WakeupCoalescing;
use crate::actors::base::tasks::{self, Vital};
use crate::actors::metrics::in_flight::InFlight;
use crate::channel::server::{ChannelListener, FrameWriter};

/// Pause after a failure to accept (too many open files, a refused user).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Ends the sessions, after reading what they have sent, within this time.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishSessions(pub Duration);

/// The actor that accepts sessions.
pub struct Gateway {
    listener: Option<ChannelListener>,
    actors: Addresses,
    in_flight: InFlight,
    coalescing: WakeupCoalescing,
    /// Cancelled when the runtime has to end.
    finish: CancellationToken,
    sessions: TaskTracker,
    _vital: Vital,
}

impl Gateway {
    pub fn new(
        listener: ChannelListener,
        actors: Addresses,
        in_flight: InFlight,
        coalescing: WakeupCoalescing,
    ) -> Self {
        Gateway {
            listener: Some(listener),
            actors,
            in_flight,
            coalescing,
            finish: CancellationToken::new(),
            sessions: TaskTracker::new(),
            _vital: Vital::new("gateway"),
        }
    }
}

impl Actor for Gateway {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        let (actors, in_flight, coalescing) = (
            self.actors.clone(),
            self.in_flight.clone(),
            self.coalescing.clone(),
        );
        let session =
            move |writer| Session::new(writer, actors.clone(), in_flight.clone(), coalescing.clone());
        let accepting = accept(listener, session, self.finish.clone(), self.sessions.clone());
        ctx.spawn(accepting.into_actor(self));
    }
}

async fn accept(
    listener: ChannelListener,
    session: impl Fn(FrameWriter) -> Session,
    finish: CancellationToken,
    sessions: TaskTracker,
) {
    while let Some(accepted) = finish.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((reader, writer)) => {
                let session = session(writer).run(reader, finish.clone());
                tasks::spawn("session", sessions.track_future(session));
            }
            Err(error) => {
                log::warn!("control channel: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Handler<FinishSessions> for Gateway {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, FinishSessions(limit): FinishSessions, _: &mut Self::Context) -> Self::Result {
        self.finish.cancel();
        self.sessions.close();
        let sessions = self.sessions.clone();
        Box::pin(async move {
            if timeout(limit, sessions.wait()).await.is_err() {
                log::debug!("{} sessions have not ended in time", sessions.len());
            }
        })
    }
}
