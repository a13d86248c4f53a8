//! The statistics that can be read without asking an actor: the control channel, connections, and transfers of objects.
//! A plain struct that sessions share; in the actor thread.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::connection_stats::ConnectionTable;
use super::in_flight::InFlight;
use super::transfers::Transfers;
use crate::actors::base::queue_limits::Limits;
use crate::channel::counts::ChannelCounts;
use crate::channel::statistics::ChannelRow;

/// The statistics that can be read without asking an actor. Clones share the counts.
#[derive(Clone)]
pub struct Counters {
    pub connections: ConnectionTable,
    pub transfers: Transfers,
    channel: Arc<ChannelCounts>,
    in_flight: InFlight,
    limits: Arc<Limits>,
    started: SystemTime,
    channel_reset: Arc<Mutex<SystemTime>>,
}

impl Counters {
    pub fn new(
        connections: ConnectionTable,
        channel: Arc<ChannelCounts>,
        in_flight: InFlight,
        limits: Arc<Limits>,
    ) -> Self {
        let now = SystemTime::now();
        Counters {
            connections,
            transfers: Transfers::default(),
            channel,
            in_flight,
            limits,
            started: now,
            channel_reset: Arc::new(Mutex::new(now)),
        }
    }

    /// Resets the counts of the control channel and of a database's connections.
    pub fn reset(&self, database: u32) {
        self.connections.reset(database);
        self.channel.reset();
        *self.channel_reset.lock() = SystemTime::now();
    }

    /// The row of the view `litmus_pgnats.control_channel`.
    pub fn channel_row(&self) -> ChannelRow {
        let [frames_in, frames_out, bytes_in, bytes_out] = self.channel.totals();
        ChannelRow {
            pid: std::process::id(),
            started: self.started.into(),
            connections: self.channel.open(),
            calls: self.in_flight.now().into(),
            queued_bytes: self.limits.waiting() as u64,
            frames_in,
            frames_out,
            bytes_in,
            bytes_out,
            reset: (*self.channel_reset.lock()).into(),
        }
    }
}
