//! Tests of the pool, whose launcher starts no processes. Pure; in a thread of the test.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::assign::PATIENCE;
use super::*;
use crate::actors::base::queue_limits::Limits;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::handlers::queue::Incoming;
use crate::actors::metrics::in_flight::InFlight;
use crate::actors::workers::launcher::{Launcher, Notice, RESTART, Sizes};
use crate::actors::workers::messages::WorkerOrder;
use crate::channel::target::{Key, Source, Target};
use crate::channel::work::{Definition, HandlerKind, ToWorker};
use crate::settings::{Options, Settings};

const DB: u32 = 5;
/// Object ids of two roles.
const RED: u32 = 10;
const BLUE: u32 = 11;

/// Remembers what it was told to start and to terminate.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Launcher for Recorder {
    fn start(&self, worker: WorkerId, _: u32) {
        self.0.lock().push(format!("start {worker}"));
    }

    fn terminate(&self, worker: WorkerId) {
        self.0.lock().push(format!("terminate {worker}"));
    }
}

fn id(n: u32) -> WorkerId {
    WorkerId::executor(n)
}

struct Scene {
    pool: Pool,
    launcher: Recorder,
    sizes: Arc<Sizes>,
}

impl Scene {
    fn new(executors: usize) -> Scene {
        let sizes = Arc::new(Sizes {
            executors: executors.into(),
            idle_ms: 0.into(),
            callback_ms: 0.into(),
            outbox_retry_ms: 0.into(),
            changed: Default::default(),
        });
        let launcher = Recorder::default();
        let pool = Pool::new(Arc::new(launcher.clone()), sizes.clone(), InFlight::new());
        Scene {
            pool,
            launcher,
            sizes,
        }
    }

    /// A database with handlers and one executor, which has refreshed; returns the executor's orders.
    fn at_work(&mut self) -> mpsc::Receiver<WorkerOrder> {
        self.pool.refresh(DB, oneshot::channel().0);
        assert_eq!(self.launcher.told(), ["start 1"]);
        let mut orders = self.join(1);
        assert_eq!(told(&mut orders), "refresh");
        self.pool.reported(id(1), "db".into(), &HashSet::from([RED]));
        self.pool.applied(DB, Vec::new());
        orders
    }

    fn join(&mut self, n: u32) -> mpsc::Receiver<WorkerOrder> {
        let (sender, orders) = mpsc::channel(4);
        assert!(self.pool.joined(id(n), n, sender));
        orders
    }
}

/// The next order of an executor, as text.
fn told(orders: &mut mpsc::Receiver<WorkerOrder>) -> String {
    match orders.try_recv() {
        Ok((ToWorker::Refresh { .. }, _)) => "refresh".into(),
        Ok((ToWorker::End, _)) => "leave".into(),
        Ok((ToWorker::Fetch(_), _)) => "fetch".into(),
        Ok((ToWorker::Work(work), _)) => format!("{} {}", work.subject, work.messages.len()),
        Err(_) => "nothing".into(),
    }
}

fn handler(kind: HandlerKind, subject: &str, messages: usize) -> Arc<MessageHandler> {
    handler_of(RED, kind, subject, messages)
}

fn handler_of(role: u32, kind: HandlerKind, subject: &str, messages: usize) -> Arc<MessageHandler> {
    let key = Key {
        database: DB,
        server: 1,
        mapping: 0,
        private_to: 0,
    };
    let target = Target {
        key,
        database_name: "db".into(),
        server_name: "nats".into(),
    };
    let settings = Settings::resolve(&Options::new(), None).expect("defaults");
    let definition = Definition {
        kind,
        server: "nats".into(),
        subject: subject.into(),
        queue_group: None,
        batch_size: None,
        consumer: None,
        progress: Default::default(),
        halted: None,
        function: "public.f(bytea)".into(),
        function_oid: 1,
        role,
        role_name: "somebody".into(),
        source: Ok(Source { target, settings }),
    };
    let limits = Limits::new(1000, 1 << 20, 1 << 20);
    let handler = MessageHandler::new(DB, definition, None, limits, Arc::default());
    for _ in 0..messages {
        handler.push(Incoming {
            subject: subject.into(),
            reply: None,
            headers: Vec::new(),
            payload: Bytes::new(),
            arrived: Instant::now(),
            time_us: 0,
            position: None,
            deaths: 0,
        });
    }
    handler
}

/// Numbers of messages that wait and that were dropped.
fn left(handler: &MessageHandler) -> (usize, u64) {
    let waiting = handler.lock().queue.len();
    (waiting, handler.counts().dropped)
}

#[test]
fn a_database_without_handlers_has_no_executor() {
    let mut scene = Scene::new(4);
    let (done, mut waits) = oneshot::channel();
    scene.pool.refresh(DB, done);
    let mut orders = scene.join(1);
    assert_eq!(told(&mut orders), "refresh");
    scene.pool.reported(id(1), "db".into(), &HashSet::new());
    let waiters = scene.pool.take_waiters(DB);
    assert!(waits.try_recv().is_err(), "told too early");
    scene.pool.applied(DB, waiters);
    assert!(waits.try_recv().is_ok());
    assert_eq!(told(&mut orders), "leave");
    scene.pool.left(id(1));
    assert_eq!(
        (scene.launcher.told(), scene.pool.next_change()),
        (vec!["start 1".to_string()], None)
    );
}

#[test]
fn a_subscription_has_one_executor_and_keeps_its_order() {
    let mut scene = Scene::new(4);
    let mut first = scene.at_work();
    let one = handler(HandlerKind::Subscription, "one", 3);
    scene.pool.ready(&one);
    assert_eq!(told(&mut first), "one 1", "nothing is known of the function yet");
    scene.pool.grow(DB);
    assert_eq!(
        scene.launcher.told(),
        [""; 0],
        "nobody waits for another executor"
    );
    scene.pool.task(id(1)).expect("a task").messages.clear();
    one.lock().mean = Some(Duration::from_micros(10));
    scene.pool.finished(id(1));
    assert_eq!(told(&mut first), "one 2");
}

#[test]
fn what_an_executor_has_said_counts_before_its_end() {
    let mut scene = Scene::new(4);
    let mut first = scene.at_work();
    let one = handler(HandlerKind::Subscription, "one", 1);
    scene.pool.ready(&one);
    assert_eq!(told(&mut first), "one 1");
    // The postmaster tells of the end of the process before the channel was read to its end.
    assert_eq!(scene.pool.notice(id(1), Notice::Ended), None);
    scene
        .pool
        .task(id(1))
        .expect("the task is still known")
        .committing = 1;
    scene.pool.left(id(1));
    assert_eq!(left(&one), (0, 1), "perhaps committed, so not repeated");
    // One that has not joined has no channel.
    scene.pool.ready(&handler(HandlerKind::Subscription, "two", 1));
    scene.launcher.told();
    scene.pool.notice(id(2), Notice::Ended);
    assert!(scene.pool.task(id(2)).is_none());
}

#[test]
fn requests_of_one_responder_go_to_several_executors_and_the_pool_grows_to_its_size() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    let slow = handler(HandlerKind::Responder, "slow", 5);
    scene.pool.ready(&slow);
    assert_eq!(told(&mut first), "slow 1");
    assert_eq!(scene.pool.short_of(id(1)), Some(DB));
    scene.pool.grow(DB);
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    let mut second = scene.join(2);
    assert_eq!(told(&mut second), "slow 1");
    assert_eq!(scene.pool.short_of(id(2)), None, "the pool is full");
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), [""; 0]);
    scene.sizes.executors.store(3, Ordering::Relaxed);
    assert_eq!(scene.pool.short_of(id(2)), Some(DB));
    scene.pool.shrink();
    assert_eq!(scene.launcher.told(), ["start 3"]);
}

#[test]
fn the_idle_leave_but_for_one() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    let slow = handler(HandlerKind::Responder, "slow", 2);
    scene.pool.ready(&slow);
    scene.pool.grow(DB);
    let mut second = scene.join(2);
    assert_eq!(
        (told(&mut first), told(&mut second)),
        ("slow 1".into(), "slow 1".into())
    );
    for worker in [id(1), id(2)] {
        scene.pool.task(worker).expect("a task").messages.clear();
        scene.pool.finished(worker);
    }
    assert!(scene.pool.next_change().is_some());
    scene.pool.shrink();
    let told = [told(&mut first), told(&mut second)];
    assert_eq!(told.iter().filter(|told| *told == "leave").count(), 1, "{told:?}");
}

#[test]
fn messages_survive_one_death_but_not_a_second_nor_a_commit() {
    let mut scene = Scene::new(1);
    let mut first = scene.at_work();
    let one = handler(HandlerKind::Subscription, "one", 1);
    scene.pool.ready(&one);
    assert_eq!(told(&mut first), "one 1");
    scene.pool.left(id(1));
    assert_eq!(one.lock().queue.len(), 1);
    assert_eq!(scene.launcher.told(), [""; 0], "not at once");
    let soon = scene.pool.next_change().expect("a time to start again");
    std::thread::sleep(soon + Duration::from_millis(5));
    scene.pool.shrink();
    assert_eq!(scene.launcher.told(), ["start 2"]);
    let mut second = scene.join(2);
    assert_eq!(told(&mut second), "one 1");
    scene.pool.left(id(2));
    assert_eq!(left(&one), (0, 1));

    let two = handler(HandlerKind::Subscription, "two", 1);
    std::thread::sleep(scene.pool.next_change().unwrap_or_default() + Duration::from_millis(5));
    scene.pool.shrink();
    let mut third = scene.join(3);
    scene.pool.ready(&two);
    assert_eq!(told(&mut third), "two 1");
    scene.pool.task(id(3)).expect("a task").committing = 1;
    scene.pool.left(id(3));
    assert_eq!(left(&two), (0, 1));
}

#[test]
fn a_drained_database_is_empty_until_it_is_resumed() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    let (done, mut drained) = oneshot::channel();
    scene.pool.drain(DB, done);
    assert_eq!(told(&mut first), "leave");
    assert!(drained.try_recv().is_err(), "not yet");
    scene.pool.left(id(1));
    assert!(drained.try_recv().is_ok());
    scene.pool.ready(&handler(HandlerKind::Subscription, "one", 1));
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), [""; 0]);
    scene.pool.resume(DB);
    scene.pool.refresh(DB, oneshot::channel().0);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    assert_eq!(scene.pool.notice(id(2), Notice::NoDatabase), Some(DB));
    assert!(scene.pool.databases().is_empty());
}

#[test]
fn a_missing_slot_is_shown_and_tried_again_later() {
    let mut scene = Scene::new(2);
    let _first = scene.at_work();
    for subject in ["one", "two"] {
        scene.pool.ready(&handler(HandlerKind::Subscription, subject, 1));
    }
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    scene.pool.notice(id(2), Notice::NoSlot);
    let rows = scene.pool.rows();
    let states: Vec<&str> = rows.iter().map(|row| row.state.as_str()).collect();
    assert_eq!(states, ["running", "no worker slot"]);
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), [""; 0], "not at once");
    assert!(scene.pool.next_change().is_some());
}

#[test]
fn the_idle_executor_of_another_role_gives_its_slot_up_where_none_is_free() {
    let mut scene = Scene::new(4);
    let mut first = scene.at_work();
    share(&mut scene);
    let red = handler(HandlerKind::Subscription, "red", 1);
    scene.pool.ready(&red);
    assert_eq!(told(&mut first), "red 1");
    finish(&mut scene, id(1));
    scene
        .pool
        .ready(&handler_of(BLUE, HandlerKind::Subscription, "blue", 1));
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    scene.pool.notice(id(2), Notice::NoSlot);
    assert_eq!(told(&mut first), "leave");
    scene.pool.left(id(1));
    assert_eq!(
        scene.launcher.told(),
        [""; 0],
        "the process ends later than its channel"
    );
    let soon = scene.pool.next_change().expect("a time to look");
    assert!(soon <= RESTART, "{soon:?}");
    std::thread::sleep(soon);
    scene.pool.shrink();
    assert_eq!(scene.launcher.told(), ["start 3"]);
    assert_eq!(told(&mut scene.join(3)), "blue 1");
}

/// Applies a report of handlers of two roles, so that the pool is shared.
fn share(scene: &mut Scene) {
    scene
        .pool
        .reported(id(1), "db".into(), &HashSet::from([RED, BLUE]));
}

fn finish(scene: &mut Scene, worker: WorkerId) {
    scene.pool.task(worker).expect("a task").messages.clear();
    scene.pool.finished(worker);
}

#[test]
fn an_executor_serves_one_role_and_makes_room_when_it_has_nothing_to_do() {
    let mut scene = Scene::new(1);
    let mut first = scene.at_work();
    share(&mut scene);
    let red = handler(HandlerKind::Subscription, "red", 1);
    let blue = handler_of(BLUE, HandlerKind::Subscription, "blue", 1);
    scene.pool.ready(&red);
    assert_eq!(told(&mut first), "red 1");
    scene.pool.ready(&blue);
    finish(&mut scene, id(1));
    assert_eq!(told(&mut first), "nothing");
    scene.pool.grow(DB);
    assert_eq!(told(&mut first), "leave");
    assert_eq!(scene.launcher.told(), [""; 0], "not before the other is gone");
    scene.pool.left(id(1));
    assert_eq!(scene.launcher.told(), ["start 2"]);
    assert_eq!(told(&mut scene.join(2)), "blue 1");
}

#[test]
fn a_busy_executor_of_a_full_pool_makes_way_for_a_role_that_waits() {
    let mut scene = Scene::new(1);
    let mut first = scene.at_work();
    share(&mut scene);
    let red = handler(HandlerKind::Subscription, "red", 9);
    scene.pool.ready(&red);
    assert_eq!(told(&mut first), "red 1");
    let blue = handler_of(BLUE, HandlerKind::Subscription, "blue", 1);
    scene.pool.ready(&blue);
    finish(&mut scene, id(1));
    assert_eq!(told(&mut first), "red 1", "the other has not waited for long");
    std::thread::sleep(PATIENCE);
    finish(&mut scene, id(1));
    assert_eq!(told(&mut first), "leave");
    scene.pool.left(id(1));
    assert_eq!(told(&mut scene.join(2)), "blue 1");
}

#[test]
fn one_executor_of_a_shared_pool_is_left_to_the_other_roles() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    share(&mut scene);
    let stuck = ["one", "two"].map(|subject| handler(HandlerKind::Subscription, subject, 1));
    for handler in &stuck {
        scene.pool.ready(handler);
    }
    assert_eq!(told(&mut first), "one 1");
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), [""; 0]);
    scene
        .pool
        .ready(&handler_of(BLUE, HandlerKind::Subscription, "blue", 1));
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    assert_eq!(told(&mut scene.join(2)), "blue 1");
}

#[test]
fn who_works_for_what_was_taken_away_is_ended() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    let one = handler(HandlerKind::Subscription, "one", 1);
    scene.pool.ready(&one);
    assert_eq!(told(&mut first), "one 1");
    scene.pool.evict_workers(DB, Duration::ZERO);
    assert_eq!(scene.launcher.told(), [""; 0]);
    one.end();
    scene.pool.evict_workers(DB, Duration::from_secs(9));
    assert_eq!(scene.launcher.told(), [""; 0], "it was taken away just now");
    scene.pool.evict_workers(DB, Duration::ZERO);
    assert_eq!(scene.launcher.told(), ["terminate 1"]);
}

#[test]
fn a_function_that_survives_its_timeout_is_ended_with_its_executor() {
    let mut scene = Scene::new(1);
    let mut first = scene.at_work();
    scene.sizes.callback_ms.store(1000, Ordering::Relaxed);
    scene.pool.ready(&handler(HandlerKind::Subscription, "one", 1));
    assert_eq!(told(&mut first), "one 1");
    let soon = scene.pool.next_change().expect("a time to look");
    assert!(
        soon > Duration::from_secs(5) && soon <= Duration::from_secs(6),
        "{soon:?}"
    );
    scene.pool.shrink();
    assert_eq!(scene.launcher.told(), [""; 0]);
    scene.pool.task(id(1)).expect("a task").since -= Duration::from_secs(6);
    scene.pool.shrink();
    assert_eq!(scene.launcher.told(), ["terminate 1"]);
}

#[test]
fn a_role_that_has_all_executors_already_leaves_one_more_to_the_others() {
    let mut scene = Scene::new(2);
    let mut first = scene.at_work();
    for subject in ["one", "two"] {
        scene.pool.ready(&handler(HandlerKind::Subscription, subject, 1));
    }
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    let mut second = scene.join(2);
    assert_eq!(
        (told(&mut first), told(&mut second)),
        ("one 1".into(), "two 1".into())
    );
    share(&mut scene);
    scene.pool.ready(&handler(HandlerKind::Subscription, "three", 1));
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), [""; 0]);
    scene
        .pool
        .ready(&handler_of(BLUE, HandlerKind::Subscription, "blue", 1));
    scene.pool.grow(DB);
    assert_eq!(scene.launcher.told(), ["start 3"]);
    assert_eq!(told(&mut scene.join(3)), "blue 1");
}

#[test]
fn an_executor_beyond_the_limit_only_looks() {
    let mut scene = Scene::new(1);
    let mut first = scene.at_work();
    let stuck = handler(HandlerKind::Subscription, "stuck", 1);
    scene.pool.ready(&stuck);
    assert_eq!(told(&mut first), "stuck 1");
    scene.pool.refresh(DB, oneshot::channel().0);
    assert_eq!(scene.launcher.told(), ["start 2"]);
    let mut second = scene.join(2);
    assert_eq!(told(&mut second), "refresh");
    scene.pool.ready(&handler(HandlerKind::Subscription, "next", 1));
    scene.pool.reported(id(2), "db".into(), &HashSet::from([RED]));
    scene.pool.applied(DB, Vec::new());
    assert_eq!(told(&mut second), "leave");
}
