//! What happened so far: calls, errors and faults by name, and what nobody can explain.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often the soak says where it is.
const EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Board(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    calls: BTreeMap<&'static str, Calls>,
    faults: BTreeMap<&'static str, u64>,
    /// Errors that a fault explains, by SQLSTATE.
    errors: BTreeMap<String, u64>,
    findings: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    done: u64,
    failed: u64,
}

impl Board {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no panic while counting")
    }

    pub fn done(&self, call: &'static str) {
        self.counts().calls.entry(call).or_default().done += 1;
    }

    /// A call that failed for a known reason.
    pub fn failed(&self, call: &'static str, code: &str) {
        let mut counts = self.counts();
        counts.calls.entry(call).or_default().failed += 1;
        *counts.errors.entry(code.to_owned()).or_default() += 1;
    }

    pub fn fault(&self, fault: &'static str) {
        *self.counts().faults.entry(fault).or_default() += 1;
    }

    /// How often there was this fault.
    pub fn faults_of(&self, fault: &str) -> u64 {
        self.counts().faults.get(fault).copied().unwrap_or_default()
    }

    /// Something that must not be. It is said at once, and fails the soak when it is over.
    pub fn finding(&self, what: String) {
        println!("FINDING: {what}");
        self.counts().findings.push(what);
    }

    pub fn findings(&self) -> Vec<String> {
        self.counts().findings.clone()
    }

    /// Prints a line every ten seconds, until it is dropped.
    pub async fn progress(&self, phase: &str) {
        let began = Instant::now();
        let mut before = self.counts().calls.clone();
        loop {
            tokio::time::sleep(EVERY).await;
            let counts = self.counts();
            let rates: Vec<String> = counts
                .calls
                .iter()
                .map(|(call, calls)| {
                    (
                        call,
                        calls.done - before.get(call).map_or(0, |before| before.done),
                    )
                })
                .map(|(call, done)| format!("{call} {:.1}", done as f64 / EVERY.as_secs_f64()))
                .collect();
            let faults: u64 = counts.faults.values().sum();
            let failed: u64 = counts.calls.values().map(|calls| calls.failed).sum();
            println!(
                "{phase} {:>4} s | {faults} faults, {failed} calls failed, {} findings | per second: {}",
                began.elapsed().as_secs(),
                counts.findings.len(),
                rates.join(", ")
            );
            before = counts.calls.clone();
        }
    }

    /// Prints everything.
    pub fn table(&self) {
        let counts = self.counts();
        println!("{:<28} {:>9} {:>9}", "call", "done", "failed");
        for (call, calls) in &counts.calls {
            println!("{call:<28} {:>9} {:>9}", calls.done, calls.failed);
        }
        println!("{:<28} {:>9}", "fault", "times");
        for (fault, times) in &counts.faults {
            println!("{fault:<28} {times:>9}");
        }
        let errors: Vec<String> = counts
            .errors
            .iter()
            .map(|(code, n)| format!("{code} {n}"))
            .collect();
        println!("errors that were expected: {}", errors.join(", "));
    }
}
