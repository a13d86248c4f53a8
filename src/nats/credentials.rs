//! Credentials as NATS's tools write them to a `.creds` file: a user's JWT, and the NKey seed that proves that the JWT
//! is the user's. Pure.

#![forbid(unsafe_code)]

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::{KeyPair, KeyPairType};
use serde_json::Value;

/// Takes JWT and seed from the contents of a `.creds` file. `Err` is a sentence that says what is wrong, without the
/// secret.
pub fn read(text: &str) -> Result<(String, String), &'static str> {
    let mut entries = text.split("-----BEGIN ").skip(1).filter_map(|part| {
        let (title, rest) = part.split_once("-----")?;
        // The body is one line; hyphens are among its letters.
        let body = rest.lines().map(str::trim).find(|line| !line.is_empty())?;
        Some((title.trim(), body))
    });
    let (mut jwt, mut seed) = (None, None);
    for (title, body) in entries.by_ref() {
        let slot = if title.ends_with("JWT") {
            &mut jwt
        } else if title.ends_with("NKEY SEED") || title.ends_with("SEED") {
            &mut seed
        } else {
            continue;
        };
        slot.get_or_insert(body);
    }
    let jwt = jwt.ok_or("It holds no JWT.")?;
    let seed = seed.ok_or("It holds no NKey seed.")?;
    if claims(jwt).is_none() {
        return Err("Its JWT is none.");
    }
    match KeyPair::from_seed(seed) {
        Ok(pair) if pair.key_pair_type() == KeyPairType::User => Ok((jwt.to_string(), seed.to_string())),
        _ => Err("Its NKey seed is not one of a user."),
    }
}

/// The claims of a JWT, which are not verified; `None` if the text is no JWT.
fn claims(jwt: &str) -> Option<Value> {
    let mut parts = jwt.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice(&claims).ok().filter(Value::is_object)
}

/// From when to when a JWT is valid, in seconds since 1970; each end is `None` without a limit.
pub fn validity(jwt: &str) -> (Option<i64>, Option<i64>) {
    let claims = claims(jwt).unwrap_or_default();
    let time = |name: &str| claims.get(name).and_then(Value::as_i64).filter(|time| *time > 0);
    (time("nbf").or_else(|| time("iat")), time("exp"))
}

/// The name that a JWT gives its user.
pub fn name(jwt: &str) -> Option<String> {
    claims(jwt)?.get("name")?.as_str().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn creds(jwt: &str, seed: &str) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }

    #[test]
    fn a_file_of_nats_tools() {
        let seed = KeyPair::new_user().seed().expect("a seed");
        let jwt = jwt(r#"{"name":"edge","exp":1800000000,"iat":1700000000}"#);
        assert_eq!(read(&creds(&jwt, &seed)), Ok((jwt.clone(), seed)));
        assert_eq!(validity(&jwt), (Some(1_700_000_000), Some(1_800_000_000)));
        assert_eq!(name(&jwt).as_deref(), Some("edge"));
    }

    #[test]
    fn hyphens_in_a_signature_end_nothing() {
        let seed = KeyPair::new_user().seed().expect("a seed");
        let jwt = format!("{}---x", jwt("{}"));
        assert_eq!(read(&creds(&jwt, &seed)), Ok((jwt, seed)));
    }

    #[test]
    fn what_is_no_such_file() {
        let (user, account) = (KeyPair::new_user(), KeyPair::new_account());
        let (seed, other) = (user.seed().expect("a seed"), account.seed().expect("a seed"));
        for (text, why) in [
            (String::new(), "It holds no JWT."),
            (seed.clone(), "It holds no JWT."),
            (creds("a.b", &seed), "Its JWT is none."),
            (creds(&jwt("[]"), &seed), "Its JWT is none."),
            (creds(&jwt("{}"), &other), "Its NKey seed is not one of a user."),
            (
                creds(&jwt("{}"), &seed).replace("NKEY SEED", "X"),
                "It holds no NKey seed.",
            ),
        ] {
            assert_eq!(read(&text), Err(why), "{text}");
        }
        assert_eq!(validity("none"), (None, None));
    }
}
