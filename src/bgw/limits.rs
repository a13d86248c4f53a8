//! Takes the limits of the actors from the configuration parameters. Runs in the runtime worker, on its main thread.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::GucSetting;
use tokio::sync::Notify;

use super::allocator;
use crate::actors::base::queue_limits::Limits;
use crate::actors::base::server_role::Fencing;
use crate::actors::workers::launcher::Sizes;
use crate::sql::parameters::{
    CALLBACK_TIMEOUT, EXECUTOR_IDLE_TIMEOUT, MAX_EXECUTORS, OUTBOX_RETRY_TIME, PATRONI_FENCING,
    QUEUE_MESSAGES, QUEUE_SIZE, RUNTIME_MEMORY_LIMIT, TOTAL_QUEUE_SIZE,
};

/// The limits, which the actor thread reads at any time.
pub struct Bounds {
    pub limits: Arc<Limits>,
    pub sizes: Arc<Sizes>,
    pub fencing: Arc<Fencing>,
    /// The memory limit that was set last, in megabytes.
    memory: Cell<i32>,
}

impl Default for Bounds {
    fn default() -> Self {
        let bounds = Bounds {
            limits: Arc::default(),
            sizes: Arc::new(Sizes {
                executors: 0.into(),
                idle_ms: 0.into(),
                callback_ms: 0.into(),
                outbox_retry_ms: 0.into(),
                changed: Notify::new(),
            }),
            fencing: Arc::default(),
            memory: Cell::new(0),
        };
        bounds.update();
        bounds
    }
}

impl Bounds {
    /// Reads the parameters, which a reload of the configuration may have changed.
    pub fn update(&self) {
        let size = |setting: &GucSetting<i32>| usize::try_from(setting.get()).unwrap_or(0);
        let idle_ms = u64::try_from(EXECUTOR_IDLE_TIMEOUT.get()).unwrap_or(0);
        self.limits.messages.store(size(&QUEUE_MESSAGES), Relaxed);
        self.limits
            .bytes
            .store(size(&QUEUE_SIZE).saturating_mul(1024), Relaxed);
        self.limits
            .total_bytes
            .store(size(&TOTAL_QUEUE_SIZE).saturating_mul(1024), Relaxed);
        self.fencing.0.store(PATRONI_FENCING.get(), Relaxed);
        let memory = RUNTIME_MEMORY_LIMIT.get();
        if self.memory.replace(memory) != memory {
            let bytes = u64::try_from(memory).unwrap_or(0) * 1024 * 1024;
            allocator::set_limit(Some(bytes).filter(|bytes| *bytes > 0));
        }
        let callback_ms = u64::try_from(CALLBACK_TIMEOUT.get()).unwrap_or(0);
        self.sizes.callback_ms.store(callback_ms, Relaxed);
        let retry_ms = OUTBOX_RETRY_TIME.get().into();
        self.sizes.outbox_retry_ms.store(retry_ms, Relaxed);
        let before = (
            self.sizes.executors.swap(size(&MAX_EXECUTORS), Relaxed),
            self.sizes.idle_ms.swap(idle_ms, Relaxed),
        );
        if before != (size(&MAX_EXECUTORS), idle_ms) {
            self.sizes.changed.notify_one();
        }
    }
}
