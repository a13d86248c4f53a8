//! What a connection tells of itself, and how long its NATS server takes to answer. A part of the connection actor; in the
//! actor thread.

use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::time::timeout;

use super::actor::{Connection, ConnectionState};
use super::interface::{DescribeConnection, ResetConnection};

/// Before the first measurement of the round-trip time, between two, and the longest wait for one.
const RTT_FIRST: Duration = Duration::from_secs(1);
const RTT_INTERVAL: Duration = Duration::from_secs(10);
const RTT_LIMIT: Duration = Duration::from_secs(2);

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
        let ConnectionState::Up(client) = &self.state else {
            return;
        };
        // A connection that is idle stays so.
        if !self.stats.has_traffic() {
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
            actor.stats.measured(rtt);
            if actor.may_measure {
                actor.measure_after(RTT_INTERVAL, ctx);
            }
        }));
    }
}

impl Handler<DescribeConnection> for Connection {
    type Result = MessageResult<DescribeConnection>;

    fn handle(&mut self, _: DescribeConnection, _: &mut Self::Context) -> Self::Result {
        let bytes = self.held.iter().map(|message| message.payload.len()).sum();
        MessageResult(self.stats.row(self.held.len(), bytes))
    }
}

impl Handler<ResetConnection> for Connection {
    type Result = ();

    fn handle(&mut self, _: ResetConnection, _: &mut Self::Context) {
        self.stats.reset();
    }
}
