//! The end of the runtime when something vital dies. In the actor thread.

use tokio::sync::mpsc;

/// Held by every actor that must live; dropped with it, whether it stops or panics.
#[derive(Clone)]
pub struct Vital {
    dead: mpsc::Sender<()>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Full means that a death was reported before.
            let _ = self.dead.try_send(());
        }
    }
}

impl Vital {
    /// With what tells of the first death.
    pub fn watched() -> (Vital, mpsc::Receiver<()>) {
        let (dead, died) = mpsc::channel(1);
        (Vital { dead }, died)
    }
}
