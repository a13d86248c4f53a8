//! Reads PostgreSQL's log: each warning and error in it has a fault, or bad input, that explains it.

use std::collections::BTreeMap;

use super::board::Board;
use super::explained;
use super::faults::KILLED;
use super::surface::BAD;
use super::world::World;

/// A line that may be there.
struct Rule {
    /// How the backend type begins.
    process: &'static str,
    text: &'static str,
    why: &'static str,
}

const fn rule(process: &'static str, text: &'static str, why: &'static str) -> Rule {
    Rule { process, text, why }
}

/// What processes other than sessions may say, and what sessions may for another reason than their calls.
const RULES: &[Rule] = &[
    rule(
        "litmus_pgnats runtime",
        "the NATS server reports: Authorization Violation",
        "the secret was changed, so the server ends the connection",
    ),
    rule("litmus_pgnats runtime", "has no USAGE privilege", REVOKED),
    rule(
        "client backend",
        "has published are lost",
        "the runtime worker ended in the moment of the commit",
    ),
    rule(
        "client backend",
        "stays in the outbox for now",
        "the runtime worker ended after the commit; it is delivered later",
    ),
    rule(
        "startup",
        "base/",
        "recovery after a kill, of a database that was dropped",
    ),
    rule(
        "litmus_pgnats executor",
        "cache lookup failed for function",
        "DROP FUNCTION while it has a message",
    ),
    rule(
        "client backend",
        "exists already in bucket",
        "nats_create_T of a key that is there",
    ),
    rule("client backend", "permission denied for foreign server", REVOKED),
    rule(
        "client backend",
        "must be owner of foreign server",
        "bad input of a role that owns nothing",
    ),
    rule(
        "client backend",
        "option \"",
        "options that are as they were to be, or not there to be dropped",
    ),
    rule(
        "client backend",
        "there is no transaction in progress",
        "a ROLLBACK after a COMMIT that failed",
    ),
    rule(
        "client backend",
        "exists with other settings",
        "a bucket that a put has made again",
    ),
    rule(
        "client backend",
        "permission denied for the durable subscription of stream \"facts\"",
        "a session of another role has just registered it",
    ),
    rule(
        "client backend",
        "is being accessed by other users",
        "DROP DATABASE right after the end of a session there",
    ),
    rule(
        "client backend",
        "have not taken effect yet",
        "NATS or executors are held up while handlers change",
    ),
    rule(
        "litmus_pgnats executor",
        "responder public.fail failed",
        "the responder that fails as asked",
    ),
    rule(
        "litmus_pgnats executor",
        "more messages",
        "the failures after one that was told, and is explained, until the executor ended",
    ),
    rule(
        "litmus_pgnats executor",
        "canceling statement due to user request",
        "pg_cancel_backend of an executor",
    ),
    rule(
        "litmus_pgnats executor",
        "permission denied for foreign server",
        REVOKED,
    ),
    rule(
        "litmus_pgnats executor",
        "due to administrator command",
        TERMINATED,
    ),
    rule(
        "litmus_pgnats outbox relay",
        "due to administrator command",
        TERMINATED,
    ),
    rule(
        "litmus_pgnats outbox relay",
        "canceling statement due to user request",
        TERMINATED,
    ),
    rule(
        "litmus_pgnats runtime",
        "were dropped: executors have died with them",
        TERMINATED,
    ),
    rule(
        "litmus_pgnats runtime",
        "connection to the NATS server lost",
        AWAY,
    ),
    rule("litmus_pgnats runtime", "could not connect to NATS server", AWAY),
    rule("litmus_pgnats runtime", "has not confirmed", AWAY),
    rule("litmus_pgnats runtime", "there was no room for replies", AWAY),
    rule("litmus_pgnats runtime", "could not subscribe", AWAY),
    rule("litmus_pgnats runtime", "is not removed yet", AWAY),
    rule("litmus_pgnats runtime", "could not remove unused chunks", AWAY),
    rule(
        "litmus_pgnats runtime",
        "messages for an unreachable NATS server are dropped",
        AWAY,
    ),
    rule(
        "litmus_pgnats runtime",
        "refused the authentication",
        "the secret is being changed",
    ),
];

const AWAY: &str = "NATS is killed, or its connections are cut";
const REVOKED: &str = "REVOKE USAGE";
const TERMINATED: &str = "pg_terminate_backend, or PostgreSQL stops";

/// What no fault explains.
const NEVER: &[&str] = &[
    "PANIC",
    "panicked",
    "signal 11",
    "signal 6",
    "assertion",
    "Assert",
];

/// Finds what nothing explains.
pub fn check(world: &World, board: &Board) {
    let log = world.pg.log();
    for secret in world.secrets() {
        if log.contains(&secret) {
            board.finding(format!("the log has the secret {secret:?}"));
        }
    }
    let mut unexplained = BTreeMap::<String, (u64, String)>::new();
    let mut used = BTreeMap::<&str, u64>::new();
    for line in log.lines() {
        if NEVER.iter().any(|never| line.contains(never)) {
            board.finding(format!("the log has {line:?}"));
        }
        if line.contains("terminated by signal")
            && !(line.contains("signal 9") && board.faults_of(KILLED) > 0)
        {
            board.finding(format!("the log has {line:?}"));
        }
        let Some(entry) = Entry::read(line) else { continue };
        match entry.why() {
            Some(why) => *used.entry(why).or_default() += 1,
            None => {
                let key = format!("{} {} {}", entry.process, entry.code, without_digits(entry.text));
                let (count, _) = unexplained.entry(key).or_insert((0, line.to_owned()));
                *count += 1;
            }
        }
    }
    println!("lines of the log by what explains them:");
    for (why, count) in used {
        println!("{count:>9}  {why}");
    }
    for (count, line) in unexplained.into_values() {
        board.finding(format!("{count} unexplained lines of the log, such as {line:?}"));
    }
}

/// A warning or an error.
struct Entry<'a> {
    process: &'a str,
    code: &'a str,
    text: &'a str,
}

impl<'a> Entry<'a> {
    /// From a line that begins with `%m [%p] %b %e %q%u@%d `.
    fn read(line: &'a str) -> Option<Self> {
        let levels = ["WARNING:  ", "ERROR:  ", "FATAL:  ", "PANIC:  "];
        let at = levels.iter().filter_map(|level| line.find(level)).min()?;
        let (head, text) = line.split_at(at);
        let (_, head) = head.split_once("] ")?;
        let mut words: Vec<&str> = head.split_whitespace().collect();
        if words.last()?.contains('@') {
            words.pop();
        }
        let code = words.pop()?;
        let process = head.split(code).next()?.trim_end();
        Some(Self { process, code, text })
    }

    fn why(&self) -> Option<&'static str> {
        if self.process == "client backend" {
            if let Some((_, why)) = explained::BY_FAULTS.iter().find(|(code, _)| *code == self.code) {
                return Some(why);
            }
            if BAD.iter().any(|(code, _)| *code == self.code) {
                return Some("bad input, or what a call may meet by itself");
            }
        }
        let fits = |rule: &&Rule| self.process.starts_with(rule.process) && self.text.contains(rule.text);
        RULES.iter().find(fits).map(|rule| rule.why)
    }
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).take(90).collect()
}
