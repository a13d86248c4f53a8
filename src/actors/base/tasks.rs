//! The registry of the actor thread's tasks, each under a name. Runs in the actor thread.
//!
//! tokio catches the panic of a task, and whatever depends on the task would then wait for ever. So every task is
//! started here, and every actor holds a [`Vital`]. A task's panic is logged with its name, and the panic of a vital
//! task or actor ends the runtime worker, which the postmaster starts again. actix itself drives the future with which
//! an actor answers a message: [`answer`] is for those that do more than wait for others.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};

/// A task's name, for the log.
pub type TaskName = Cow<'static, str>;

/// What is known of the tasks of this thread.
#[derive(Default)]
struct TaskRegistry {
    deaths: Option<mpsc::UnboundedSender<TaskName>>,
    last_number: u64,
    running: BTreeMap<u64, RunningTask>,
}

struct RunningTask {
    name: TaskName,
    /// Makes the task panic, for tests.
    #[cfg(debug_assertions)]
    doom: std::rc::Rc<tokio::sync::Notify>,
}

thread_local! {
    static REGISTRY: RefCell<TaskRegistry> = RefCell::default();
}

/// Returns a channel that gives the name of each vital task or actor that panics from now on.
pub fn watch_deaths() -> mpsc::UnboundedReceiver<TaskName> {
    let (deaths, died) = mpsc::unbounded_channel();
    REGISTRY.with_borrow_mut(|registry| registry.deaths = Some(deaths));
    died
}

/// Starts a task whose panic is only logged; the handle then gives `None`.
pub fn spawn<T: 'static>(
    name: impl Into<TaskName>,
    task: impl Future<Output = T> + 'static,
) -> JoinHandle<Option<T>> {
    actix::spawn(watched(name.into(), false, task))
}

/// Starts a task without which the runtime worker must not go on: its panic ends the worker.
pub fn spawn_vital(
    name: impl Into<TaskName>,
    task: impl Future<Output = ()> + 'static,
) -> JoinHandle<Option<()>> {
    actix::spawn(watched(name.into(), true, task))
}

/// Carries out the call that an actor answers with a future of its own. A panic is logged, and fails the call.
pub async fn answer<T>(name: impl Into<TaskName>, call: impl Future<Output = Result<T>>) -> Result<T> {
    let name = name.into();
    let outcome = watched(name.clone(), false, call).await;
    outcome.unwrap_or_else(|| {
        Err(Error::new(
            Kind::Internal,
            format!("internal error: the {name} has panicked"),
        ))
    })
}

/// Like [`spawn`], for a `drop` or a test, which may run where the thread has no actors, or has none any more: nothing
/// is started then.
pub fn spawn_if_possible(name: impl Into<TaskName>, task: impl Future<Output = ()> + 'static) {
    let name = name.into();
    // Only a thread that runs actors has a `LocalSet` to start the task in.
    if actix::System::is_registered() && tokio::runtime::Handle::try_current().is_ok() {
        spawn(name, task);
    }
}

/// Names of the running tasks, in the order of their start.
pub fn running() -> Vec<TaskName> {
    REGISTRY.with_borrow(|registry| registry.running.values().map(|task| task.name.clone()).collect())
}

/// Makes the oldest task panic whose name begins with `name`; `false` if there is none.
#[cfg(debug_assertions)]
pub fn make_panic(name: &str) -> bool {
    REGISTRY.with_borrow(|registry| {
        let task = registry.running.values().find(|task| task.name.starts_with(name));
        task.inspect(|task| task.doom.notify_one()).is_some()
    })
}

async fn watched<T>(name: TaskName, is_vital: bool, task: impl Future<Output = T>) -> Option<T> {
    let entry = RegisteredTask::new(name.clone());
    #[cfg(debug_assertions)]
    let task = {
        let doom = entry.doom.clone();
        async move {
            tokio::select! {
                biased;
                () = doom.notified() => std::panic::resume_unwind(Box::new("told to panic")),
                outcome = task => outcome,
            }
        }
    };
    let outcome = AssertUnwindSafe(task).catch_unwind().await;
    drop(entry);
    if outcome.is_err() {
        log::error!("internal error: task \"{name}\" has panicked");
        if is_vital {
            report_death(name);
        }
    }
    outcome.ok()
}

fn report_death(name: TaskName) {
    // A thread that is ending may have dropped its registry.
    let reported = REGISTRY.try_with(|registry| {
        let registry = registry.try_borrow().ok()?;
        registry.deaths.as_ref()?.send(name).ok()
    });
    if !matches!(reported, Ok(Some(()))) {
        log::debug!("nobody hears of a panic any more");
    }
}

/// A task's place in the registry, until it is dropped.
struct RegisteredTask {
    number: u64,
    #[cfg(debug_assertions)]
    doom: std::rc::Rc<tokio::sync::Notify>,
}

impl RegisteredTask {
    fn new(name: TaskName) -> RegisteredTask {
        REGISTRY.with_borrow_mut(|registry| {
            registry.last_number += 1;
            let number = registry.last_number;
            #[cfg(debug_assertions)]
            let doom = std::rc::Rc::<tokio::sync::Notify>::default();
            let task = RunningTask {
                name,
                #[cfg(debug_assertions)]
                doom: doom.clone(),
            };
            registry.running.insert(number, task);
            RegisteredTask {
                number,
                #[cfg(debug_assertions)]
                doom,
            }
        })
    }
}

impl Drop for RegisteredTask {
    fn drop(&mut self) {
        // If the thread is ending, the whole registry may be gone already.
        let _ = REGISTRY.try_with(|registry| registry.borrow_mut().running.remove(&self.number));
    }
}

/// Held by an actor without which the runtime worker must not go on. Dropped by a panic, it reports the actor's death.
pub struct Vital(TaskName);

impl Vital {
    pub fn new(actor: impl Into<TaskName>) -> Vital {
        Vital(actor.into())
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            report_death(std::mem::take(&mut self.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        actix::System::new().block_on(test);
    }

    async fn panics() {
        std::panic::resume_unwind(Box::new("a test"))
    }

    #[test]
    fn the_panic_of_a_vital_task_is_reported_by_name() {
        run(async {
            let mut died = watch_deaths();
            spawn("of no importance", panics())
                .await
                .expect("the panic is caught");
            spawn_vital("vital", panics()).await.expect("the panic is caught");
            assert_eq!(died.recv().await.as_deref(), Some("vital"));
            assert!(died.try_recv().is_err());
        });
    }

    #[test]
    fn running_tasks_are_known_by_name() {
        run(async {
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let task = spawn("first", async { drop(ended.await) });
            let second = spawn("second", std::future::pending::<()>());
            tokio::task::yield_now().await;
            assert_eq!(running(), ["first", "second"]);
            end.send(()).expect("a task that waits");
            task.await.expect("an end");
            assert_eq!(running(), ["second"]);
            second.abort();
            assert!(second.await.is_err());
            assert!(running().is_empty());
        });
    }

    #[test]
    fn a_task_can_be_made_to_panic() {
        run(async {
            let mut died = watch_deaths();
            let task = spawn_vital("subscription on subject \"a\"", std::future::pending());
            tokio::task::yield_now().await;
            assert!(!make_panic("responder"));
            assert!(make_panic("subscription"));
            task.await.expect("the panic is caught");
            assert_eq!(
                died.recv().await.as_deref(),
                Some("subscription on subject \"a\"")
            );
        });
    }

    #[test]
    fn an_actor_that_panics_is_reported() {
        run(async {
            let mut died = watch_deaths();
            let vital = Vital::new("an actor");
            spawn("its context", async move {
                let _vital = vital;
                panics().await;
            })
            .await
            .expect("the panic is caught");
            assert_eq!(died.recv().await.as_deref(), Some("an actor"));
        });
    }
}
