//! An outside subscriber of the notifications of role changes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use serde_json::Value;

use super::LONG;
use crate::support::*;

/// How long nothing more must come after what was expected.
const QUIET: Duration = Duration::from_millis(500);

/// Keeps what is published to a subject.
pub struct News(Arc<Mutex<Vec<Value>>>);

impl News {
    pub async fn listen(client: &Client, subject: &'static str) -> Self {
        let mut messages = client.subscribe(subject).await.expect("subscribe");
        round_trip(client).await;
        let kept = Arc::<Mutex<Vec<Value>>>::default();
        let sink = Arc::clone(&kept);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                in_order(&text);
                let news = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                sink.lock().expect("no panic while keeping news").push(news);
            }
        });
        Self(kept)
    }

    /// All so far.
    pub fn all(&self) -> Vec<Value> {
        self.0.lock().expect("no panic while keeping news").clone()
    }

    /// Forgets all so far.
    pub fn forget(&self) {
        self.0.lock().expect("no panic while keeping news").clear();
    }

    /// Those of the server with this port.
    pub fn of(&self, port: u16) -> Vec<Value> {
        let all = self.all().into_iter();
        all.filter(|news| news["port"] == port).collect()
    }

    /// What they say of the role of the server with this port, oldest first.
    pub fn roles(&self, port: u16) -> Vec<String> {
        let role = |news: &Value| news["status"].as_str().unwrap_or("none").to_owned();
        self.of(port).iter().map(role).collect()
    }

    /// Waits until the server with this port has said just this.
    #[track_caller]
    pub fn until(&self, port: u16, roles: &[&str]) -> impl Future<Output = ()> {
        let expected: Vec<String> = roles.iter().map(|&role| role.to_owned()).collect();
        let arrived = eventually_eq(LONG, expected.clone(), async move || self.roles(port));
        async move {
            arrived.await;
            tokio::time::sleep(QUIET).await;
            assert_eq!(self.roles(port), expected, "all: {:?}", self.all());
        }
    }
}

/// The documented fields come first, in their order.
fn in_order(text: &str) {
    let places = ["\"status\"", "\"listen_addresses\"", "\"port\"", "\"name\""].map(|field| text.find(field));
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "the first fields of {text}"
    );
}
