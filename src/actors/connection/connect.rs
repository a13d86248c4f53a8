//! Makes a NATS client from settings: reads the secret files, sets up TLS, tries the hosts one after another, and
//! explains failures in this extension's own terms. In the actor thread; files are read in tokio's blocking threads.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};
use crate::settings::Secret;
use crate::settings::options::Host;
use crate::settings::{Credential, Settings, Tls, Verify};

/// Largest secret or certificate file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Time between PINGs; a server that has left two of them unanswered is given up.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Messages that may wait for async-nats's task, which owns the socket.
const CLIENT_CAPACITY: usize = 2048;

/// Messages that may wait for the task that reads a subscription. async-nats drops messages that have no room, so there
/// is room for all that its own task reads from the socket before other tasks get their turn (some 8 MB). The handler's
/// queue is what bounds waiting messages.
const SUBSCRIPTION_CAPACITY: usize = 1 << 20;

/// Message of the error when TLS cannot be set up on our side, before any handshake.
pub const NO_TLS_SETUP: &str = "could not set up TLS";

/// What a client reports while it lives; called in the actor thread.
pub trait Observer: Clone + Send + Sync + 'static {
    /// The connection broke; the client is of no more use.
    fn lost(&self);
    fn event(&self, event: Event);
}

/// Connects to the first host that accepts the connection, and returns the client with that host. `limit` is for all
/// hosts together, each of which has an equal share of it, name resolution included. If no host accepts, the error is
/// that of the first server which was reached, if any was.
pub async fn connect<O: Observer>(
    settings: &Settings,
    hosts: &[Host],
    name: &str,
    limit: Duration,
    observer: O,
) -> Result<(Client, Host)> {
    let each = limit / u32::try_from(hosts.len()).unwrap_or(u32::MAX).max(1);
    let mut failures = Vec::new();
    for host in hosts {
        match timeout(each, dial(settings, host, name, each, observer.clone())).await {
            Ok(Ok(client)) => return Ok((client, host.clone())),
            Ok(Err(error)) => failures.push(error),
            Err(_) => failures.push(unreachable(host, "timed out".into())),
        }
    }
    // The most telling failure is that of a server which was reached.
    let told = failures
        .iter()
        .position(|error| error.kind != Kind::Unreachable)
        .unwrap_or(0);
    match failures.into_iter().nth(told) {
        Some(error) => Err(error),
        None => Err(Error::new(Kind::Unreachable, "no NATS server is given")),
    }
}

async fn dial<O: Observer>(
    settings: &Settings,
    host: &Host,
    name: &str,
    limit: Duration,
    observer: O,
) -> Result<Client> {
    let established = Arc::new(AtomicBool::new(false));
    let lifeline = Lifeline {
        established: established.clone(),
        observer: observer.clone(),
    };
    let options = ConnectOptions::new()
        .name(name)
        .connection_timeout(limit)
        .request_timeout(None)
        .ping_interval(PING_INTERVAL)
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .ignore_discovered_servers()
        .reconnect_delay_callback(move |_| lifeline.before_attempt())
        .event_callback(move |event| {
            observer.event(event);
            std::future::ready(())
        });
    let options = with_credential(options, &settings.credential).await?;
    let options = with_tls(options, &settings.tls).await?;
    let client = options
        .connect(host.to_string())
        .await
        .map_err(|error| explain(host, &error))?;
    // No other task has run since the client connected, so no loss of the connection can have been missed.
    established.store(true, Ordering::Relaxed);
    Ok(client)
}

/// Tells the first connect from a reconnect that async-nats would make by itself.
struct Lifeline<O> {
    established: Arc<AtomicBool>,
    observer: O,
}

impl<O: Observer> Lifeline<O> {
    /// async-nats asks for a delay before each attempt to connect. When it asks again after the first success, the
    /// connection has broken. Its own reconnect cannot be switched off, so async-nats's task is ended here by an unwind
    /// that tokio catches. The connection actor makes a new client instead: that way secrets are read and names
    /// resolved again, requests in flight fail at once, and reconnect, reload and leaving a server all go one way.
    fn before_attempt(&self) -> Duration {
        if self.established.load(Ordering::Relaxed) {
            self.observer.lost();
            std::panic::resume_unwind(Box::new("connection lost"));
        }
        Duration::ZERO
    }
}

async fn with_credential(options: ConnectOptions, credential: &Credential) -> Result<ConnectOptions> {
    let reveal = |secret: &Secret| secret.reveal().to_string();
    Ok(match credential {
        Credential::NkeyFile(path) => options.nkey(seed(path, read_text("nkey_seed_path", path).await?)?),
        Credential::Nkey(seed) => options.nkey(reveal(seed)),
        Credential::TokenFile(path) => options.token(read_text("token_path", path).await?),
        Credential::Token(token) => options.token(reveal(token)),
        Credential::PasswordFile(user, path) => {
            options.user_and_password(user.clone(), read_text("password_path", path).await?)
        }
        Credential::Password(user, password) => options.user_and_password(user.clone(), reveal(password)),
        Credential::None => options,
    })
}

/// Fails with `FileUnreadable` if the credential is in a file that cannot be used.
pub async fn check_credential(credential: &Credential) -> Result<()> {
    with_credential(ConnectOptions::new(), credential).await.map(drop)
}

fn seed(path: &str, text: String) -> Result<String> {
    match nkeys::KeyPair::from_seed(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(file_error(
            "nkey_seed_path",
            path,
            "It holds no NKey seed.".into(),
        )),
    }
}

async fn with_tls(options: ConnectOptions, tls: &Tls) -> Result<ConnectOptions> {
    Ok(match &tls.verify {
        Verify::Platform => options,
        Verify::Ca(ca) => {
            // async-nats reads these files itself; reading them here first gives an error that names the option.
            certificates("tls_ca_path", ca).await?;
            let options = options.require_tls(true).add_root_certificates(ca.into());
            match &tls.client {
                Some((certificate, key)) => {
                    certificates("tls_cert_path", certificate).await?;
                    private_key("tls_key_path", key).await?;
                    options.add_client_certificate(certificate.into(), key.into())
                }
                None => options,
            }
        }
        Verify::Insecure => options.require_tls(true).tls_client_config(insecure(tls).await?),
    })
}

/// A TLS configuration that accepts any certificate: for `tls_insecure`, and for the doctor to read a certificate
/// without judging it.
pub async fn insecure(tls: &Tls) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error: rustls::Error| Error::new(Kind::TlsFailed, NO_TLS_SETUP).detail(format!("{error}."));
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)));
    let Some((certificate, key)) = &tls.client else {
        return Ok(config.with_no_client_auth());
    };
    let chain = certificates("tls_cert_path", certificate).await?;
    let key = private_key("tls_key_path", key).await?;
    config.with_client_auth_cert(chain, key).map_err(failed)
}

/// The certificates in a PEM file. Fails with `FileUnreadable`, also if the file holds none.
pub async fn certificates(option: &str, path: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(&read(option, path).await?)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| file_error(option, path, format!("{error}.")))?;
    if found.is_empty() {
        return Err(file_error(option, path, "It holds no certificate.".into()));
    }
    Ok(found)
}

/// The private key in a PEM file. Fails with `FileUnreadable`, also if the file holds none.
pub async fn private_key(option: &str, path: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(option, path).await?)
        .map_err(|_| file_error(option, path, "It holds no private key.".into()))
}

/// Accepts any certificate, for `tls_insecure`. Signatures are still verified, so the peer has the certificate's key.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Reads a secret file, without the white space around its contents.
async fn read_text(option: &str, path: &str) -> Result<String> {
    let bytes = read(option, path).await?;
    let text =
        String::from_utf8(bytes).map_err(|_| file_error(option, path, "It is not valid UTF-8.".into()))?;
    match text.trim() {
        "" => Err(file_error(option, path, "It is empty.".into())),
        // A file with more than one line is not a secret's file, and its contents must not be sent to a server.
        several if several.chars().any(char::is_control) => {
            Err(file_error(option, path, "It is not one line of text.".into()))
        }
        trimmed => Ok(trimmed.to_string()),
    }
}

/// Reads a file in a blocking thread, because a file system may hang.
async fn read(option: &str, path: &str) -> Result<Vec<u8>> {
    let owned = path.to_string();
    let outcome = tokio::task::spawn_blocking(move || {
        // The open of a pipe or a device could block, and reading it could never end.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&owned)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut contents = Vec::new();
        if file.take(MAX_FILE + 1).read_to_end(&mut contents)? as u64 > MAX_FILE {
            return Err(std::io::Error::other(format!(
                "it has more than {MAX_FILE} bytes"
            )));
        }
        Ok(contents)
    });
    match outcome.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(file_error(option, path, format!("{error}."))),
        Err(_) => Err(file_error(option, path, "Reading it was given up.".into())),
    }
}

fn file_error(option: &str, path: &str, why: String) -> Error {
    let message = format!("could not use file \"{path}\" of option \"{option}\"");
    Error::new(Kind::FileUnreadable, message).cause(&why)
}

/// The error for a host that could not be connected to.
pub fn unreachable(host: &Host, why: String) -> Error {
    Error::new(
        Kind::Unreachable,
        format!("could not connect to NATS server {host}"),
    )
    .cause(&why)
}

/// Turns async-nats's error into ours, with its whole chain of causes in the detail.
fn explain(host: &Host, error: &ConnectError) -> Error {
    let mut causes = vec![error.to_string()];
    let mut is_tls = error.kind() == ConnectErrorKind::Tls;
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        is_tls |= inner.is::<rustls::Error>()
            || inner
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .is_some_and(|e| e.is::<rustls::Error>());
        let text = inner.to_string();
        if !causes.iter().any(|known| known.contains(&text)) {
            causes.push(text);
        }
        cause = inner.source();
    }
    let why = causes.join(": ");
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Error::new(
            Kind::AuthenticationRefused,
            format!("NATS server {host} refused the authentication"),
        )
        .cause(&why),
        _ if is_tls => Error::new(
            Kind::TlsFailed,
            format!("TLS handshake with NATS server {host} failed"),
        )
        .cause(&why),
        _ => unreachable(host, why),
    }
}
