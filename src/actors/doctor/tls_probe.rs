//! Probes a NATS server: reads the INFO line that it begins with, and makes a TLS handshake without sending a
//! credential, to see the certificate, valid or not. In the actor thread.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::actors::client::interface::{SILENT, unreachable};
use crate::actors::client::tls;
use crate::error::{Error, Kind, Result};
use crate::settings::options::Host;
use crate::settings::{Tls, Verify};

/// Longest wait for a server's INFO, before it is taken for one that begins with TLS. Such a server ends a connection
/// after two seconds without TLS.
const GREETING: Duration = Duration::from_millis(1500);
/// Longest INFO line that is read, in bytes.
const MAX_INFO: u64 = 64 * 1024;

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
    let mut stream = BufReader::new(stream.map_err(failed)?);
    let mut line = String::new();
    let mut greeting = (&mut stream).take(MAX_INFO);
    // A server may wait for the handshake before it says anything.
    let greets = async {
        if tls.first {
            return Ok(true);
        }
        let read = timeout(GREETING.min(limit / 2), greeting.read_line(&mut line)).await;
        read.map_or(Ok(true), |read| read.map(|_| false))
    };
    let is_silent = greets.await.map_err(failed)?;
    let info = line
        .strip_prefix("INFO ")
        .and_then(|info| serde_json::from_str::<Value>(info).ok());
    let has = |name: &str| {
        let flag = info.as_ref().and_then(|info| info.get(name));
        flag.and_then(Value::as_bool) == Some(true)
    };
    let (server, wants_tls) = match (&info, is_silent) {
        (Some(info), _) => {
            let text = |name: &str| info.get(name).and_then(Value::as_str).unwrap_or("unknown");
            let server = format!("{} ({})", text("version"), text("server_name"));
            (server, has("tls_required"))
        }
        (None, true) if line.is_empty() => ("that begins with TLS".into(), true),
        (None, _) => return Err(unreachable(host, "what answers there is no NATS server".into())),
    };
    let offers_tls = is_silent || wants_tls || has("tls_available");
    let tls = if !offers_tls && tls.verify != Verify::Platform {
        Some(Err(Error::new(Kind::TlsFailed, "the NATS server offers no TLS")))
    } else if wants_tls || tls.verify != Verify::Platform {
        let handshake = timeout(limit, shake_hands(stream.into_inner(), host, tls)).await;
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
