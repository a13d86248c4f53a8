//! The messages that the JetStream actors take. Pure.
//!
//! actix goes on with the answer to a message even if nobody waits for it any more. So each message carries a token by
//! which a session that gives its call up, say for a cancelled statement, ends the call in the actor too.

use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::actors::metrics::transfers::TransferProgress;
use crate::channel::message::{BucketCall, Reply, StoreCall};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;

/// An acknowledged publish. The answer is `None` while the connection is not up.
#[derive(Message)]
#[rtype(result = "Option<Result<(Reply, Bytes)>>")]
pub struct PublishToStream {
    /// In place of the connection's default domain.
    pub domain: Option<String>,
    /// Longest wait for each answer of JetStream.
    pub timeout: Duration,
    pub subject: String,
    pub headers: Headers,
    pub payload: Bytes,
    /// Cancelled when the session gives the call up.
    pub cancel: CancellationToken,
}

/// A call of a bucket. The answer is `None` while the connection is not up.
#[derive(Message)]
#[rtype(result = "Option<Result<(Reply, Bytes)>>")]
pub struct InBucket {
    /// In place of the connection's default domain.
    pub domain: Option<String>,
    /// Longest wait for each answer of JetStream.
    pub timeout: Duration,
    pub bucket: String,
    pub call: BucketCall,
    /// The value, for a put.
    pub value: Bytes,
    /// Cancelled when the session gives the call up.
    pub cancel: CancellationToken,
}

/// The actor's ends of the channels through which the object of a call is streamed.
pub struct Parts {
    /// Gives the parts of an object that is put, and then their SHA-256 digest; if the channel ends before, the put is
    /// given up.
    pub upload: mpsc::Receiver<Bytes>,
    /// Takes the size and the parts of an object that is got.
    pub download: mpsc::Sender<(Reply, Bytes)>,
}

/// A call of an object store. The answer is `Err` with the unused parts while the connection is not up.
#[derive(Message)]
#[rtype(result = "std::result::Result<Result<(Reply, Bytes)>, Parts>")]
pub struct InStore {
    /// In place of the connection's default domain.
    pub domain: Option<String>,
    /// Longest wait for each answer of JetStream.
    pub timeout: Duration,
    pub store: String,
    pub call: StoreCall,
    pub parts: Parts,
    pub progress: TransferProgress,
    /// Cancelled when the session gives the call up.
    pub cancel: CancellationToken,
}

/// Runs a call until it ends, or until the session gives it up: then it fails with `Interrupted`.
pub async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    let outcome = cancel.run_until_cancelled(call).await;
    // Nobody reads this error, because the session has forgotten the call.
    outcome.unwrap_or_else(|| Err(Error::new(Kind::Interrupted, "the call was given up")))
}
