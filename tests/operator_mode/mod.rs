//! JWTs of an operator, an account and its users, as NATS's tools make them, and a nats-server that knows nothing else.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::support::*;

/// An operator with one account.
pub struct Operator {
    operator: KeyPair,
    account: KeyPair,
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    now.as_secs() as i64
}

fn jwt(issuer: &KeyPair, subject: &str, name: &str, expires: Option<i64>, nats: Value) -> String {
    let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let mut claims = json!({
        "jti": name, "iat": now() - 10, "iss": issuer.public_key(), "name": name, "sub": subject, "nats": nats,
    });
    if let Some(expires) = expires {
        claims["exp"] = expires.into();
    }
    let signed = format!(
        "{}.{}",
        encode(json!({"typ": "JWT", "alg": "ed25519-nkey"})),
        encode(claims)
    );
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

impl Operator {
    pub fn new() -> Operator {
        Operator {
            operator: KeyPair::new_operator(),
            account: KeyPair::new_account(),
        }
    }

    /// A nats-server of this operator, whose account has these limits over the usual ones.
    pub fn config(&self, limits: Value) -> String {
        let mut all = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        for (name, value) in limits.as_object().expect("limits") {
            all[name] = value.clone();
        }
        let operator = self.operator.public_key();
        let account = self.account.public_key();
        let nats = json!({"type": "operator", "version": 2});
        let operator_jwt = jwt(&self.operator, &operator, "operator", None, nats);
        let nats = json!({"type": "account", "version": 2, "limits": all, "default_permissions": {"pub": {}, "sub": {}}});
        let account_jwt = jwt(&self.operator, &account, "account", None, nats);
        format!(
            "operator: {operator_jwt}\nresolver: MEMORY\nresolver_preload: {{ {account}: {account_jwt} }}"
        )
    }

    /// A server that knows this operator's users, without limits.
    pub async fn server(&self) -> NatsServer {
        let config = self.config(json!({}));
        NatsServer::builder().config(&config).start().await
    }

    /// The contents of a user's .creds file; the JWT expires in so many seconds.
    pub fn creds(&self, name: &str, expires_in: Option<i64>) -> String {
        let user = KeyPair::new_user();
        let nats = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
        let expires = expires_in.map(|seconds| now() + seconds);
        let jwt = jwt(&self.account, &user.public_key(), name, expires, nats);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().expect("a seed")
        )
    }
}

/// The name in the JWT of the connection that the extension has.
pub async fn user_name(nats: &NatsServer) -> Option<String> {
    let connections = nats.monitor("/connz?auth=1").await;
    let ours = connections["connections"].as_array().expect("connections");
    let ours = ours
        .iter()
        .find(|c| c["name"].as_str().is_some_and(|name| name.ends_with("/nats")))?;
    let jwt = ours["jwt"].as_str()?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["name"].as_str().map(String::from)
}
