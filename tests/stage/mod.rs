//! What the tests of the SQL surface share: one PostgreSQL with the extension, one nats-server, and a foreign server
//! `nats` that joins them; an outside subscriber, and reading single values.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures::StreamExt;
use tokio_postgres::types::FromSqlOwned;

use crate::support::*;

/// For whatever should come at once; only a failure waits so long.
pub const SOON: Duration = Duration::from_secs(15);

/// The two servers of a test.
pub struct Stage {
    pub pg: Postgres,
    pub nats: NatsServer,
}

impl Stage {
    /// With the library preloaded, and NATS as it is by default.
    pub async fn start() -> Self {
        Self::with(NatsServer::builder(), Postgres::builder()).await
    }

    /// With JetStream.
    pub async fn jetstream() -> Self {
        Self::with(NatsServer::builder().jetstream(), Postgres::builder()).await
    }

    pub async fn with(nats: NatsConfig, pg: PostgresBuilder) -> Self {
        let (nats, pg) = tokio::join!(nats.start(), pg.start());
        let stage = Self { pg, nats };
        let session = stage.pg.connect().await;
        run(&session, "CREATE EXTENSION litmus_pgnats").await;
        create_server(&session, "nats", stage.nats.port(), "").await;
        stage
    }

    /// An outside subscriber; it has arrived when this returns.
    pub async fn subscribe(&self, subject: &str) -> Inbox {
        let client = self.nats.client().await;
        let subscriber = client.subscribe(subject.to_owned()).await.expect("subscribe");
        round_trip(&client).await;
        Inbox { client, subscriber }
    }

    /// An outside responder that answers each request on `subject` with what `answer` makes of it.
    pub async fn respond(&self, subject: &str, answer: impl Fn(&Message) -> Vec<u8> + Send + 'static) {
        let mut inbox = self.subscribe(subject).await;
        tokio::spawn(async move {
            while let Some(request) = inbox.subscriber.next().await {
                inbox.answer(&request, answer(&request)).await;
            }
        });
    }
}

/// Defines a foreign server for a port of 127.0.0.1; `more` are further options, say `, token 'x'`.
pub async fn create_server(session: &Session, name: &str, port: u16, more: &str) {
    let sql = format!(
        "CREATE SERVER {name} FOREIGN DATA WRAPPER litmus_pgnats_fdw \
         OPTIONS (host '127.0.0.1', port '{port}'{}{more})",
        world::server_options()
    );
    run(session, &sql).await;
}

/// Runs statements; panics with PostgreSQL's error when one fails.
#[track_caller]
pub fn run<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let outcome = session.batch_execute(sql).await;
        outcome.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}"));
    }
}

/// The one value that a query returns.
#[track_caller]
pub fn value<'a, T: FromSqlOwned>(session: &'a Session, sql: &'a str) -> impl Future<Output = T> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let row = session.query_one(sql, &[]).await;
        row.unwrap_or_else(|e| panic!("{caller}: {sql}: {e:?}")).get(0)
    }
}

/// The error that a statement ends with.
#[track_caller]
pub fn failure<'a>(session: &'a Session, sql: &'a str) -> impl Future<Output = Report> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        match session.batch_execute(sql).await {
            Ok(()) => panic!("{caller}: {sql}: no error"),
            Err(error) => db_error(&error),
        }
    }
}

/// A subscription of an outside client.
pub struct Inbox {
    client: Client,
    subscriber: Subscriber,
}

impl Inbox {
    /// The next message; panics when none comes.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Message> {
        let caller = std::panic::Location::caller();
        async move {
            let next = tokio::time::timeout(SOON, self.subscriber.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{caller}: no message in {SOON:?}"));
            next.expect("the subscription is open")
        }
    }

    /// The next message's payload as text.
    #[track_caller]
    pub fn text(&mut self) -> impl Future<Output = String> {
        let next = self.next();
        async move { String::from_utf8(next.await.payload.into()).expect("UTF-8") }
    }

    /// The payloads up to the message `end`, as text.
    pub async fn texts_until(&mut self, end: &str) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            match self.text().await {
                text if text == end => return texts,
                text => texts.push(text),
            }
        }
    }

    /// Replies to a request of this inbox.
    pub async fn answer(&self, request: &Message, payload: Vec<u8>) {
        self.answer_with(request, async_nats::HeaderMap::new(), payload)
            .await;
    }

    /// Replies with headers.
    pub async fn answer_with(&self, request: &Message, headers: async_nats::HeaderMap, payload: Vec<u8>) {
        let to = request.reply.clone().expect("a request has a reply subject");
        let sent = if headers.is_empty() {
            self.client.publish(to, payload.into()).await
        } else {
            self.client
                .publish_with_headers(to, headers, payload.into())
                .await
        };
        sent.expect("reply");
        self.client.flush().await.expect("flush the reply");
    }

    /// Returns when the server has taken in what this client sent, replies above all.
    pub async fn round_trip(&self) {
        round_trip(&self.client).await;
    }
}
