//! What is counted where no actor does: the control channel, and objects on their way. In the actor thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::in_flight::InFlight;
use super::transfers::Transfers;
use crate::actors::base::queue_limits::Limits;
use crate::actors::base::text::seconds;
use crate::channel::counts::ChannelCounts;
use crate::row::Row;

/// What is counted where no actor does.
#[derive(Clone)]
pub struct Counters {
    pub transfers: Transfers,
    pub channel: Arc<ChannelCounts>,
    load: InFlight,
    limits: Arc<Limits>,
    started: SystemTime,
    reset: Arc<Mutex<SystemTime>>,
}

impl Counters {
    pub fn new(channel: Arc<ChannelCounts>, load: InFlight, limits: Arc<Limits>) -> Self {
        let now = SystemTime::now();
        Counters {
            transfers: Transfers::default(),
            channel,
            load,
            limits,
            started: now,
            reset: Arc::new(Mutex::new(now)),
        }
    }

    pub fn reset(&self) {
        self.channel.reset();
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
    }

    /// The one row of `litmus_pgnats.control_channel`.
    pub fn row(&self) -> Row {
        let reset = *self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        let mut row = vec![
            Some(std::process::id().to_string()),
            Some(seconds(self.started)),
            Some(self.channel.open().to_string()),
            Some(self.load.now().to_string()),
            Some(self.limits.waiting().to_string()),
        ];
        row.extend(self.channel.totals().map(|total| Some(total.to_string())));
        row.push(Some(seconds(reset)));
        row
    }
}
