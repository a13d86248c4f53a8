//! A client connection that keeps the notices it got, and reading PostgreSQL's errors.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls};

/// An error, warning or notice of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub severity: String,
    /// The SQLSTATE, say `42501`.
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl From<&DbError> for Report {
    fn from(error: &DbError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// What the server said with an error; panics when the error is not the server's, say a lost connection.
#[track_caller]
pub fn db_error(error: &Error) -> Report {
    match error.as_db_error() {
        Some(db) => Report::from(db),
        None => panic!("not an error of the server: {error:?}"),
    }
}

/// The SQLSTATE of an error; panics when the error is not the server's.
#[track_caller]
pub fn sqlstate(error: &Error) -> String {
    db_error(error).code
}

/// A session of PostgreSQL; use it as a `tokio_postgres::Client`. Dropping it ends the session.
pub struct Session {
    client: Client,
    pid: i32,
    notices: Arc<Mutex<Vec<Report>>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Session {
    /// Connects; an error when the server refuses.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let (client, mut connection) = config.connect(NoTls).await?;
        let notices = Arc::<Mutex<Vec<Report>>>::default();
        let sink = Arc::clone(&notices);
        let connection = tokio::spawn(async move {
            let mut messages = futures::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message {
                    let mut kept = sink.lock().expect("no panic while keeping a notice");
                    kept.push(Report::from(&notice));
                }
            }
        });
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await?;
        Ok(Self {
            pid: row.get(0),
            client,
            notices,
            connection,
        })
    }

    /// The process id of the backend.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// All notices and warnings so far, oldest first.
    pub fn notices(&self) -> Vec<Report> {
        let kept = self.notices.lock();
        kept.expect("no panic while keeping a notice").clone()
    }

    /// All notices and warnings so far, which are forgotten by this.
    pub fn take_notices(&self) -> Vec<Report> {
        let kept = self.notices.lock();
        std::mem::take(&mut *kept.expect("no panic while keeping a notice"))
    }

    /// Ends the session and waits until the connection is closed.
    pub async fn close(self) {
        drop(self.client);
        let _ = self.connection.await; // an error means that the server closed it first
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
