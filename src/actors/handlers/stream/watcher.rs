//! Looks after a durable subscription that takes no messages, because it was paused or has stopped: asks now and then
//! how many messages wait for it. A task of the actor thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::handlers::core_subscriber::next_client;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer;

/// Longest wait for JetStream's answer.
const API_LIMIT: Duration = Duration::from_secs(5);
/// Time between two questions.
const INTERVAL: Duration = Duration::from_secs(5);

/// Asks until `stop` is cancelled.
pub async fn run(handler: Arc<MessageHandler>, connection: ConnectionHandle, stop: CancellationToken) {
    let mut status = connection.status.clone();
    while next_client(&mut status, &stop).await.is_some() {
        tokio::select! {
            () = look(&handler, &connection) => {}
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Asks once. What cannot be learned now stays as it was.
pub async fn look(handler: &MessageHandler, connection: &ConnectionHandle) {
    let definition = handler.definition();
    let Some(asked) = &definition.consumer else {
        return;
    };
    let Some(api) = Api::of(&connection.status, asked.domain.clone(), API_LIMIT) else {
        return;
    };
    let left = consumer::left_over(&api, &definition.subject, &asked.durable).await;
    if let Ok(Some((undelivered, oldest_us))) = left {
        let mut changing = handler.lock();
        changing.undelivered = Some(undelivered);
        changing.oldest_undelivered_us = oldest_us;
    }
}
