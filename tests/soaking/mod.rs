//! A soak: sessions that use all of the extension at random for minutes, while everything around it is broken, and checks
//! that nothing was lost, doubled, leaked or left over.
//!
//! | file | concept |
//! | --- | --- |
//! | `world.rs` | the servers, and what is in them |
//! | `proxy.rs` | the way to NATS, which can be cut and held up |
//! | `random.rs` | chance that can be repeated |
//! | `caller.rs` | one session: the loop, and the judgement of each call |
//! | `mix.rs` | which calls, and how often |
//! | `messages.rs`, `stores.rs`, `surface.rs` | the calls |
//! | `ledger.rs` | what a session knows of what it has written |
//! | `explained.rs` | which errors a fault explains |
//! | `faults.rs`, `ddl.rs` | the faults |
//! | `settle.rs` | coming to rest, and an exam |
//! | `counts.rs`, `census.rs`, `server_log.rs` | the checks |
//! | `board.rs` | what happened so far |

pub mod board;
pub mod caller;
pub mod census;
pub mod counts;
mod ddl;
mod explained;
pub mod faults;
mod ledger;
mod messages;
mod mix;
pub mod proxy;
pub mod random;
pub mod server_log;
pub mod settle;
mod stores;
mod surface;
pub mod world;
