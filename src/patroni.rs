//! Reads the answers of Patroni's REST API, versions 2 to 4. Pure; used by the actor thread.

#![forbid(unsafe_code)]

use serde_json::Value;

/// Lifetime of the leader lock in seconds, if Patroni does not tell it.
pub const DEFAULT_TTL: u64 = 30;

/// A member of a Patroni cluster, from its own answers. What the member's version of Patroni does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub role: Option<String>,
    pub name: Option<String>,
    pub scope: Option<String>,
    pub timeline: Option<u64>,
    /// When the member last reached the configuration store, which holds the leader lock; in seconds since 1970.
    pub dcs_last_seen: Option<u64>,
    /// Whether failsafe mode is active: the members keep the primary while the configuration store is unreachable.
    pub is_failsafe: bool,
    pub api_url: Option<String>,
    pub conn_url: Option<String>,
}

/// The base address of the API; the option `patroni_url` may end with `/patroni` or not.
pub fn base_url(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/patroni").unwrap_or(url).trim_end_matches('/')
}

/// The address without user name and password, to be shown.
pub fn without_password(url: &str) -> String {
    if !url.contains('@') {
        return url.to_string();
    }
    let shown = url::Url::parse(url).ok().and_then(|mut url| {
        url.set_username("").ok()?;
        url.set_password(None).ok()?;
        Some(url.to_string())
    });
    shown.unwrap_or_else(|| "an address that cannot be shown".into())
}

/// Reads the answer of `/patroni`, `/primary` and similar endpoints; `None` if it is not a JSON object.
pub fn member(answer: &[u8]) -> Option<Member> {
    let value: Value = serde_json::from_slice(answer).ok()?;
    let object = value.as_object()?;
    let patroni = |key: &str| {
        value
            .get("patroni")
            .and_then(|patroni| patroni.get(key))
            .and_then(text)
    };
    Some(Member {
        role: object.get("role").and_then(text),
        name: patroni("name"),
        scope: patroni("scope"),
        timeline: object.get("timeline").and_then(Value::as_u64),
        dcs_last_seen: object.get("dcs_last_seen").and_then(Value::as_u64),
        is_failsafe: object.get("failsafe_mode_is_active").and_then(Value::as_bool) == Some(true),
        api_url: None,
        conn_url: None,
    })
}

/// Completes a member from the answer of `/cluster`. The member is found there by its name or, since old versions do
/// not tell the name, by the address of its API. An answer that is not JSON changes nothing.
pub fn complete(member: &mut Member, base: &str, cluster: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(cluster) else {
        return;
    };
    if member.scope.is_none() {
        member.scope = value.get("scope").and_then(text);
    }
    let members = value
        .get("members")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let is_it = |other: &&Value| match &member.name {
        Some(name) => other.get("name").and_then(text).as_ref() == Some(name),
        None => other
            .get("api_url")
            .and_then(text)
            .is_some_and(|url| base_url(&url) == base),
    };
    let Some(found) = members.iter().find(is_it) else {
        return;
    };
    member.name = found.get("name").and_then(text);
    member.api_url = found.get("api_url").and_then(text);
    let port = found.get("port").and_then(Value::as_u64);
    if let (Some(host), Some(port)) = (found.get("host").and_then(text), port) {
        member.conn_url = Some(format!("postgres://{host}:{port}/postgres"));
    }
}

/// The `ttl` in the answer of `/config`, in seconds; `None` if the answer has none.
pub fn ttl(config: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(config).ok()?.get("ttl")?.as_u64()
}

/// Why a primary must not act as one; `None` if it may. `holds_lock` is the verdict of `/primary`, `ttl` is in seconds,
/// and `now` is the time in seconds since 1970.
pub fn fence(member: &Member, holds_lock: bool, ttl: u64, now: u64) -> Option<String> {
    if !holds_lock {
        let role = member.role.as_deref().unwrap_or("unknown");
        return Some(format!(
            "Patroni says that this node does not hold the leader lock (its role: {role})"
        ));
    }
    let age = now.saturating_sub(member.dcs_last_seen?);
    (age > ttl && !member.is_failsafe)
        .then(|| format!("Patroni has not reached its configuration store for {age} seconds (ttl: {ttl})"))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(without_password("http://a:b@h:1/patroni"), "http://h:1/patroni");
        assert_eq!(without_password("https://h"), "https://h");
        assert!(!without_password("http://admin:se/cret@h").contains("cret"));
    }

    const V2: &str = r#"{"state": "running", "postmaster_start_time": "2021-08-07 10:00:00.000 UTC", "role": "master",
        "server_version": 130003, "cluster_unlocked": false, "xlog": {"location": 67109184}, "timeline": 3,
        "database_system_identifier": "6838921", "patroni": {"version": "2.1.0", "scope": "demo"}}"#;
    const V3: &str = r#"{"state": "running", "role": "master", "server_version": 150004, "timeline": 1,
        "xlog": {"location": 1}, "dcs_last_seen": 1692356928, "tags": {"clonefrom": true},
        "database_system_identifier": "72", "patroni": {"version": "3.1.0", "scope": "demo", "name": "patroni1"}}"#;
    const V4: &str = r#"{"state": "running", "role": "primary", "server_version": 170000, "timeline": 5,
        "replication": [{"usename": "r"}], "dcs_last_seen": 1731000000, "pause": true, "something": {"new": []},
        "patroni": {"version": "4.1.5", "scope": "batman", "name": "pg1"}}"#;
    const REPLICA: &str = r#"{"state": "streaming", "role": "replica", "xlog": {"received_location": 1, "paused": false},
        "timeline": 5, "patroni": {"version": "4.1.5", "scope": "batman", "name": "pg2"}}"#;
    const STARTING: &str =
        r#"{"state": "starting", "role": "replica", "patroni": {"version": "4.0.0", "scope": "batman"}}"#;
    const CLUSTER_2: &str = r#"{"members": [
        {"name": "other", "role": "replica", "state": "running", "api_url": "http://10.0.0.2:8008/patroni", "host": "10.0.0.2", "port": 5432, "lag": 0},
        {"name": "pg-instance-01", "role": "leader", "state": "running", "api_url": "http://10.0.0.1:8008/patroni", "host": "10.0.0.1", "port": 5432, "timeline": 3}]}"#;
    const CLUSTER_4: &str = r#"{"members": [
        {"name": "pg1", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:8001/patroni", "host": "127.0.0.1", "port": 5433, "timeline": 5},
        {"name": "pg2", "role": "replica", "state": "streaming", "api_url": "http://127.0.0.1:8002/patroni", "host": "127.0.0.1", "port": 5434, "lag": "unknown"}], "scope": "batman"}"#;

    fn read(answer: &str) -> Member {
        member(answer.as_bytes()).expect("an object")
    }

    #[test]
    fn the_option_names_the_base_or_its_patroni() {
        for url in [
            "http://h:8008",
            "http://h:8008/",
            "http://h:8008/patroni",
            "http://h:8008/patroni/",
        ] {
            assert_eq!(base_url(url), "http://h:8008");
        }
    }

    #[test]
    fn every_version_tells_what_it_knows() {
        let (two, three, four) = (read(V2), read(V3), read(V4));
        assert_eq!(
            (two.name, two.scope.as_deref(), two.timeline),
            (None, Some("demo"), Some(3))
        );
        assert_eq!(three.name.as_deref(), Some("patroni1"));
        assert_eq!(
            (three.role.as_deref(), three.dcs_last_seen),
            (Some("master"), Some(1692356928))
        );
        assert_eq!(
            (four.role.as_deref(), four.name.as_deref()),
            (Some("primary"), Some("pg1"))
        );
        assert_eq!(read(REPLICA).role.as_deref(), Some("replica"));
        assert_eq!(read(STARTING).timeline, None);
        assert_eq!(read("{}"), Member::default());
        for nonsense in ["", "[]", "null", "no JSON"] {
            assert_eq!(member(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn the_cluster_completes_a_member_by_name_or_address() {
        let mut two = read(V2);
        complete(&mut two, "http://10.0.0.1:8008", CLUSTER_2.as_bytes());
        assert_eq!(two.name.as_deref(), Some("pg-instance-01"));
        assert_eq!(two.conn_url.as_deref(), Some("postgres://10.0.0.1:5432/postgres"));
        let mut four = read(V4);
        complete(&mut four, "http://elsewhere", CLUSTER_4.as_bytes());
        assert_eq!(four.api_url.as_deref(), Some("http://127.0.0.1:8001/patroni"));
        let before = four.clone();
        complete(&mut four, "http://elsewhere", b"no JSON");
        assert_eq!(four, before);
    }

    #[test]
    fn a_primary_is_fenced_without_the_lock_or_with_an_old_one() {
        let (with, now) = (read(V4), 1731000010);
        assert_eq!(fence(&with, true, 30, now), None);
        assert!(fence(&with, true, 5, now).is_some_and(|why| why.contains("10 seconds")));
        let failsafe = read(&V4.replacen('{', r#"{"failsafe_mode_is_active": true, "#, 1));
        assert_eq!(fence(&failsafe, true, 5, now), None);
        assert!(fence(&read(REPLICA), false, 30, now).is_some_and(|why| why.contains("replica")));
        assert_eq!(fence(&read(V2), true, 30, now), None, "old versions do not tell");
        assert_eq!(ttl(br#"{"ttl": 20, "loop_wait": 1}"#), Some(20));
    }
}
