//! Free TCP ports, without races between tests that run at the same time.

use std::fs::File;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use super::place;

/// Below the range from which Linux takes ports for outgoing connections (32768 and up).
const FIRST: u32 = 20_000;
const COUNT: u32 = 8_000;

/// A port of 127.0.0.1 that belongs to this test until dropped: its server may stop and start again on it.
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a port that no other test holds and nothing listens on.
    pub fn take() -> Self {
        static TRIED: AtomicU32 = AtomicU32::new(0);
        let directory = place::directory("ports");
        let start = std::process::id().wrapping_mul(37); // spreads processes over the range
        for _ in 0..COUNT {
            let offset = start.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let number = u16::try_from(FIRST + offset).expect("the range ends below 65536");
            let path = directory.join(number.to_string());
            // The file stays for the next test: removing it would let two tests lock two files of one name.
            let lock =
                File::create(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("none of the ports {FIRST} to {} is free", FIRST + COUNT - 1);
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
