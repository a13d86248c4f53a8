//! One session: a loop of calls at random, each judged by what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::{Config, SimpleQueryMessage};

use super::board::Board;
use super::explained::{self, CLOSED};
use super::ledger::Ledger;
use super::random::Random;
use crate::support::*;

/// No call takes longer: every wait of the extension has a limit.
const HANG: Duration = Duration::from_secs(60);
/// Memory of a backend is looked at first when it has made so many calls, and one that needs much of it.
const WARM: u64 = 100;

pub struct Caller {
    pub who: usize,
    /// Whether it is the role whose rights come and go.
    pub guest: bool,
    pub random: Random,
    pub ledger: Ledger,
    pub board: Arc<Board>,
    /// `TABLE litmus_pgnats.x` of each view.
    pub views: Arc<Vec<String>>,
    config: Config,
    session: Option<Session>,
    /// Calls in this backend.
    calls: u64,
    /// Its memory when it was warm.
    warm_bytes: u64,
}

/// What a call's SQL returned: rows of texts.
pub type Rows = Vec<Vec<Option<String>>>;

/// Why a call failed.
#[derive(Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
    /// The call itself knows why.
    pub expected: bool,
}

/// How a phase of the soak treats errors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Calm,
    Storm,
}

impl Caller {
    pub fn new(
        who: usize,
        seed: u64,
        mut config: Config,
        board: Arc<Board>,
        views: Arc<Vec<String>>,
    ) -> Self {
        let guest = who % 8 == 7;
        config.user(if guest { "guest" } else { "postgres" });
        Self {
            who,
            guest,
            random: Random::new(seed, who as u64 + 1),
            ledger: Ledger::default(),
            board,
            views,
            config,
            session: None,
            calls: 0,
            warm_bytes: 0,
        }
    }

    /// Calls until told to end.
    pub async fn run(mut self, weather: Weather, ended: Arc<AtomicBool>) -> Self {
        while !ended.load(Ordering::SeqCst) {
            let pause = self.random.below(40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if !self.is_connected().await {
                if weather == Weather::Calm && self.session.is_none() {
                    self.board
                        .finding(format!("session {} was refused in a calm", self.who));
                }
                continue;
            }
            let call = self.choose();
            let outcome = self.call(call).await;
            self.judge(call.name(), weather, outcome);
            self.calls += 1;
            if self.calls == WARM {
                let outcome = self.largest_file().await;
                // Otherwise once more, at the next call.
                self.calls -= u64::from(outcome.is_err());
                self.judge("file put", weather, outcome);
                self.warm_bytes = self.bytes().unwrap_or_default();
            }
        }
        self
    }

    async fn is_connected(&mut self) -> bool {
        if self.session.as_ref().is_some_and(|session| !session.is_closed()) {
            return true;
        }
        self.session = None;
        self.calls = 0;
        match Session::open(&self.config).await {
            Ok(session) => self.session = Some(session),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        self.session.is_some()
    }

    fn judge(&self, name: &'static str, weather: Weather, outcome: Result<(), Failure>) {
        let Err(failure) = outcome else {
            return self.board.done(name);
        };
        let code = failure.code.as_str();
        let explained = failure.expected
            || explained::BY_RELOADS.contains(&code)
            || weather == Weather::Storm
                && (explained::by_faults(code) || self.guest && code == explained::DENIED);
        if explained {
            self.board.failed(name, code);
        } else {
            let Failure { code, message, .. } = failure;
            self.board
                .finding(format!("{name} of session {}: {code}: {message}", self.who));
        }
    }

    /// Runs SQL.
    pub async fn ask(&mut self, sql: &str) -> Result<Rows, Failure> {
        let lost = |message: String| Failure {
            code: CLOSED.into(),
            message,
            expected: false,
        };
        let Some(session) = &self.session else {
            return Err(lost("no session".into()));
        };
        let answer = match tokio::time::timeout(HANG, session.simple_query(sql)).await {
            Ok(answer) => answer,
            Err(_) => {
                self.board.finding(format!(
                    "session {} hangs for {HANG:?} in {}",
                    self.who,
                    short(sql)
                ));
                self.session = None;
                return Err(lost("a hang".into()));
            }
        };
        let error = match answer {
            Ok(messages) => return Ok(messages.iter().filter_map(row).collect()),
            Err(error) => error,
        };
        let Some(error) = error.as_db_error() else {
            return Err(lost(error.to_string()));
        };
        let report = Report::from(error);
        if sql.starts_with("BEGIN") && !session.is_closed() {
            let _ = session.batch_execute("ROLLBACK").await; // an error is a session that was ended
        }
        Err(Failure {
            code: report.code.clone(),
            message: format!("{report:?} of {}", short(sql)),
            expected: false,
        })
    }

    /// Runs SQL that returns one value.
    pub async fn value(&mut self, sql: &str) -> Result<Option<String>, Failure> {
        let mut rows = self.ask(sql).await?;
        Ok(rows.pop().and_then(|mut row| row.pop()).flatten())
    }

    /// The number of the next message, and the message: nobody else's is the same.
    pub fn word(&mut self) -> String {
        self.ledger.count += 1;
        format!("{}-{}", self.who, self.ledger.count)
    }

    /// The memory of the backend, if it runs.
    pub fn bytes(&self) -> Option<u64> {
        let pid = self.session.as_ref()?.pid();
        proc::try_private_bytes(pid)
    }

    /// What the backend has grown by since it was warm; `None` when it was not, or has made few calls since.
    pub fn growth(&self) -> Option<i64> {
        if self.calls < 2 * WARM || self.session.as_ref()?.is_closed() {
            return None;
        }
        Some(self.bytes()?.cast_signed() - self.warm_bytes.cast_signed())
    }

    pub async fn disconnect(&mut self) {
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }
}

impl Failure {
    /// Marks the error as what the call may meet by itself.
    pub fn unless(mut self, codes: &[&str]) -> Self {
        self.expected |= codes.contains(&self.code.as_str());
        self
    }
}

fn row(message: &SimpleQueryMessage) -> Option<Vec<Option<String>>> {
    let SimpleQueryMessage::Row(row) = message else {
        return None;
    };
    Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect())
}

/// The beginning of a statement.
fn short(sql: &str) -> String {
    sql.chars().take(300).collect()
}
