//! Which errors a session may see, and the fault that explains each.

/// What a session calls an error that PostgreSQL did not send: the connection was closed, or refused.
pub const CLOSED: &str = "closed";

/// SQLSTATEs that faults explain.
pub const BY_FAULTS: &[(&str, &str)] = &[
    ("08001", "NATS is killed, or was not reached in time"),
    (
        "08006",
        "NATS is killed, the connection is cut, or replaced by a reload",
    ),
    (
        "08007",
        "NATS is killed or stalls while a call waits for its acknowledgement",
    ),
    ("28000", "the secret is being changed"),
    ("53400", "NATS is away, and the buffer is full"),
    ("57014", "pg_cancel_backend"),
    ("57P01", "pg_terminate_backend, or PostgreSQL stops"),
    ("57P02", "a process of PostgreSQL was killed"),
    ("57P03", "the runtime worker or PostgreSQL is being started"),
    ("58000", "the runtime worker ended during the call"),
    ("HV00K", "who should answer was ended, or NATS stalls"),
    (
        "HV00M",
        "who should answer is not subscribed: NATS or the runtime worker has just been started",
    ),
    ("HV00N", "JetStream has just been started, and is not ready"),
    ("38000", "the responder was cancelled, or ended"),
    (CLOSED, "the session was ended"),
];

/// What the sessions' own calls explain, without any fault: a reload by one of them has others see a moment without
/// subscriptions.
pub const BY_RELOADS: &[&str] = &["HV00K", "HV00M"];

/// Of the guest, whose USAGE on the foreign server is taken away at times, and who does not own what others do.
pub const DENIED: &str = "42501";

/// Whether a fault explains the error.
pub fn by_faults(code: &str) -> bool {
    BY_FAULTS.iter().any(|(known, _)| *known == code)
}
