//! What a connection tells of itself, and how long its NATS server takes to answer. A part of the connection actor; in the
//! actor thread.

use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::time::timeout;

use super::{Connection, State};
use crate::channel::message::Row;

/// Before the first measurement of the round-trip time, between two, and the longest wait for one.
const RTT_FIRST: Duration = Duration::from_secs(1);
const RTT_INTERVAL: Duration = Duration::from_secs(10);
const RTT_LIMIT: Duration = Duration::from_secs(2);

/// Its row in `litmus_pgnats.connections`.
#[derive(Message)]
#[rtype(result = "Row")]
pub struct Describe;

/// Counts anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reset;

impl Connection {
    /// Measures the round-trip time soon, and then from time to time: a look at the statistics asks nobody.
    pub(super) fn measure_soon(&mut self, ctx: &mut Context<Self>) {
        self.measure_after(RTT_FIRST, ctx);
    }

    fn measure_after(&mut self, pause: Duration, ctx: &mut Context<Self>) {
        let generation = self.generation();
        ctx.run_later(pause, move |actor, ctx| {
            if generation == actor.generation() {
                actor.measure(ctx);
            }
        });
    }

    fn measure(&mut self, ctx: &mut Context<Self>) {
        let State::Up(client) = &self.state else {
            return;
        };
        // A connection that is idle stays so.
        if !self.tally.has_traffic() {
            return self.measure_after(RTT_INTERVAL, ctx);
        }
        let (client, generation) = (client.clone(), self.generation());
        let measurement = async move {
            let began = Instant::now();
            let outcome = timeout(RTT_LIMIT, client.round_trip()).await;
            outcome
                .is_ok_and(|outcome| outcome.is_ok())
                .then(|| began.elapsed())
        };
        ctx.spawn(measurement.into_actor(self).map(move |rtt, actor, ctx| {
            if generation != actor.generation() {
                return;
            }
            actor.tally.measured(rtt);
            if actor.may_measure {
                actor.measure_after(RTT_INTERVAL, ctx);
            }
        }));
    }
}

impl Handler<Describe> for Connection {
    type Result = MessageResult<Describe>;

    fn handle(&mut self, _: Describe, _: &mut Self::Context) -> Self::Result {
        let bytes = self.held.iter().map(|message| message.payload.len()).sum();
        MessageResult(self.tally.row(self.held.len(), bytes))
    }
}

impl Handler<Reset> for Connection {
    type Result = ();

    fn handle(&mut self, _: Reset, _: &mut Self::Context) {
        self.tally.reset();
    }
}
