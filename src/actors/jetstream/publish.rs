//! The actor of acknowledged publishes, one for each connection. In the actor thread.

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::watch;

use super::api::Api;
use super::interface::{PublishToStream, unless_cancelled};
use crate::actors::base::tasks::{self, Vital};
use crate::actors::connection::status::ConnectionStatus;
use crate::channel::message::Reply;
use crate::error::Result;

/// The actor of a connection's acknowledged publishes.
pub struct JetStream {
    status: watch::Receiver<ConnectionStatus>,
    _vital: Vital,
}

impl JetStream {
    pub fn new(status: watch::Receiver<ConnectionStatus>) -> Self {
        JetStream {
            status,
            _vital: Vital::new("publishes to streams"),
        }
    }
}

impl Actor for JetStream {
    type Context = Context<Self>;
}

impl Handler<PublishToStream> for JetStream {
    type Result = ResponseFuture<Option<Result<(Reply, Bytes)>>>;

    fn handle(&mut self, call: PublishToStream, _: &mut Self::Context) -> Self::Result {
        let PublishToStream {
            domain,
            timeout,
            subject,
            headers,
            payload,
            cancel,
        } = call;
        let Some(api) = Api::of(&self.status, domain, timeout) else {
            return Box::pin(std::future::ready(None));
        };
        Box::pin(async move {
            let published = api.publish_plain(subject, headers, payload);
            let published = unless_cancelled(&cancel, published);
            let sequence = tasks::answer("publish to a stream", published).await;
            Some(sequence.map(|sequence| (Reply::Number(sequence), Bytes::new())))
        })
    }
}
