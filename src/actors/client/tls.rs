//! How TLS is set up for a connection. What a connection does not need is not loaded: the system's certificates are read
//! only where they verify a server. In the actor thread; files are read in tokio's blocking threads.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::files;
use crate::error::{Error, Kind, Result};
use crate::settings::{Tls, Verify};

/// Message of the error when TLS cannot be set up on our side, before any handshake.
pub const NO_TLS_SETUP: &str = "could not set up TLS";

/// The configuration that these options ask for.
pub async fn configuration(tls: &Tls) -> Result<ClientConfig> {
    let roots = match &tls.verify {
        Verify::Insecure => return insecure(tls).await,
        Verify::Ca(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(files::certificates("tls_ca_path", path).await?.certificates);
            roots
        }
        Verify::Platform => system_roots().await?,
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots);
    with_client(tls, builder).await
}

/// A configuration that accepts any certificate: for `tls_insecure`, and for the doctor to read a certificate without
/// judging it.
pub async fn insecure(tls: &Tls) -> Result<ClientConfig> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)));
    with_client(tls, builder).await
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn failed(error: &rustls::Error) -> Error {
    Error::new(Kind::TlsFailed, NO_TLS_SETUP).detail(format!("{error}."))
}

/// Adds the client's own certificate, if the options name one.
async fn with_client(
    tls: &Tls,
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
) -> Result<ClientConfig> {
    let Some((certificate, key)) = &tls.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = files::certificates("tls_cert_path", certificate)
        .await?
        .certificates;
    let key = files::private_key("tls_key_path", key).await?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| failed(&error))
}

/// The CA certificates of the operating system; those that are malformed are left out.
async fn system_roots() -> Result<RootCertStore> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    let (certificates, errors) =
        loaded.map_or_else(|_| Default::default(), |found| (found.certs, found.errors));
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        let why = errors.first().map_or_else(
            || "The operating system has no CA certificates.".to_string(),
            |error| format!("The operating system's CA certificates cannot be read: {error}."),
        );
        return Err(Error::new(Kind::TlsFailed, NO_TLS_SETUP).detail(why).hint(
            "Name the CA certificate in the option \"tls_ca_path\", or install the system's (ca-certificates).",
        ));
    }
    Ok(roots)
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
