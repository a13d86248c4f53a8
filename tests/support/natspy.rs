//! nats-py, a client that shares no code with the extension's: what one writes, the other must read.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::nats::NatsServer;
use super::place::{run, state};

impl NatsServer {
    /// Has nats-py do these steps, `[[operation, argument...]...]` as tests/natspy/run.py defines them, and returns
    /// the outcome of each. Bytes are hexadecimal digits. Panics when one fails otherwise than by not finding.
    pub async fn python(&self, steps: Value) -> Vec<Value> {
        let directory = std::env::var_os("NATS_PY").map_or_else(|| state().join("natspy"), PathBuf::from);
        assert!(
            directory.exists(),
            "there is no {}: `scripts/setup.sh natspy` installs it, or set NATS_PY",
            directory.display()
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/natspy/run.py");
        // Not an argument: those have a limit.
        let mut input = tempfile::tempfile().expect("create a temporary file");
        input
            .write_all(steps.to_string().as_bytes())
            .expect("write the steps");
        input.rewind().expect("rewind the steps");
        let mut command = Command::new("/usr/bin/python3");
        command
            .env("PYTHONPATH", directory)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(script)
            .arg(self.open_url())
            .stdin(input);
        let output = tokio::task::spawn_blocking(move || run(&mut command)).await;
        let output = output.expect("nats-py does every step").stdout;
        serde_json::from_slice(&output).expect("JSON of tests/natspy/run.py")
    }
}
