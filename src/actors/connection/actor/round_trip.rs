//! Measures how long the NATS server of a connection takes to answer. A part of the connection actor; in the actor
//! thread.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::timeout;

use super::Connection;

/// From the connection being up to the first measurement of the round-trip time.
const RTT_FIRST: Duration = Duration::from_secs(1);
/// Time between two measurements.
const RTT_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a measurement.
const RTT_LIMIT: Duration = Duration::from_secs(2);

impl Connection {
    /// Measures the round-trip time soon, and then from time to time, so that the statistics need not ask NATS.
    pub(super) fn measure_soon(&mut self, ctx: &mut Context<Self>) {
        self.measure_after(RTT_FIRST, ctx);
    }

    fn measure_after(&mut self, pause: Duration, ctx: &mut Context<Self>) {
        let generation = self.lifecycle.generation();
        ctx.run_later(pause, move |actor, ctx| {
            if generation == actor.lifecycle.generation() {
                actor.measure(ctx);
            }
        });
    }

    fn measure(&mut self, ctx: &mut Context<Self>) {
        let Some(client) = self.lifecycle.up() else {
            return;
        };
        // An idle connection is not measured, so that it stays idle.
        if !self.stats.lock().has_traffic() {
            return self.measure_after(RTT_INTERVAL, ctx);
        }
        let (client, generation) = (client.clone(), self.lifecycle.generation());
        let measurement = async move {
            let outcome = timeout(RTT_LIMIT, client.round_trip()).await;
            outcome.ok().and_then(|outcome| outcome.ok())
        };
        ctx.spawn(measurement.into_actor(self).map(move |rtt, actor, ctx| {
            if generation != actor.lifecycle.generation() {
                return;
            }
            actor.stats.lock().measured(rtt);
            actor.measure_after(RTT_INTERVAL, ctx);
        }));
    }
}
