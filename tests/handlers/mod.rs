//! What the tests of subscriptions and responders share: a table that callbacks fill, messages from outside, and how
//! handlers and executors look in the extension's views and in NATS. A test file says `mod scene; mod handlers;`.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::time::Duration;

use async_nats::{Client, Message};

use crate::scene::*;
use crate::support::*;

/// What an executor is called in pg_stat_activity.
pub const EXECUTOR: &str = "litmus_pgnats executor";
/// For work that takes seconds; the tests share their machine with others.
pub const LONG: Duration = Duration::from_secs(90);

/// The table `got`, and the function `keep` that puts each message into it.
pub const KEEP: &str = "CREATE TABLE got (id bigint GENERATED ALWAYS AS IDENTITY, payload text,
                                          at timestamptz DEFAULT now());
     CREATE FUNCTION keep(msg bytea) RETURNS void LANGUAGE sql AS
       $$ INSERT INTO public.got (payload) VALUES (convert_from(msg, 'utf8')) $$;";
/// A role without privileges of its own, but those that a handler needs.
pub const SHOP: &str = "CREATE ROLE shop LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO shop;
     GRANT CREATE, USAGE ON SCHEMA public TO shop;";

const ALL: &str = "(TABLE litmus_pgnats.subscriptions UNION ALL TABLE litmus_pgnats.responders) h";

impl Scene {
    /// A scene with [`KEEP`], and a session of the superuser.
    pub async fn keeping() -> (Self, Session) {
        Self::keeping_with(Postgres::builder()).await
    }

    pub async fn keeping_with(pg: PostgresBuilder) -> (Self, Session) {
        let scene = Self::with(pg, NatsServer::start().await, "").await;
        let session = scene.pg.connect().await;
        run(&session, KEEP).await;
        (scene, session)
    }

    /// A database with the extension, the server `nats` and [`KEEP`]; a session of the superuser there.
    pub async fn database(&self, name: &str) -> Session {
        self.pg.sql(&format!("CREATE DATABASE {name}")).await;
        let session = self.pg.connect_as("postgres", name).await;
        run(&session, &create_server(self.nats.port(), "")).await;
        run(&session, KEEP).await;
        session
    }

    /// The executors' processes, oldest first.
    pub async fn executors(&self) -> Vec<i32> {
        self.pg.worker_pids(EXECUTOR).await
    }

    /// The executor that there is, once there is one alone.
    pub async fn executor(&self) -> i32 {
        eventually(SOON, async || match self.executors().await[..] {
            [pid] => Ok(pid),
            ref others => Err(others.to_vec()),
        })
        .await
    }

    /// The names of the databases that executors are connected to, one for each executor.
    pub async fn executor_databases(&self) -> Vec<String> {
        let sql =
            format!("SELECT datname FROM pg_stat_activity WHERE backend_type = '{EXECUTOR}' ORDER BY 1");
        let rows = self.pg.sql(&sql).await;
        rows.lines().map(str::to_owned).collect()
    }

    /// The subjects that clients of NATS are subscribed to, apart from those for replies; sorted.
    pub async fn subjects(&self) -> Vec<String> {
        let connz = self.nats.monitor("/connz?subs=1").await;
        let connections = connz["connections"].as_array().cloned().unwrap_or_default();
        let mut found: Vec<String> = connections
            .iter()
            .filter_map(|connection| connection["subscriptions_list"].as_array())
            .flatten()
            .filter_map(|subject| subject.as_str())
            .filter(|subject| !subject.starts_with("_INBOX"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    }

    /// Waits until nobody is subscribed to anything.
    #[track_caller]
    pub fn until_silent(&self) -> impl Future<Output = ()> {
        eventually_eq(SOON, Vec::<String>::new(), async || self.subjects().await)
    }

    /// Waits until the first executor runs a statement that waits in pg_sleep, and returns its process.
    pub async fn until_sleeping(&self) -> i32 {
        eventually(SOON, async || self.sleeping().await.first().copied()).await
    }

    /// The executors that wait in pg_sleep.
    pub async fn sleeping(&self) -> Vec<i32> {
        let sql = format!(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = '{EXECUTOR}' AND wait_event = 'PgSleep' \
             ORDER BY backend_start, pid"
        );
        let rows = self.pg.sql(&sql).await;
        rows.lines()
            .map(|pid| pid.parse().expect("a process id"))
            .collect()
    }
}

/// Subscribes, and waits until it is live.
#[track_caller]
pub fn subscribe<'a>(
    session: &'a Session,
    subject: &'a str,
    function: &'a str,
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let cast = if function.contains('(') {
            "regprocedure"
        } else {
            "regproc"
        };
        let sql = format!("SELECT nats_subscribe('{subject}', '{function}'::{cast})");
        let outcome = session.batch_execute(&sql).await;
        outcome.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}"));
        until_live(session, subject).await;
    }
}

/// Registers a responder, and waits until it is live.
#[track_caller]
pub fn respond<'a>(
    session: &'a Session,
    subject: &'a str,
    function: &'a str,
) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let sql = format!("SELECT litmus_pgnats_register_responder('{subject}', '{function}'::regproc)");
        let outcome = session.batch_execute(&sql).await;
        outcome.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}"));
        until_live(session, subject).await;
    }
}

/// Waits until there is a handler of this subject in the session's database, and all such are live.
#[track_caller]
pub fn until_live(session: &Session, subject: &str) -> impl Future<Output = ()> {
    until_state(session, subject, "live")
}

/// Waits until there is a handler of this subject in the session's database, and all such are in this state.
#[track_caller]
pub fn until_state(session: &Session, subject: &str, state: &str) -> impl Future<Output = ()> {
    let sql = format!("SELECT state || coalesce(': ' || problem, '') FROM {ALL} WHERE subject = '{subject}'");
    eventually(LONG, async move || {
        let states = texts(session, &sql).await;
        let there = !states.is_empty() && states.iter().all(|seen| seen.split(':').next() == Some(state));
        if there { Ok(()) } else { Err(states) }
    })
}

/// The texts in the first column.
#[track_caller]
pub fn texts<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = Vec<String>> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let rows = session.query(sql, &[]).await;
        let rows = rows.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// The one number that a query returns.
#[track_caller]
pub fn number<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = i64> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let row = session.query_one(sql, &[]).await;
        row.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}")).get(0)
    }
}

/// Waits until a query returns this one number.
#[track_caller]
pub fn until_number(session: &Session, expected: i64, sql: &str) -> impl Future<Output = ()> {
    eventually_eq(LONG, expected, async || number(session, sql).await)
}

/// What [`KEEP`] kept, in the order of its coming.
pub async fn got(session: &Session) -> Vec<String> {
    texts(session, "SELECT payload FROM got ORDER BY id").await
}

/// Waits until just this was kept.
#[track_caller]
pub fn until_got(session: &Session, expected: &[&str]) -> impl Future<Output = ()> {
    let expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
    eventually_eq(SOON, expected, async || got(session).await)
}

/// How the handlers of a subject fare, in sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub messages: i64,
    pub errors: i64,
    pub dropped: i64,
    pub queued: i64,
    pub queued_bytes: i64,
}

pub async fn counts(session: &Session, subject: &str) -> Counts {
    let sql = format!(
        "SELECT sum(messages)::bigint, sum(errors)::bigint, sum(dropped)::bigint, sum(queued)::bigint, \
         sum(queued_bytes)::bigint FROM {ALL} WHERE subject = '{subject}' HAVING count(*) > 0"
    );
    let row = session.query_one(&sql, &[]).await;
    let row = row.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    Counts {
        messages: row.get(0),
        errors: row.get(1),
        dropped: row.get(2),
        queued: row.get(3),
        queued_bytes: row.get(4),
    }
}

/// Waits until this many messages of the subject's handlers have failed.
#[track_caller]
pub fn until_errors(session: &Session, subject: &str, expected: i64) -> impl Future<Output = ()> {
    eventually_eq(LONG, expected, async || counts(session, subject).await.errors)
}

/// Publishes from outside; NATS has the message when this returns.
pub async fn say(client: &Client, subject: &str, payload: impl Into<Vec<u8>>) {
    publish(client, subject, payload.into()).await;
    round_trip(client).await;
}

/// Publishes from outside.
pub async fn publish(client: &Client, subject: &str, payload: Vec<u8>) {
    let sent = client.publish(subject.to_owned(), payload.into()).await;
    sent.unwrap_or_else(|e| panic!("publish to {subject}: {e}"));
}

/// Publishes the numbers of a range, each a message.
pub async fn count_off(client: &Client, subject: &str, numbers: std::ops::RangeInclusive<usize>) {
    for n in numbers {
        publish(client, subject, n.to_string().into()).await;
    }
    client.flush().await.expect("flush");
}

/// Asks from outside.
#[track_caller]
pub fn ask<'a>(
    client: &'a Client,
    subject: &'a str,
    payload: impl Into<Vec<u8>>,
) -> impl Future<Output = Message> + 'a {
    let caller = std::panic::Location::caller();
    let payload = payload.into();
    async move {
        let request = client.request(subject.to_owned(), payload.into());
        let reply = tokio::time::timeout(SOON, request).await;
        let reply = reply.unwrap_or_else(|_| panic!("{caller}: no reply on {subject} in {SOON:?}"));
        reply.unwrap_or_else(|e| panic!("{caller}: request to {subject}: {e}"))
    }
}

/// The payload of a reply that is no error, as text.
#[track_caller]
pub fn reply_text(reply: &Message) -> String {
    assert_eq!(service_error(reply), None);
    String::from_utf8(reply.payload.to_vec()).expect("a reply in UTF-8")
}

/// What a reply says in the headers of NATS's services: code and message.
pub fn service_error(reply: &Message) -> Option<(String, String)> {
    let headers = reply.headers.as_ref()?;
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let message = header("Nats-Service-Error")?;
    Some((header("Nats-Service-Error-Code").unwrap_or_default(), message))
}

/// The numbers as text.
pub fn numbers(range: std::ops::RangeInclusive<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}
