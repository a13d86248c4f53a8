//! Has the runtime worker started: with the server if the library is preloaded, otherwise for the first session that
//! needs it. Runs in the postmaster, in backends and in executors, on the main thread.

use std::cell::Cell;

use super::worker;
use crate::error::{Error, Kind, Result};

const NAME: &str = "litmus_pgnats runtime";
const MAIN: &str = "litmus_pgnats_runtime_main";
/// Has the runtime worker start with the server, if the library is being preloaded; called when the library is loaded.
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

/// Whether the library was preloaded, so that the runtime worker starts with the server.
pub fn is_preloaded() -> bool {
    PRELOADED.get()
}

/// Starts the runtime worker for a session that finds none.
#[derive(Default)]
pub struct Starter {
    asked: bool,
}

impl Starter {
    /// Asks the postmaster for the runtime worker, once at most, and not at all if it starts with the server. Fails
    /// during a binary upgrade, and if no slot for a background worker is free.
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
