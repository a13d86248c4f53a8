//! The statistics of each NATS connection: its state and since when, its reconnects, its traffic and its last error.
//! Plain structs, which a connection writes and sessions read; in the actor thread.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::traffic::{ClientTraffic, Traffic};
use crate::channel::statistics::{ConnectionRow, LastError};
use crate::channel::target::{Key, Target};
use crate::findings;

/// What the view `litmus_pgnats.connections` shows of one connection.
#[derive(Debug)]
pub struct ConnectionStats {
    key: Key,
    /// Name of the foreign server when the connection was made.
    server_name: String,
    sessions: u64,
    /// Host and port of the NATS server, or of the last one while disconnected; `None` before the first connect.
    host: Option<String>,
    is_connected: bool,
    /// Since when the connection is up, or is not.
    since: SystemTime,
    /// Reconnects since the last reset; the first connect is none.
    reconnects: u64,
    was_connected: bool,
    last_error: Option<LastError>,
    rtt: Option<Duration>,
    traffic: Traffic,
    /// Messages in both directions up to the last measurement of the round-trip time.
    measured_at: u64,
    /// Messages that wait for the connection, and bytes of their payloads.
    queued: (usize, usize),
    reset: SystemTime,
}

/// The statistics of one connection, shared by the connection and the table.
pub type SharedStats = Arc<Mutex<ConnectionStats>>;

/// The statistics of all connections.
#[derive(Clone, Debug, Default)]
pub struct ConnectionTable(Arc<DashMap<Key, SharedStats>>);

impl ConnectionTable {
    /// Adds a connection, in place of a former one with the same key.
    pub fn add(&self, target: &Target) -> SharedStats {
        let stats = Arc::new(Mutex::new(ConnectionStats::new(target)));
        self.0.insert(target.key, stats.clone());
        stats
    }

    pub fn remove(&self, key: Key) {
        self.0.remove(&key);
    }

    /// A row for each connection.
    pub fn rows(&self) -> Vec<ConnectionRow> {
        self.0.iter().map(|entry| entry.value().lock().row()).collect()
    }

    /// Resets the statistics of a database's connections.
    pub fn reset(&self, database: u32) {
        let of_database = self.0.iter().filter(|entry| entry.key().database == database);
        of_database.for_each(|entry| entry.value().lock().reset());
    }
}

impl ConnectionStats {
    pub fn new(target: &Target) -> Self {
        let now = SystemTime::now();
        ConnectionStats {
            key: target.key,
            server_name: target.server_name.clone(),
            sessions: 0,
            host: None,
            is_connected: false,
            since: now,
            reconnects: 0,
            was_connected: false,
            last_error: None,
            rtt: None,
            traffic: Traffic::default(),
            measured_at: 0,
            queued: (0, 0),
            reset: now,
        }
    }

    pub fn set_sessions(&mut self, sessions: usize) {
        self.sessions = sessions as u64;
    }

    /// Notes how many messages, with how many bytes of payload, wait for the connection.
    pub fn set_queued(&mut self, messages: usize, bytes: usize) {
        self.queued = (messages, bytes);
    }

    /// A client has connected; its traffic counts from now on.
    pub fn connected(&mut self, host: String, client: ClientTraffic) {
        self.host = Some(host);
        self.is_connected = true;
        self.since = SystemTime::now();
        self.reconnects += u64::from(std::mem::replace(&mut self.was_connected, true));
        self.rtt = None;
        self.traffic.begin(client);
    }

    /// Whether the connection has carried messages since the last measurement of the round-trip time.
    pub fn has_traffic(&self) -> bool {
        self.traffic.all().msgs() != self.measured_at
    }

    /// A measurement of the round-trip time has ended; `None` if there was no answer.
    pub fn measured(&mut self, rtt: Option<Duration>) {
        self.rtt = rtt;
        self.measured_at = self.traffic.all().msgs();
    }

    /// A replaced client has delivered what it held, or a client's connection broke: its counts are final.
    pub fn retired(&mut self, client: &ClientTraffic) {
        self.traffic.end(client);
    }

    pub fn lost(&mut self) {
        self.is_connected = false;
        self.since = SystemTime::now();
        self.rtt = None;
    }

    /// Notes the last error, which must not hold a secret, because a view shows it.
    pub fn failed(&mut self, error: &str) {
        self.last_error = Some((findings::line(error), SystemTime::now().into()));
    }

    pub fn reset(&mut self) {
        self.reconnects = 0;
        self.last_error = None;
        self.traffic.reset();
        self.reset = SystemTime::now();
    }

    fn row(&self) -> ConnectionRow {
        let totals = self.traffic.totals();
        let state = if self.is_connected {
            "connected"
        } else {
            "connecting"
        };
        ConnectionRow {
            database: self.key.database,
            server: self.key.server,
            server_name: self.server_name.clone(),
            user_mapping: Some(self.key.mapping).filter(|mapping| *mapping != 0),
            pid: Some(self.key.private_to).filter(|pid| *pid != 0),
            sessions: self.sessions,
            state: state.to_string(),
            host: self.host.clone(),
            since: self.since.into(),
            reconnects: self.reconnects,
            last_error: self.last_error.clone(),
            rtt_ms: self.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            in_msgs: totals.in_msgs,
            out_msgs: totals.out_msgs,
            in_bytes: totals.in_bytes,
            out_bytes: totals.out_bytes,
            queued: self.queued.0 as u64,
            queued_bytes: self.queued.1 as u64,
            reset: self.reset.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(database: u32) -> Target {
        let key = Key {
            database,
            server: 2,
            mapping: 0,
            private_to: 0,
        };
        Target {
            key,
            database_name: "db".into(),
            server_name: "nats".into(),
        }
    }

    #[test]
    fn a_reset_is_of_one_database() {
        let table = ConnectionTable::default();
        let (first, second) = (table.add(&target(1)), table.add(&target(5)));
        for stats in [&first, &second] {
            stats.lock().failed("lost");
            stats.lock().set_queued(3, 30);
        }
        table.reset(1);
        let mut rows = table.rows();
        rows.sort_by_key(|row| row.database);
        let errors = rows.iter().map(|row| row.last_error.is_some());
        assert_eq!(errors.collect::<Vec<_>>(), [false, true]);
        assert_eq!(
            (rows[0].queued, rows[0].queued_bytes, rows[0].user_mapping),
            (3, 30, None)
        );
        table.remove(target(1).key);
        assert_eq!(table.rows().len(), 1);
    }
}
