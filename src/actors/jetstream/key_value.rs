//! The actor of key-value buckets (ADR-8), one for each connection; `bucket.rs` carries the calls out. In the actor
//! thread.

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::watch;

use super::api::Api;
use super::bucket::Bucket;
use super::interface::{InBucket, unless_cancelled};
use crate::actors::base::tasks::{self, Vital};
use crate::actors::connection::status::ConnectionStatus;
use crate::channel::message::Reply;
use crate::error::Result;

/// The actor of a connection's key-value buckets.
pub struct KeyValue {
    status: watch::Receiver<ConnectionStatus>,
    _vital: Vital,
}

impl KeyValue {
    pub fn new(status: watch::Receiver<ConnectionStatus>) -> Self {
        KeyValue {
            status,
            _vital: Vital::new("key-value buckets"),
        }
    }
}

impl Actor for KeyValue {
    type Context = Context<Self>;
}

impl Handler<InBucket> for KeyValue {
    type Result = ResponseFuture<Option<Result<(Reply, Bytes)>>>;

    fn handle(&mut self, asked: InBucket, _: &mut Self::Context) -> Self::Result {
        let InBucket {
            domain,
            timeout,
            bucket,
            call,
            value,
            cancel,
        } = asked;
        let Some(api) = Api::of(&self.status, domain, timeout) else {
            return Box::pin(std::future::ready(None));
        };
        Box::pin(async move {
            let bucket = Bucket { api, bucket };
            let answer = unless_cancelled(&cancel, bucket.answer(call, value));
            Some(tasks::answer("call of a bucket", answer).await)
        })
    }
}
