//! Has the runtime worker started: with the server if the library is preloaded, otherwise for the first session that calls.
//! Runs in the postmaster and in backends.

use std::cell::Cell;

use super::worker;
use crate::error::{Error, Kind, Result};

const NAME: &str = "litmus_pgnats runtime";
const MAIN: &str = "litmus_pgnats_runtime_main";
/// Has the worker start with the server, if the library is preloaded; called when the library is loaded.
pub fn register() {
    if worker::is_preloading() && !worker::is_binary_upgrade() {
        worker::register_static(NAME, MAIN);
        PRELOADED.set(true);
    }
}

thread_local! {
    /// Set in the postmaster and inherited by its children.
    static PRELOADED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the library is preloaded.
pub fn is_preloaded() -> bool {
    PRELOADED.get()
}

/// Starts the runtime for a session that finds none.
#[derive(Default)]
pub struct Starter {
    asked: bool,
}

impl Starter {
    /// Asks the postmaster once for a worker, unless one comes with the server anyway.
    pub fn ensure(&mut self) -> Result<()> {
        if self.asked || is_preloaded() {
            return Ok(());
        }
        if worker::is_binary_upgrade() {
            return Err(Error::new(
                Kind::RuntimeUnavailable,
                "litmus_pgnats does not run during a binary upgrade",
            ));
        }
        if !worker::register_dynamic(NAME, MAIN) {
            return Err(Error::new(
                Kind::WorkerSlots,
                "could not start the litmus_pgnats runtime worker",
            )
            .detail("All slots for background workers are taken."));
        }
        self.asked = true;
        Ok(())
    }
}
