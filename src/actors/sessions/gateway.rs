//! Accepts the sessions of the control channel. Runs in the actor thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;
use tokio::time::timeout;

use super::addresses::Addresses;
use super::session::Session;
use super::wakeup_coalescing::WakeupCoalescing;
use crate::actors::base::liveness::Vital;
use crate::actors::metrics::in_flight::InFlight;
use crate::channel::server::{ChannelListener, FrameWriter};

/// After a failure to accept (too many open files, a refused user) the next attempt waits so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes in what the sessions have sent and ends them, within the time given.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishSessions(pub Duration);

/// The actor.
pub struct Gateway {
    listener: Option<ChannelListener>,
    actors: Addresses,
    load: InFlight,
    pace: WakeupCoalescing,
    /// `true` once the runtime is to end. Each session holds a receiver.
    finish: watch::Sender<bool>,
    _vital: Vital,
}

impl Gateway {
    pub fn new(
        listener: ChannelListener,
        actors: Addresses,
        load: InFlight,
        pace: WakeupCoalescing,
        vital: Vital,
    ) -> Self {
        Gateway {
            listener: Some(listener),
            actors,
            load,
            pace,
            finish: watch::Sender::new(false),
            _vital: vital,
        }
    }
}

impl Actor for Gateway {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        let (actors, load, pace) = (self.actors.clone(), self.load.clone(), self.pace.clone());
        let session = move |writer| Session::new(writer, actors.clone(), load.clone(), pace.clone());
        ctx.spawn(accept(listener, session, self.finish.subscribe()).into_actor(self));
    }
}

async fn accept(
    listener: ChannelListener,
    session: impl Fn(FrameWriter) -> Session,
    mut finish: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = finish.wait_for(|finish| *finish) => return,
        };
        match accepted {
            Ok((reader, writer)) => {
                actix::spawn(session(writer).run(reader, finish.clone()));
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
        let finish = self.finish.clone();
        Box::pin(async move {
            finish.send_replace(true);
            let _ = timeout(limit, finish.closed()).await;
        })
    }
}
