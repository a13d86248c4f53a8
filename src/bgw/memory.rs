//! Gives memory that the runtime worker has freed back to the system. Runs in the runtime worker, on its main thread.
//!
//! glibc keeps a free page that lies below one in use, so the worker would stay as large as in its busiest moment, for
//! weeks.

use std::time::{Duration, Instant};

/// Time between two calls of malloc_trim: as rarely as PostgreSQL's background writer wakes when there is nothing to
/// write.
const INTERVAL: Duration = Duration::from_secs(10);

/// Gives memory back from time to time.
pub struct Trimmer {
    due: Instant,
}

impl Trimmer {
    pub fn new() -> Self {
        Self {
            due: Instant::now() + INTERVAL,
        }
    }

    /// When [`Trimmer::serve`] has something to do next.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Gives memory back if that is due; an earlier call does nothing.
    pub fn serve(&mut self) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        // Other allocators keep little freed memory.
        #[cfg(target_env = "gnu")]
        // SAFETY: takes the allocator's own locks, and gives up only pages that hold nothing.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
