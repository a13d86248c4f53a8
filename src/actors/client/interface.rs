//! What a client is made from, what it reports, and how it fails. Pure.

use crate::error::{Error, Kind};
use crate::nats::message::Message;
use crate::settings::options::Host;

/// What a client reports while it lives; called in the actor thread.
pub trait Observer: Clone + 'static {
    /// The connection has ended, for this reason; the client is of no more use.
    fn lost(&self, reason: &str);
    /// The server has reported something: [`NatsClient::take_news`] tells what.
    fn news(&self);
}

/// A host to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub host: Host,
    /// The name that the server's certificate has to have.
    pub tls_name: String,
}

impl From<Host> for Candidate {
    fn from(host: Host) -> Candidate {
        Candidate {
            tls_name: host.name.clone(),
            host,
        }
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The message is larger than the server or the account allows: the limit in bytes.
    TooLarge(u64),
    InvalidSubject,
    InvalidHeaders,
    /// The connection has ended.
    Lost,
}

/// Whether replies to requests can come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InboxState {
    #[default]
    Open,
    /// The user may not subscribe to the subject of the replies.
    Forbidden,
    /// The server, the account or the user has as many subscriptions as it may have.
    TooManySubscriptions,
}

/// Why a subscription is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscribeFailure {
    /// The user may not subscribe to the subject.
    Forbidden,
    /// The server, the account or the user has as many subscriptions as it may have.
    TooMany,
    /// The protocol cannot carry the subject or the queue group.
    Invalid,
    /// The connection has ended.
    Lost,
}

/// Why a request has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    NoResponders,
    TimedOut,
    /// The message is too large; the limit in bytes.
    TooLarge(u64),
    InvalidSubject,
    InvalidHeaders,
    /// The user may not publish to the subject.
    Forbidden,
    /// The server has refused the subscription of the replies, so none can come.
    NoInbox(InboxState),
    /// Something has answered, but not what was asked: this is the last answer.
    OtherReply(Box<Message>),
    /// The connection broke.
    ClientLost,
}

impl From<SendFailure> for RequestFailure {
    fn from(failure: SendFailure) -> RequestFailure {
        match failure {
            SendFailure::TooLarge(limit) => RequestFailure::TooLarge(limit),
            SendFailure::InvalidSubject => RequestFailure::InvalidSubject,
            SendFailure::InvalidHeaders => RequestFailure::InvalidHeaders,
            SendFailure::Lost => RequestFailure::ClientLost,
        }
    }
}

/// The error for a host that could not be connected to.
pub fn unreachable(host: &Host, why: String) -> Error {
    Error::new(
        Kind::Unreachable,
        format!("could not connect to NATS server {host}"),
    )
    .cause(&why)
}

/// Hint of the error for a server that says nothing.
pub const SILENT: &str = "Check the options \"host\" and \"port\", the network and the NATS server. A server with \
                          handshake_first says nothing before TLS, and wants the option \"tls_first\".";
