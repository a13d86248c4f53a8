//! The messages that the JetStream actors take. Pure.

use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::actors::metrics::transfers::TransferProgress;
use crate::channel::message::{BucketCall, Reply, StoreCall};
use crate::error::Result;
use crate::nats::headers::Headers;

/// An acknowledged publish; `None` while the connection is not up.
#[derive(Message)]
#[rtype(result = "Option<Result<(Reply, Bytes)>>")]
pub struct PublishToStream {
    pub domain: Option<String>,
    pub timeout: Duration,
    pub subject: String,
    pub headers: Headers,
    pub payload: Bytes,
}

/// A call to a bucket; `None` while the connection is not up.
#[derive(Message)]
#[rtype(result = "Option<Result<(Reply, Bytes)>>")]
pub struct InBucket {
    pub domain: Option<String>,
    pub timeout: Duration,
    pub bucket: String,
    pub call: BucketCall,
    /// For a put.
    pub value: Bytes,
}

/// The ends of the channels of an object that streams through a call.
pub struct Parts {
    /// Where the parts of a put come from, and then their digest; an end before all are there is a cancel.
    pub upload: mpsc::Receiver<Bytes>,
    /// Where the size and the parts of a get go to.
    pub download: mpsc::Sender<(Reply, Bytes)>,
}

/// A call to a store; gives back the parts while the connection is not up.
#[derive(Message)]
#[rtype(result = "std::result::Result<Result<(Reply, Bytes)>, Parts>")]
pub struct InStore {
    pub domain: Option<String>,
    pub timeout: Duration,
    pub store: String,
    pub call: StoreCall,
    pub parts: Parts,
    pub progress: TransferProgress,
}
