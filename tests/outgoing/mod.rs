//! What the tests of the outbox share. A test file says `mod scene; mod handlers; mod outgoing;`.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use crate::handlers::*;
use crate::scene::*;
use crate::support::*;

/// What an outbox relay is called in pg_stat_activity.
pub const OUTBOX_RELAY: &str = "litmus_pgnats outbox relay";
/// Messages, and commits, that wait; and dead letters.
pub const WAITING: &str = "SELECT count(*) FROM litmus_pgnats.outbox";
pub const COMMITS: &str = "SELECT count(*) FROM litmus_pgnats.outbox_batch";
pub const DEAD: &str = "SELECT count(*) FROM litmus_pgnats.dead_letter";

/// Writes a message for the stream [`Kept`] into the outbox.
pub fn put(payload: impl std::fmt::Display) -> String {
    put_to("kept.a", payload)
}

pub fn put_to(subject: &str, payload: impl std::fmt::Display) -> String {
    format!("SELECT nats_publish_text_outbox('{subject}', '{payload}')")
}

/// A scene with a stream, and a session of the superuser.
pub async fn scene_with(pg: PostgresBuilder) -> (Scene, Session, Kept) {
    let nats = NatsServer::builder().jetstream().start().await;
    let kept = Kept::start(&nats).await;
    let scene = Scene::with(pg, nats, "").await;
    let session = scene.pg.connect().await;
    (scene, session, kept)
}

/// Waits until nothing is in the outbox.
#[track_caller]
pub fn until_empty(session: &Session) -> impl Future<Output = ()> {
    eventually_eq(LONG, (0, 0), async || {
        (number(session, WAITING).await, number(session, COMMITS).await)
    })
}
