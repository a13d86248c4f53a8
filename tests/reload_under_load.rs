mod foreign_server;
mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foreign_server::*;
use futures::StreamExt;
use support::{NatsServer, Postgres, Session, eventually, round_trip};

const SESSIONS: usize = 4;
/// Hundreds of thousands of messages may take a while on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sessions that publish numbered messages, `batch` per statement, until told to end.
struct Publishers {
    end: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Publishers {
    async fn start(pg: &Postgres, batch: u64) -> Self {
        let end = Arc::<AtomicBool>::default();
        let mut tasks = Vec::new();
        for number in 0..SESSIONS {
            let (session, end) = (pg.connect().await, Arc::clone(&end));
            tasks.push(tokio::spawn(async move {
                let mut sent = 0;
                while !end.load(Ordering::Relaxed) {
                    let (first, last) = (sent + 1, sent + batch);
                    let sql = format!(
                        "SELECT count(nats_publish_text('load.{number}', n::text)) FROM generate_series({first}, {last}) n"
                    );
                    run(&session, &sql).await;
                    sent = last;
                }
                sent
            }));
        }
        Self { end, tasks }
    }

    /// How many messages each session published.
    async fn finish(self) -> Vec<u64> {
        self.end.store(true, Ordering::Relaxed);
        let mut sent = Vec::new();
        for task in self.tasks {
            sent.push(task.await.expect("a publisher that does not fail"));
        }
        sent
    }
}

/// An outside subscriber that notes what arrives, by subject and in order.
struct Witness {
    client: async_nats::Client,
    /// What it had received before it was ready.
    before: u64,
    task: tokio::task::JoinHandle<HashMap<String, Vec<u64>>>,
}

impl Witness {
    async fn start(nats: &NatsServer) -> Self {
        let options = nats.client_options().subscription_capacity(4_000_000);
        let client = nats.connect(options).await.expect("a subscriber");
        let mut inbox = client.subscribe("load.>").await.expect("subscribe");
        round_trip(&client).await;
        let before = client.statistics().in_messages.load(Ordering::Relaxed);
        let task = tokio::spawn(async move {
            let mut seen = HashMap::<String, Vec<u64>>::new();
            while let Some(message) = inbox.next().await {
                if message.subject.as_str() == "load.end" {
                    break;
                }
                let text = String::from_utf8_lossy(&message.payload);
                let number = text.parse().expect("a number");
                seen.entry(message.subject.to_string()).or_default().push(number);
            }
            seen
        });
        Self { client, before, task }
    }

    fn received(&self) -> u64 {
        self.client.statistics().in_messages.load(Ordering::Relaxed) - self.before
    }

    /// What arrived, when this many messages have arrived at these witnesses together.
    async fn finish<const N: usize>(witnesses: [Self; N], expected: u64) -> [HashMap<String, Vec<u64>>; N] {
        eventually(PATIENCE, async || {
            let received = witnesses.iter().map(Self::received).sum::<u64>();
            if received >= expected {
                Ok(())
            } else {
                Err(format!("{received} of {expected} messages"))
            }
        })
        .await;
        let mut all = Vec::new();
        for Self { client, task, .. } in witnesses {
            client
                .publish("load.end", "".into())
                .await
                .expect("publish the end");
            let seen = tokio::time::timeout(PATIENCE, task).await;
            all.push(seen.expect("the end in time").expect("no panic while counting"));
        }
        all.try_into().expect("as many as there were")
    }
}

/// Every number from 1 to what was sent, once, in order.
fn complete(seen: &HashMap<String, Vec<u64>>, sent: &[u64]) {
    for (number, sent) in sent.iter().enumerate() {
        let numbers = seen.get(&format!("load.{number}")).map_or(&[][..], Vec::as_slice);
        let wrong = numbers.iter().zip(1..).find(|(seen, expected)| *seen != expected);
        assert_eq!((wrong, numbers.len() as u64), (None, *sent), "session {number}");
    }
    assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
}

/// Publishes in batches of this size while the connection is replaced again and again.
async fn reloads_lose_nothing(batch: u64) {
    let (pg, session) = ready().await;
    let nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[]).await;
    let witness = Witness::start(&nats).await;
    let publishers = Publishers::start(&pg, batch).await;
    let mut ids = vec![client_id(&session).await];
    for host in ["localhost", "127.0.0.1"].repeat(3) {
        run(&session, FORCE).await;
        ids.push(client_id(&session).await);
        run(&session, &alter(&[("SET host", host)])).await;
        run(&session, RELOAD).await;
        ids.push(client_id(&session).await);
    }
    let sent = publishers.finish().await;
    let [seen] = Witness::finish([witness], sent.iter().sum()).await;
    complete(&seen, &sent);
    ids.dedup();
    assert_eq!(ids.len(), 13, "not reconnected each time");
}

// One message per statement: each is handed over by itself.
#[tokio::test]
async fn reloads_lose_no_single_messages() {
    reloads_lose_nothing(1).await;
}

// Many per statement: the connection is replaced in the middle of batches.
#[tokio::test]
async fn reloads_lose_nothing_of_large_statements() {
    reloads_lose_nothing(20_000).await;
}

// Nothing was lost and nothing was begun while one connection takes the place of another: a call waits for it.
#[tokio::test]
async fn reloads_fail_no_calls_of_files() {
    let (pg, session) = ready().await;
    let nats = NatsServer::builder().jetstream().start().await;
    create_for(&session, nats.port(), &[]).await;
    let end = Arc::<AtomicBool>::default();
    let mut users = Vec::new();
    for number in 0..SESSIONS {
        let (session, end) = (pg.connect().await, Arc::clone(&end));
        users.push(tokio::spawn(async move {
            let mut calls = 0;
            while !end.load(Ordering::Relaxed) {
                let put = format!("SELECT nats_put_file('files', '{number}', 'content')");
                run(&session, &put).await;
                run(&session, &format!("SELECT nats_get_file('files', '{number}')")).await;
                run(
                    &session,
                    &format!("SELECT nats_get_file_info('files', '{number}')"),
                )
                .await;
                calls += 3;
            }
            calls
        }));
    }
    for host in ["localhost", "127.0.0.1"].repeat(100) {
        run(&session, &alter(&[("SET host", host)])).await;
        run(&session, RELOAD).await;
    }
    end.store(true, Ordering::Relaxed);
    for user in users {
        assert!(user.await.expect("no call that fails") > 10);
    }
}

// Reloads of several sessions at the same time do not get into each other's way.
#[tokio::test]
async fn concurrent_reloads_lose_nothing() {
    let (pg, session) = ready().await;
    let nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[]).await;
    let witness = Witness::start(&nats).await;
    let publishers = Publishers::start(&pg, 1000).await;
    let mut reloaders = Vec::new();
    for _ in 0..4 {
        let session: Session = pg.connect().await;
        reloaders.push(tokio::spawn(async move {
            for _ in 0..3 {
                run(&session, FORCE).await;
            }
        }));
    }
    for reloader in reloaders {
        reloader.await.expect("reloads that do not fail");
    }
    let sent = publishers.finish().await;
    let [seen] = Witness::finish([witness], sent.iter().sum()).await;
    complete(&seen, &sent);
    message_arrives(&session, &nats).await;
}

// Moving house: each message arrives at one of the two servers, the earlier ones at the old one.
#[tokio::test]
async fn moving_to_another_server_loses_nothing() {
    let (pg, session) = ready().await;
    let (one, other) = (NatsServer::start().await, NatsServer::start().await);
    create_for(&session, one.port(), &[]).await;
    let (at_one, at_other) = (Witness::start(&one).await, Witness::start(&other).await);
    let publishers = Publishers::start(&pg, 1000).await;
    for nats in [&other, &one, &other] {
        message_arrives(&session, if nats.port() == one.port() { &other } else { &one }).await;
        run(&session, &alter(&[("SET port", &nats.port().to_string())])).await;
        run(&session, RELOAD).await;
    }
    message_arrives(&session, &other).await;
    let sent = publishers.finish().await;
    let [first, second] = Witness::finish([at_one, at_other], sent.iter().sum()).await;
    let mut all = first;
    for (subject, numbers) in second {
        let known = all.entry(subject).or_default();
        assert!(numbers.is_sorted() && known.is_sorted(), "out of order");
        known.extend(numbers);
        known.sort_unstable();
    }
    complete(&all, &sent);
}
