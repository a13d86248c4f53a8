//! What a connection has been through: how often and since when it stands, what it has carried, and its errors. A plain
//! struct of the connection actor; in the actor thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Statistics;

use super::traffic::Traffic;
use crate::actors::base::text::{milliseconds, seconds};
use crate::findings;
use crate::row::Row;

/// What the view `litmus_pgnats.connections` shows, but for what the supervisor knows.
#[derive(Debug)]
pub struct ConnectionStats {
    /// Host and port of the NATS server; the last one, while there is none.
    host: Option<String>,
    is_connected: bool,
    /// Since when it is, or is not.
    since: SystemTime,
    /// Since the reset; the first connection is none.
    reconnects: u64,
    was_connected: bool,
    last_error: Option<(String, SystemTime)>,
    rtt: Option<Duration>,
    traffic: Traffic,
    /// Messages that had been carried when the round-trip time was measured.
    measured_at: u64,
    reset: SystemTime,
}

impl ConnectionStats {
    pub fn new() -> Self {
        let now = SystemTime::now();
        ConnectionStats {
            host: None,
            is_connected: false,
            since: now,
            reconnects: 0,
            was_connected: false,
            last_error: None,
            rtt: None,
            traffic: Traffic::default(),
            measured_at: 0,
            reset: now,
        }
    }

    pub fn connected(&mut self, host: String, client: Arc<Statistics>) {
        self.host = Some(host);
        self.is_connected = true;
        self.since = SystemTime::now();
        self.reconnects += u64::from(std::mem::replace(&mut self.was_connected, true));
        self.rtt = None;
        self.traffic.begin(client);
    }

    /// Whether anything was carried since the last measurement.
    pub fn has_traffic(&self) -> bool {
        self.traffic.all().msgs() != self.measured_at
    }

    /// A measurement has ended; none if there was no answer.
    pub fn measured(&mut self, rtt: Option<Duration>) {
        self.rtt = rtt;
        self.measured_at = self.traffic.all().msgs();
    }

    /// A client that was replaced has delivered what it held, or its connection broke.
    pub fn retired(&mut self, client: &Arc<Statistics>) {
        self.traffic.end(client);
    }

    pub fn lost(&mut self) {
        self.is_connected = false;
        self.since = SystemTime::now();
        self.rtt = None;
    }

    /// Notes an error; never one that holds a secret.
    pub fn failed(&mut self, error: &str) {
        self.last_error = Some((findings::line(error), SystemTime::now()));
    }

    pub fn reset(&mut self) {
        self.reconnects = 0;
        self.last_error = None;
        self.traffic.reset();
        self.reset = SystemTime::now();
    }

    /// So many messages, and bytes of payload, wait for the connection.
    pub fn row(&self, queued: usize, queued_bytes: usize) -> Row {
        let totals = self.traffic.totals();
        let state = if self.is_connected {
            "connected"
        } else {
            "connecting"
        };
        let error = self.last_error.as_ref();
        let numbers = [
            totals.in_msgs,
            totals.out_msgs,
            totals.in_bytes,
            totals.out_bytes,
            queued as u64,
            queued_bytes as u64,
        ];
        let mut row = vec![
            Some(state.to_string()),
            self.host.clone(),
            Some(seconds(self.since)),
            Some(self.reconnects.to_string()),
            error.map(|(what, _)| what.clone()),
            error.map(|(_, when)| seconds(*when)),
            self.rtt.map(milliseconds),
        ];
        row.extend(numbers.map(|number| Some(number.to_string())));
        row.push(Some(seconds(self.reset)));
        row
    }
}
