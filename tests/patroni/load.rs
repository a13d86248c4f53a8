//! A steady stream of numbered messages from outside into a subscription, and what became of each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Client;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::LONG;
use crate::support::*;

/// The table `numbers` and the function that fills it: which number, the port of the server that took it, and when.
pub const NUMBERS: &str = "CREATE TABLE numbers (n int, port int, at double precision);
     CREATE FUNCTION take_number(n text) RETURNS void LANGUAGE sql AS $$
       INSERT INTO public.numbers
       VALUES (n::int, current_setting('port')::int, extract(epoch FROM clock_timestamp())) $$;
     SELECT nats_subscribe('ha.load', 'take_number')";
/// Between two messages.
const BEAT: Duration = Duration::from_millis(5);

/// Seconds since 1970.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time after 1970").as_secs_f64()
}

/// Publishes 1, 2, 3... to `ha.load` until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<f64>>,
}

impl Load {
    pub fn start(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut sent = Vec::new();
            let mut beat = tokio::time::interval(BEAT);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !seen.load(Ordering::Relaxed) {
                beat.tick().await;
                let number = (sent.len() + 1).to_string();
                sent.push(now());
                let published = client.publish("ha.load", number.into()).await;
                published.expect("publish from outside");
                client.flush().await.expect("flush");
            }
            sent
        });
        Self { stop, task }
    }

    /// When each message was published, the first one's time first.
    pub async fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the load's own task")
    }
}

/// A row of `numbers`.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub n: usize,
    pub port: u16,
    pub at: f64,
}

/// What was taken, in the order of the time.
pub async fn records(session: &Session) -> Vec<Record> {
    let rows = session.query("TABLE numbers ORDER BY at", &[]).await;
    let rows = rows.expect("read the numbers");
    let number = |row: &tokio_postgres::Row, column| row.get::<_, i32>(column).unsigned_abs();
    rows.iter()
        .map(|row| Record {
            n: number(row, 0) as usize,
            port: u16::try_from(number(row, 1)).expect("a port"),
            at: row.get(2),
        })
        .collect()
}

/// Waits until the server with this port has taken `count` messages that were published after this call.
pub async fn until_flowing(session: &Session, port: u16, count: i64) {
    let sql = "SELECT count(*) FROM numbers WHERE port = $1 AND at > $2";
    let (port, since) = (i32::from(port), now());
    eventually(LONG, async || {
        let row = session.query_one(sql, &[&port, &since]).await;
        let seen: i64 = row.map_err(|e| format!("{e:?}"))?.get(0);
        (seen >= count)
            .then_some(())
            .ok_or_else(|| format!("{seen} messages"))
    })
    .await;
}

/// What became of the messages.
#[derive(Debug)]
pub struct Account {
    pub published: usize,
    pub missed: usize,
    /// Numbers that were processed more than once.
    pub twice: Vec<usize>,
    /// The longest time without a message that was processed, in seconds of their publishing.
    pub gap: f64,
}

impl Account {
    /// Waits until the last message was processed, and compares.
    pub async fn of(sent: &[f64], session: &Session) -> Self {
        let last = sent.len();
        let records = eventually(LONG, async || {
            let records = records(session).await;
            let highest = records.iter().map(|record| record.n).max();
            (highest == Some(last)).then_some(records).ok_or(highest)
        })
        .await;
        Self::between(sent, records.iter().map(|record| record.n))
    }

    pub fn between(sent: &[f64], processed: impl Iterator<Item = usize>) -> Self {
        let mut times = BTreeMap::<usize, usize>::new();
        processed.for_each(|n| *times.entry(n).or_default() += 1);
        let taken: Vec<usize> = times.keys().copied().collect();
        let silence = |pair: &[usize]| sent[pair[1] - 1] - sent[pair[0] - 1];
        Self {
            published: sent.len(),
            missed: sent.len() - taken.len(),
            twice: times
                .into_iter()
                .filter(|(_, n)| *n > 1)
                .map(|(n, _)| n)
                .collect(),
            gap: taken.windows(2).map(silence).fold(0.0, f64::max),
        }
    }

    /// Prints it, and asserts what NATS gives: at most once.
    #[track_caller]
    pub fn check(&self, what: &str, longest: f64) {
        println!(
            "{what}: {} published, {} missed, {} processed twice, the longest gap {:.3} s",
            self.published,
            self.missed,
            self.twice.len(),
            self.gap
        );
        assert_eq!(self.twice, [0; 0], "{what}: processed twice");
        assert!(self.gap < longest, "{what}: a gap of {:.3} s", self.gap);
    }
}
