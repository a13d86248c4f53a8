//! Reads files that options name: secrets, certificates and keys. In tokio's blocking threads, because a file system may
//! hang.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::der::Decode;

use crate::error::{Error, Kind, Result};

/// Largest file with a secret or a key, in bytes.
const MAX_SECRET: u64 = 64 * 1024;
/// Largest file with certificates, in bytes: a system's bundle has some 220 KB.
const MAX_CERTIFICATES: u64 = 4 * 1024 * 1024;

/// Readings of one file that may be under way. A file system that hangs keeps the threads that wait for it, and has only
/// so many of them.
const MOST_READINGS: usize = 4;
static READINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The reading of a file, until it is dropped.
struct Reading(String);

impl Reading {
    /// `None` if too many readings of the file have not ended.
    fn of(path: &str) -> Option<Reading> {
        let mut readings = READINGS.lock();
        let others = readings.iter().filter(|other| *other == path).count();
        (others < MOST_READINGS).then(|| {
            readings.push(path.to_string());
            Reading(path.to_string())
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readings = READINGS.lock();
        if let Some(place) = readings.iter().position(|other| *other == self.0) {
            readings.swap_remove(place);
        }
    }
}

/// Certificates of a PEM file.
pub struct Certificates {
    pub certificates: Vec<CertificateDer<'static>>,
    /// Entries that are no certificates.
    pub malformed: usize,
}

/// The certificates in a PEM file; those that are malformed are left out. Fails with `FileUnreadable`, also if the file
/// holds none.
pub async fn certificates(option: &str, path: &str) -> Result<Certificates> {
    let bytes = read(option, path, MAX_CERTIFICATES).await?;
    let (mut certificates, mut malformed, mut why) = (Vec::new(), 0, None);
    for entry in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = match entry {
            Ok(der) if x509_cert::Certificate::from_der(&der).is_ok() => der,
            Ok(_) => {
                (malformed, why) = (
                    malformed + 1,
                    why.or(Some("A certificate in it is malformed.".into())),
                );
                continue;
            }
            Err(error) => {
                (malformed, why) = (malformed + 1, why.or(Some(format!("{error}."))));
                continue;
            }
        };
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        let why = why.unwrap_or_else(|| "It holds no certificate.".into());
        return Err(file_error(option, path, why));
    }
    Ok(Certificates {
        certificates,
        malformed,
    })
}

/// The private key in a PEM file. Fails with `FileUnreadable`, also if the file holds none.
pub async fn private_key(option: &str, path: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(&read(option, path, MAX_SECRET).await?)
        .map_err(|_| file_error(option, path, "It holds no private key.".into()))
}

/// Reads a file of one secret, without the white space around its contents.
pub async fn secret(option: &str, path: &str) -> Result<String> {
    let text = text(option, path).await?;
    match text.trim() {
        "" => Err(file_error(option, path, "It is empty.".into())),
        // A file with more than one line is not a secret's file, and its contents must not be sent to a server.
        several if several.chars().any(char::is_control) => {
            Err(file_error(option, path, "It is not one line of text.".into()))
        }
        trimmed => Ok(trimmed.to_string()),
    }
}

/// Reads a file of text.
pub async fn text(option: &str, path: &str) -> Result<String> {
    let bytes = read(option, path, MAX_SECRET).await?;
    String::from_utf8(bytes).map_err(|_| file_error(option, path, "It is not valid UTF-8.".into()))
}

async fn read(option: &str, path: &str, limit: u64) -> Result<Vec<u8>> {
    let Some(reading) = Reading::of(path) else {
        return Err(file_error(
            option,
            path,
            "A former reading of it has not ended.".into(),
        ));
    };
    let owned = path.to_string();
    let outcome = tokio::task::spawn_blocking(move || {
        let _reading = reading;
        // The open of a pipe or a device could block, and reading it could never end.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&owned)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut contents = Vec::new();
        if file.take(limit + 1).read_to_end(&mut contents)? as u64 > limit {
            return Err(std::io::Error::other(format!("it has more than {limit} bytes")));
        }
        Ok(contents)
    });
    match outcome.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(file_error(option, path, format!("{error}."))),
        Err(_) => Err(file_error(option, path, "Reading it was given up.".into())),
    }
}

/// The error for a file that cannot be used.
pub fn file_error(option: &str, path: &str, why: String) -> Error {
    let message = format!("could not use file \"{path}\" of option \"{option}\"");
    Error::new(Kind::FileUnreadable, message).cause(&why)
}
