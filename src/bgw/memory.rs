//! Gives back to the system what the runtime worker has freed, from its main thread.
//!
//! glibc keeps a page that lies below one in use: the worker would stay as large as in its busiest moment, for weeks.

use std::time::{Duration, Instant};

/// As rarely as PostgreSQL's background writer wakes when there is nothing to write.
const INTERVAL: Duration = Duration::from_secs(10);

/// When memory is given back the next time.
pub struct Trimmer {
    due: Instant,
}

impl Trimmer {
    pub fn new() -> Self {
        Self {
            due: Instant::now() + INTERVAL,
        }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    /// To be called when it is due; earlier calls do nothing.
    pub fn serve(&mut self) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        // Other allocators keep little.
        #[cfg(target_env = "gnu")]
        // SAFETY: takes the allocator's own locks, and gives up only pages that hold nothing.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
