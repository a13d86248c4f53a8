//! What the tests of faults start from: a PostgreSQL with the extension beside a nats-server, and how they look on.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer, stream};
use futures::StreamExt;

use crate::support::*;

/// What the runtime worker is called in pg_stat_activity.
pub const RUNTIME: &str = "litmus_pgnats runtime";
/// For what comes within milliseconds on an idle machine; the tests share theirs with others.
pub const SOON: Duration = Duration::from_secs(15);
/// What "at once" may take on a busy machine. The tests print what it took; the target for interrupts is 100 ms.
pub const PROMPT: Duration = Duration::from_secs(1);

/// A PostgreSQL whose only foreign server for NATS is `nats`.
pub struct Scene {
    pub pg: Postgres,
    pub nats: NatsServer,
}

impl Scene {
    pub async fn start() -> Self {
        Self::with(Postgres::builder(), NatsServer::start().await, "").await
    }

    /// With more options of the foreign server, say `, capacity '10'`.
    pub async fn with(pg: PostgresBuilder, nats: NatsServer, options: &str) -> Self {
        let pg = pg.start().await;
        pg.sql(&create_server(nats.port(), options)).await;
        Scene { pg, nats }
    }

    /// A session that has its NATS connection already.
    pub async fn warm_session(&self) -> Session {
        let session = self.pg.connect().await;
        run(&session, "SELECT nats_publish_text('warm.up', '')").await;
        // The runtime worker has taken the message before it answers.
        run(&session, "SELECT nats_get_server_info()").await;
        session
    }

    /// The runtime worker's process.
    pub async fn runtime(&self) -> i32 {
        eventually(SOON, async || self.pg.worker_pid(RUNTIME).await).await
    }

    /// The runtime worker's process once it is another than `old` and answers.
    pub async fn next_runtime(&self, old: i32) -> i32 {
        let pid = eventually(SOON, async || {
            self.pg.worker_pid(RUNTIME).await.filter(|&pid| pid != old)
        })
        .await;
        let socket = self.pg.data_dir().join("pg_stat_tmp/litmus_pgnats.sock");
        eventually(SOON, async || socket.exists()).await;
        pid
    }

    /// Waits until the session of this process waits for the runtime worker, and not just for a moment.
    pub async fn until_waiting(&self, pid: i32) {
        let watcher = self.pg.connect().await;
        let sql =
            "SELECT wait_event_type IS NOT DISTINCT FROM 'Extension' FROM pg_stat_activity WHERE pid = $1";
        let mut seen = 0;
        eventually(SOON, async || {
            let row = watcher
                .query_one(sql, &[&pid])
                .await
                .expect("a look at a session");
            seen = if row.get::<_, bool>(0) { seen + 1 } else { 0 };
            seen == 5
        })
        .await;
    }

    /// Answers on subject `echo` with the request's payload, until the test ends.
    pub async fn echo(&self) {
        let client = self.nats.client().await;
        let mut requests = client.subscribe("echo").await.expect("subscribe");
        round_trip(&client).await;
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                if let Some(reply) = request.reply {
                    let _ = client.publish(reply, request.payload).await;
                }
            }
        });
    }

    /// Somebody who takes requests on `subject` and leaves it to the test to answer.
    pub async fn silent_responder(&self, subject: &'static str) -> async_nats::Subscriber {
        let client = self.nats.client().await;
        let requests = client.subscribe(subject).await.expect("subscribe");
        round_trip(&client).await;
        requests
    }
}

/// The extension, and its foreign server on this port of 127.0.0.1.
pub fn create_server(port: u16, options: &str) -> String {
    format!(
        "CREATE EXTENSION litmus_pgnats; CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw \
         OPTIONS (host '127.0.0.1', port '{port}'{}{options})",
        world::server_options()
    )
}

/// Runs statements that have to succeed.
#[track_caller]
pub fn run<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let outcome = session.batch_execute(sql).await;
        outcome.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}"));
    }
}

/// Runs statements that have to fail; what the server said, and how long it took.
#[track_caller]
pub fn refused<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = (Report, Duration)> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        match session.batch_execute(sql).await {
            Ok(()) => panic!("{caller}: {sql} succeeded"),
            Err(error) => (db_error(&error), began.elapsed()),
        }
    }
}

/// The one text that a query returns.
#[track_caller]
pub fn text<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = String> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let row = session.query_one(sql, &[]).await;
        row.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}")).get(0)
    }
}

/// Whether a condition holds; not where there is no row.
#[track_caller]
pub fn holds<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = bool> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let condition = format!("SELECT coalesce(({sql}), false)");
        let row = session.query_one(&condition, &[]).await;
        row.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}")).get(0)
    }
}

/// Waits until a condition holds.
#[track_caller]
pub fn until_holds<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = ()> + 'a {
    eventually(SOON, async move || holds(session, sql).await)
}

/// That the session's calls work: a request gets its own answer. Needs [`Scene::echo`].
#[track_caller]
pub fn works<'a>(session: &'a Session, word: &'a str) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let row = session
            .query_one("SELECT nats_request_text('echo', $1, 5000)", &[&word])
            .await;
        let answer: String = row
            .unwrap_or_else(|e| panic!("{caller}: request {word}: {e:?}"))
            .get(0);
        assert_eq!(answer, word, "{caller}");
    }
}

/// Everything published to `kept.>`, in the order in which NATS got it: a stream, which outlives a kill of NATS.
pub struct Kept(jetstream::Context);

impl Kept {
    pub async fn start(nats: &NatsServer) -> Self {
        let kept = Kept(jetstream::new(nats.client().await));
        let config = stream::Config {
            name: "kept".into(),
            subjects: vec!["kept.>".into()],
            ..Default::default()
        };
        kept.0.create_stream(config).await.expect("create a stream");
        kept
    }

    /// The payloads, when there are at least `count`; panics if they do not come.
    pub async fn payloads(&self, count: usize) -> Vec<String> {
        let stored = eventually(SOON, async || {
            let stream = self.0.get_stream("kept").await.map_err(|e| e.to_string())?;
            let stored = stream.cached_info().state.messages;
            if stored >= count as u64 {
                Ok((stream, stored))
            } else {
                Err(format!("{stored} of {count}"))
            }
        });
        let (stream, stored) = stored.await;
        let config = consumer::pull::OrderedConfig::default();
        let consumer = stream.create_consumer(config).await.expect("create a consumer");
        let messages = consumer.messages().await.expect("read a stream");
        let payload = async |message: Result<jetstream::Message, _>| {
            let message = message.expect("a kept message");
            String::from_utf8(message.payload.to_vec()).expect("text")
        };
        let all = messages.take(stored as usize).then(payload).collect();
        tokio::time::timeout(SOON, all)
            .await
            .expect("kept messages in time")
    }
}
