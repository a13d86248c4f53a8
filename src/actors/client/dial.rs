//! Connects to one host: its name, TCP, the server's INFO, TLS, and the CONNECT. In the actor thread.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::interface::{Candidate, InboxState, SILENT, unreachable};
use super::requests::PendingRequests;
use super::shared::REPLIES;
use super::{login, tls};
use crate::error::{Error, Kind, Result};
use crate::findings;
use crate::nats::server_error::ServerError;
use crate::nats::wire::{self, ServerInfo, ServerOp};
use crate::settings::options::Host;
use crate::settings::{Credential, Settings};

/// A connection to a server, with or without TLS.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A server that has let the client in.
pub(super) struct Dialed {
    pub(super) stream: Socket,
    /// What was read and is not understood yet.
    pub(super) input: BytesMut,
    pub(super) info: ServerInfo,
    /// Bytes that were read in all.
    pub(super) read: usize,
    /// The requests of the client, whose replies are subscribed to.
    pub(super) requests: PendingRequests,
}

/// Connects to a host, and subscribes to the replies to requests.
pub(super) async fn dial(settings: &Settings, to: &Candidate, name: &str, limit: Duration) -> Result<Dialed> {
    let host = &to.host;
    let failed = |error: io::Error| unreachable(host, error.to_string());
    let addresses = tokio::net::lookup_host((host.name.as_str(), host.port))
        .await
        .map_err(failed)?;
    let tcp = reach(addresses.collect(), limit).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let mut stream = Socket::Plain(tcp);
    if settings.tls.first {
        stream = secure(settings, stream, to).await?;
    }
    let mut talk = Talk {
        stream,
        input: BytesMut::new(),
        read: 0,
        host,
    };
    let ServerOp::Info(info) = talk.hear().await? else {
        return Err(unreachable(host, "what answers there is no NATS server".into()));
    };
    let mut info = *info;
    if !settings.tls.first && (info.tls_required || settings.wants_tls()) {
        if !(info.tls_required || info.tls_available) {
            return Err(tls_failed(host, &io::Error::other("the server offers no TLS")));
        }
        // A server that has no place says so in the clear, right behind its INFO.
        if let Ok(Some(ServerOp::Error(text))) = wire::read(&mut talk.input) {
            return Err(not_let_in(settings, host, &info, &text));
        }
        talk.stream = secure(settings, talk.stream, to).await?;
        talk.input.clear();
    }
    let connect = login::connect(settings, name, &info).await?;
    let mut hello = Vec::new();
    wire::connect(&mut hello, &connect);
    let requests = PendingRequests::new(&settings.inbox_prefix);
    wire::subscribe(&mut hello, &requests.wildcard(), None, REPLIES);
    hello.extend_from_slice(wire::PING);
    // A server that does not let the client in may have closed the connection, but has said why.
    let said = talk.say(&hello).await;
    loop {
        let heard = talk.hear().await;
        match heard.map_err(|error| said.clone().err().unwrap_or(error))? {
            ServerOp::Pong => break,
            ServerOp::Info(newer) => info = *newer,
            ServerOp::Error(text) => match ServerError::of(&text) {
                ServerError::SubscribeForbidden(..) => requests.set_inbox(InboxState::Forbidden),
                ServerError::TooManySubscriptions => requests.set_inbox(InboxState::TooManySubscriptions),
                _ => return Err(not_let_in(settings, host, &info, &text)),
            },
            ServerOp::Ping => talk.say(wire::PONG).await?,
            ServerOp::Ok | ServerOp::Message(..) => {}
        }
    }
    Ok(Dialed {
        stream: talk.stream,
        input: talk.input,
        info,
        read: talk.read,
        requests,
    })
}

/// Connects to the first address that answers. Each has an equal share of the time, because one that is dead says
/// nothing.
async fn reach(addresses: Vec<SocketAddr>, limit: Duration) -> io::Result<TcpStream> {
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failure = io::Error::other("the name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::Error::other("timed out"),
        }
    }
    Err(failure)
}

/// The conversation with a server before it has let the client in.
struct Talk<'a> {
    stream: Socket,
    input: BytesMut,
    read: usize,
    host: &'a Host,
}

impl Talk<'_> {
    /// Waits for what the server says next.
    async fn hear(&mut self) -> Result<ServerOp> {
        loop {
            match wire::read(&mut self.input) {
                Ok(Some(op)) => return Ok(op),
                Ok(None) => {}
                Err(_) if self.read == self.input.len() => {
                    return Err(unreachable(
                        self.host,
                        "what answers there is no NATS server".into(),
                    ));
                }
                Err(wire::Malformed(what)) => {
                    return Err(unreachable(self.host, format!("the server sent {what}")));
                }
            }
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => {
                    let closed = unreachable(self.host, "the connection was closed".into());
                    return Err(if self.read == 0 {
                        closed.hint(SILENT)
                    } else {
                        closed
                    });
                }
                Ok(count) => self.read += count,
                Err(error) => return Err(broken(self.host, &error)),
            }
        }
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<()> {
        let said = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        said.await.map_err(|error: io::Error| broken(self.host, &error))
    }
}

/// The error for a connection that broke before the server had let the client in. TLS 1.3 tells of a refused client
/// certificate only when something is read.
fn broken(host: &Host, error: &io::Error) -> Error {
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls {
        tls_failed(host, error)
    } else {
        unreachable(host, error.to_string())
    }
}

fn tls_failed(host: &Host, error: &io::Error) -> Error {
    let message = format!("TLS handshake with NATS server {host} failed");
    Error::new(Kind::TlsFailed, message).cause(&error.to_string())
}

/// Encrypts the connection.
async fn secure(settings: &Settings, stream: Socket, to: &Candidate) -> Result<Socket> {
    let Socket::Plain(tcp) = stream else {
        return Ok(stream);
    };
    let host = &to.host;
    let name = ServerName::try_from(to.tls_name.clone())
        .map_err(|error| tls_failed(host, &io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::new(tls::configuration(&settings.tls).await?));
    match connector.connect(name, tcp).await {
        Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
        Err(error) => {
            let failed = tls_failed(host, &error);
            let is_plain = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            Err(match is_plain {
                Some(rustls::Error::InvalidMessage(_)) if settings.tls.first => failed.hint(
                    "The server seems to begin without TLS: remove the option \"tls_first\", or set handshake_first in \
                     the server's configuration.",
                ),
                _ => failed,
            })
        }
    }
}

/// The error of a server that does not let the client in.
fn not_let_in(settings: &Settings, host: &Host, info: &ServerInfo, text: &str) -> Error {
    let text = findings::line(text);
    match ServerError::of(&text) {
        ServerError::AuthenticationRefused => {
            let refused = Error::new(
                Kind::AuthenticationRefused,
                format!("NATS server {host} refused the authentication"),
            )
            .cause(&text);
            // A server that knows users by their keys alone sends a nonce to sign.
            let has_key = matches!(
                settings.credential,
                Credential::File(_) | Credential::Inline(_) | Credential::NkeyFile(_) | Credential::Nkey(_)
            );
            if info.nonce.is_empty() || has_key {
                return refused;
            }
            refused.hint(
                "The server knows users by JWTs or NKeys: set the option \"credentials_path\" to a .creds file, or \
                 \"nkey_seed_path\", in the foreign server or the user mapping.",
            )
        }
        ServerError::TooManyConnections => Error::new(
            Kind::TooManyConnections,
            format!("NATS server {host} takes no more connections"),
        )
        .cause(&text)
        .hint("The limit is one of the NATS server, the account or the user (max_connections)."),
        _ => unreachable(host, format!("the server says: {text}")),
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
