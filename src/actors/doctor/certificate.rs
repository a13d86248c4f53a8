//! Reads the subject and the validity of a certificate, and the validity of a JWT. Pure.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_cert::Certificate as X509;
use x509_cert::der::Decode;

use crate::nats::credentials;

const DAY: i64 = 24 * 60 * 60;
/// A certificate ends soon when less than this many seconds are left, or less than a third of its life if that is
/// shorter.
const NEAR: i64 = 30 * DAY;

/// Whether a certificate is valid now, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    NotYet,
    Good,
    EndsSoon,
    Over,
}

/// The part of a certificate that the doctor shows.
pub struct Certificate {
    subject: String,
    /// First second of the validity, since 1970.
    begins: i64,
    /// Last second of the validity, since 1970.
    ends: i64,
    /// Last day of the validity, as YYYY-MM-DD.
    last_day: String,
}

/// Reads a certificate from DER; `None` if the bytes are none.
pub fn read(der: &[u8]) -> Option<Certificate> {
    let certificate = X509::from_der(der).ok()?.tbs_certificate;
    let (begin, end) = (certificate.validity.not_before, certificate.validity.not_after);
    let subject = certificate.subject.to_string();
    Some(Certificate {
        // The subject is somebody else's text, and has to fit into one line.
        subject: subject.chars().filter(|c| !c.is_control()).take(200).collect(),
        begins: seconds(begin.to_unix_duration()),
        ends: seconds(end.to_unix_duration()),
        last_day: end.to_date_time().to_string().chars().take(10).collect(),
    })
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

impl Certificate {
    pub fn validity(&self) -> Validity {
        validity(self.begins, self.ends)
    }
}

/// The validity of what is valid from one second to another, since 1970.
fn validity(begins: i64, ends: i64) -> Validity {
    let (now, left) = (now(), ends.saturating_sub(now()));
    let life = ends.saturating_sub(begins);
    match left {
        _ if now < begins => Validity::NotYet,
        left if left < 0 => Validity::Over,
        left if left < NEAR.min(life / 3) => Validity::EndsSoon,
        _ => Validity::Good,
    }
}

/// The validity of a JWT, and what to say of it.
pub fn jwt(jwt: &str) -> (Validity, String) {
    // The name is somebody else's text, and has to fit into one line.
    let name = credentials::name(jwt).unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
    let (begins, ends) = credentials::validity(jwt);
    let Some(ends) = ends else {
        return (Validity::Good, format!("JWT of user \"{name}\" does not expire"));
    };
    let validity = validity(begins.unwrap_or(0), ends);
    let days = (ends - now()) / DAY;
    let text = match validity {
        Validity::NotYet => format!("JWT of user \"{name}\" is not valid yet"),
        Validity::Over => format!("JWT of user \"{name}\" has expired, {} days ago", -days),
        Validity::Good | Validity::EndsSoon => format!("JWT of user \"{name}\" expires in {days} days"),
    };
    (validity, text)
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, seconds)
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (subject, day) = (&self.subject, &self.last_day);
        match self.validity() {
            Validity::NotYet => write!(f, "certificate of {subject} is not valid yet"),
            Validity::Over => write!(f, "certificate of {subject} has expired on {day}"),
            Validity::Good | Validity::EndsSoon => {
                let days = (self.ends - now()) / DAY;
                write!(f, "certificate of {subject} expires on {day}, in {days} days")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// A certificate that is valid from 27 November 2026 to 25 February 2027.
    const DER: &str = "MIIBhDCCASmgAwIBAgIUSJdJuyhHIqx5/pe4qPqp0UajoukwCgYIKoZIzj0EAwIwFzEVMBMGA1UEAwwMbmF0\
        cy5leGFtcGxlMB4XDTI2MTEyNzA5MDExNloXDTI3MDIyNTA5MDExNlowFzEVMBMGA1UEAwwMbmF0cy5leGFtcGxlMFkwEwYHKoZI\
        zj0CAQYIKoZIzj0DAQcDQgAEYLtWIatYYT9J6SZqlF60W2KSjGPr704BoZWpNrpoQIyzq+HIk7Rg+NC0cM8MKVSNUUFrs9ui6HL5\
        v3bAgwqmEqNTMFEwHQYDVR0OBBYEFFLSXB6uHJbuly1/gQ4MLrwlugDEMB8GA1UdIwQYMBaAFFLSXB6uHJbuly1/gQ4MLrwlugDE\
        MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAMj9s9YIwvs0BTjwDsPrQV0hV/96rbdcwpmLz3Sgs/9BAiEApXly\
        U4lR3b5J6GYmEbK1vXMboqOGbEjjes19QHaRemY=";

    #[test]
    fn what_is_read() {
        let certificate = read(&STANDARD.decode(DER).expect("base64")).expect("a certificate");
        assert_eq!(certificate.subject, "CN=nats.example");
        assert_eq!(certificate.last_day, "2027-02-25");
        assert_eq!(certificate.ends - certificate.begins, 90 * DAY);
        assert!(read(b"no certificate").is_none());
    }

    #[test]
    fn a_jwt_ends_as_a_certificate_does() {
        let of = |begins: i64, ends: i64| {
            let claims = format!(
                r#"{{"name":"edge","iat":{},"exp":{}}}"#,
                now() + begins * DAY,
                now() + ends * DAY + 60
            );
            let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(claims);
            jwt(&format!("e30.{claims}.c2ln"))
        };
        assert_eq!(
            of(-300, 31),
            (Validity::Good, "JWT of user \"edge\" expires in 31 days".into())
        );
        assert_eq!(of(-300, 29).0, Validity::EndsSoon);
        assert_eq!(
            of(-300, -2),
            (
                Validity::Over,
                "JWT of user \"edge\" has expired, 1 days ago".into()
            )
        );
        assert_eq!(
            jwt("e30.e30.c2ln"),
            (Validity::Good, "JWT of user \"\" does not expire".into())
        );
    }

    #[test]
    fn the_end_is_near_in_the_last_third_and_in_the_last_month() {
        let of = |begins: i64, ends: i64| {
            let certificate = Certificate {
                subject: "CN=x".into(),
                begins: now() + begins * DAY,
                ends: now() + ends * DAY + 60,
                last_day: "2026-11-27".into(),
            };
            (certificate.validity(), certificate.to_string())
        };
        assert_eq!(of(-300, 31).0, Validity::Good);
        let (near, text) = of(-300, 29);
        assert_eq!(
            (near, text.as_str()),
            (
                Validity::EndsSoon,
                "certificate of CN=x expires on 2026-11-27, in 29 days"
            )
        );
        assert_eq!((of(-1, 6).0, of(-5, 2).0), (Validity::Good, Validity::EndsSoon));
        let (over, text) = of(-300, -1);
        assert_eq!(
            (over, text.as_str()),
            (Validity::Over, "certificate of CN=x has expired on 2026-11-27")
        );
        assert_eq!(of(1, 90).0, Validity::NotYet);
    }
}
