//! What the tests of durable subscriptions share. A test file says `mod scene; mod handlers; mod events;`.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

pub use async_nats::jetstream::stream::RetentionPolicy;
use async_nats::jetstream::{self, stream};

use crate::handlers::*;
use crate::scene::*;
use crate::support::*;

pub const ALL: &str = "litmus_pgnats.stream_subscriptions";

/// A stream `events` of `events.>`, and who publishes to it.
pub struct Events(pub jetstream::Context);

impl Events {
    pub async fn start(scene: &Scene, retention: RetentionPolicy) -> Events {
        let events = Events(jetstream::new(scene.nats.client().await));
        events.create(retention).await;
        events
    }

    pub async fn create(&self, retention: RetentionPolicy) {
        let config = stream::Config {
            name: "events".into(),
            subjects: vec!["events.>".into()],
            retention,
            ..Default::default()
        };
        self.0.create_stream(config).await.expect("create a stream");
    }

    pub async fn say(&self, subject: &str, payload: &str) {
        let sent = self
            .0
            .publish(subject.to_owned(), payload.to_owned().into())
            .await;
        sent.expect("publish").await.expect("an acknowledgement");
    }

    pub async fn count_off(&self, numbers: std::ops::RangeInclusive<usize>) {
        let mut acks = Vec::new();
        for n in numbers {
            let sent = self.0.publish("events.n", n.to_string().into()).await;
            acks.push(sent.expect("publish").into_future());
        }
        futures::future::try_join_all(acks)
            .await
            .expect("acknowledgements");
    }

    /// What the server says of the only consumer.
    pub async fn consumer(&self) -> jetstream::consumer::Info {
        use futures::TryStreamExt;
        let stream = self.0.get_stream("events").await.expect("the stream");
        let all: Vec<_> = stream.consumers().try_collect().await.expect("consumers");
        let [one] = all.try_into().unwrap_or_else(|all| panic!("{all:?}"));
        one
    }
}

pub async fn scene() -> (Scene, Session, Events) {
    scene_of(RetentionPolicy::Limits).await
}

pub async fn scene_of(retention: RetentionPolicy) -> (Scene, Session, Events) {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let events = Events::start(&scene, retention).await;
    (scene, session, events)
}

/// Waits until all durable subscriptions are in this state.
pub async fn until(session: &Session, state: &str) {
    let sql = format!("SELECT state || coalesce(': ' || problem, '') FROM {ALL}");
    eventually(LONG, async || {
        let states = texts(session, &sql).await;
        let there = !states.is_empty() && states.iter().all(|seen| seen.split(':').next() == Some(state));
        if there { Ok(()) } else { Err(states) }
    })
    .await;
}

/// Ends the runtime worker; its successor knows what the database knows.
pub async fn restart_runtime(scene: &Scene, session: &Session) {
    let old = scene.runtime().await;
    run(session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    until(session, "live").await;
}
