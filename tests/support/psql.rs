//! The real psql program, as users have it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use super::place::{bindir, clean_environment, state};
use super::postgres::Postgres;

/// What a run of psql left.
#[derive(Debug)]
pub struct PsqlOutput {
    /// The exit status: 0 success, 1 a fatal error of psql's own, 2 a lost connection, 3 an error in a script;
    /// minus the signal's number when a signal ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for PsqlOutput {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().unwrap_or_default();
        Self {
            status: output.status.code().unwrap_or(-signal),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Postgres {
    /// Runs psql with these arguments, as postgres on database postgres unless they say otherwise, with
    /// ON_ERROR_STOP and without ~/.psqlrc. The runtime goes on meanwhile, so a responder of the test can answer.
    pub async fn psql(&self, args: &[&str]) -> PsqlOutput {
        let mut command = self.psql_command(args);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        output
            .expect("no panic in a run of psql")
            .expect("run psql")
            .into()
    }

    /// Runs SQL with `psql -c` and returns the bare rows; panics when it fails.
    pub async fn sql(&self, sql: &str) -> String {
        let output = self.psql(&["-Atq", "-c", sql]).await;
        assert_eq!(output.status, 0, "{sql}\n{}", output.stderr);
        output.stdout.trim_end().to_owned()
    }

    /// The command of [`Postgres::psql`] with its input and output piped, for a test that talks to psql while it runs
    /// or interrupts it.
    pub fn psql_command(&self, args: &[&str]) -> Command {
        let private = [bindir().join("psql"), state().join("pg15/bin/psql")];
        let program = private.into_iter().find(|path| path.exists());
        let mut command = Command::new(program.unwrap_or_else(|| PathBuf::from("psql")));
        clean_environment(&mut command)
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGCLIENTENCODING", "UTF8")
            .args(["-X", "-v", "ON_ERROR_STOP=1"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}
