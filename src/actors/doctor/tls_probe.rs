//! Probes a NATS server: reads the INFO line that it begins with, and makes a TLS handshake without sending a
//! credential, to see the certificate, valid or not. In the actor thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::actors::client::interface::{SILENT, unreachable};
use crate::actors::client::tls;
use crate::error::{Error, Kind, Result};
use crate::nats::wire::{self, ServerInfo, ServerOp};
use crate::settings::options::Host;
use crate::settings::{Tls, Verify};

/// Longest wait for a server's INFO, before it is taken for one that begins with TLS. Such a server ends a connection
/// after two seconds without TLS.
const GREETING: Duration = Duration::from_millis(1500);

/// What a probe has found.
pub struct Probe {
    /// Version and name of the server, for people.
    pub server: String,
    /// The TLS handshake, or why it failed; `None` if neither the server nor the options want TLS.
    pub tls: Option<Result<Secured>>,
}

/// A TLS connection that was established.
pub struct Secured {
    /// Version of TLS, as `TLSv1.3`.
    pub version: String,
    /// The server's own certificate, as DER; `None` if it sent none.
    pub certificate: Option<Vec<u8>>,
}

/// Probes the first address that answers; each step may take `limit`. Fails if no address answers, or what answers is
/// no NATS server.
pub async fn greet(addresses: &[SocketAddr], host: &Host, tls: &Tls, limit: Duration) -> Result<Probe> {
    let failed = |error: std::io::Error| unreachable(host, error.to_string());
    let late = |_| unreachable(host, "no answer in time".into());
    let stream = timeout(limit, TcpStream::connect(addresses))
        .await
        .map_err(late)?;
    let mut stream = stream.map_err(failed)?;
    let greeting = if tls.first {
        Greeting::Silence
    } else {
        greeting(&mut stream, GREETING.min(limit / 2))
            .await
            .map_err(failed)?
    };
    let is_silent = matches!(greeting, Greeting::Silence);
    let (server, wants_tls, offers_tls) = match greeting {
        Greeting::Info(info) => {
            let server = format!("{} ({})", info.version, info.server_name);
            (server, info.tls_required, info.tls_required || info.tls_available)
        }
        Greeting::Silence => ("that begins with TLS".into(), true, true),
        Greeting::Other => return Err(unreachable(host, "what answers there is no NATS server".into())),
    };
    let tls = if !offers_tls && tls.verify != Verify::Platform {
        Some(Err(Error::new(Kind::TlsFailed, "the NATS server offers no TLS")))
    } else if wants_tls || tls.verify != Verify::Platform {
        let handshake = timeout(limit, shake_hands(stream, host, tls)).await;
        let late = || {
            Error::new(
                Kind::TlsFailed,
                format!("TLS handshake with NATS server {host} timed out"),
            )
        };
        let handshake = handshake.unwrap_or_else(|_| Err(late()));
        if is_silent && handshake.is_err() {
            let why = "it says nothing, and does not answer to TLS";
            return Err(unreachable(host, why.into()).hint(SILENT));
        }
        Some(handshake)
    } else {
        None
    };
    Ok(Probe { server, tls })
}

/// What a server says before anything is said to it.
enum Greeting {
    Info(Box<ServerInfo>),
    /// Nothing: a server may wait for the handshake.
    Silence,
    /// What no NATS server says.
    Other,
}

/// Reads what a server begins with; a server that has not said anything within `limit` is silent.
async fn greeting(stream: &mut TcpStream, limit: Duration) -> std::io::Result<Greeting> {
    let mut input = BytesMut::new();
    let info = timeout(limit, async {
        loop {
            match wire::read(&mut input) {
                Ok(Some(ServerOp::Info(info))) => return Ok(Greeting::Info(info)),
                Ok(Some(_)) | Err(_) => return Ok(Greeting::Other),
                Ok(None) => {}
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(Greeting::Other);
            }
        }
    });
    match info.await {
        Ok(greeting) => greeting,
        Err(_) if input.is_empty() => Ok(Greeting::Silence),
        Err(_) => Ok(Greeting::Other),
    }
}

async fn shake_hands(stream: TcpStream, host: &Host, tls: &Tls) -> Result<Secured> {
    let failed = |why: String| {
        Error::new(
            Kind::TlsFailed,
            format!("TLS handshake with NATS server {host} failed"),
        )
        .cause(&why)
    };
    let name = ServerName::try_from(host.name.clone()).map_err(|error| failed(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(tls::insecure(tls).await?));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    Ok(Secured {
        version: session
            .protocol_version()
            .and_then(|version| version.as_str().map(|name| name.replace('_', ".")))
            .unwrap_or_default(),
        certificate: certificate.map(|certificate| certificate.to_vec()),
    })
}
