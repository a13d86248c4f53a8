//! What a certificate says of itself. Pure.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use x509_cert::Certificate as X509;
use x509_cert::der::Decode;

/// The part of a certificate that people ask for.
pub struct Certificate {
    subject: String,
    /// Its last day.
    expires: String,
    /// Negative when it is over.
    pub days_left: i64,
}

/// Reads a certificate from DER; `None` if it is none.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let certificate = X509::from_der(der).ok()?.tbs_certificate;
    let end = certificate.validity.not_after;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let seconds = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    let left = seconds(end.to_unix_duration().as_secs()) - seconds(now.as_secs());
    Some(Certificate {
        subject: certificate.subject.to_string(),
        expires: end.to_date_time().to_string().chars().take(10).collect(),
        days_left: left.div_euclid(24 * 60 * 60),
    })
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Certificate {
            subject,
            expires,
            days_left,
        } = self;
        if *days_left < 0 {
            write!(f, "certificate of {subject} has expired on {expires}")
        } else {
            write!(
                f,
                "certificate of {subject} expires on {expires}, in {days_left} days"
            )
        }
    }
}
