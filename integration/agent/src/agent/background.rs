//! What works beside the enforcer for as long as the agent runs. None of it may end before: an agent that went on without it
//! would report itself healthy while something is not done any more. Where a part ends, by a panic or by an error that it
//! can't get over, the agent ends as well, and is started again.

use std::{collections::HashMap, fmt, time::Duration};

use anyhow::anyhow;
use tokio::task::{Id, JoinError, JoinSet};

/// Between two looks at threads.
const LOOK: Duration = Duration::from_secs(1);

/// Tasks and threads, each with what it does. The tasks end when this is dropped.
#[derive(Default)]
pub(crate) struct Background {
    tasks: JoinSet<anyhow::Result<()>>,
    duties: HashMap<Id, &'static str>,
    threads: Vec<Thread>,
}

/// A thread that another part of the agent owns.
struct Thread {
    duty: &'static str,
    is_alive: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Background {
    /// Runs a task that should never end.
    pub(crate) fn run(&mut self, duty: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.duties.insert(id, duty);
    }

    /// Looks again and again whether threads are alive.
    pub(crate) fn watch(&mut self, duty: &'static str, is_alive: impl Fn() -> bool + Send + Sync + 'static) {
        self.threads.push(Thread { duty, is_alive: Box::new(is_alive) });
    }

    /// Waits for the first part that ends, and says which it was and why.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => return self.why(ended),
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Some(thread) = self.threads.iter().find(|thread| !(thread.is_alive)()) {
                return anyhow!("{}: a thread has ended by itself, see the log above", thread.duty);
            }
        }
    }

    fn why(&self, ended: Result<(Id, anyhow::Result<()>), JoinError>) -> anyhow::Error {
        let duty = |id| self.duties.get(&id).copied().unwrap_or("a part of the agent");
        match ended {
            Ok((id, Ok(()))) => anyhow!("{}: the task has ended by itself", duty(id)),
            Ok((id, Err(error))) => error.context(duty(id)),
            Err(error) => anyhow!("{}: {error}", duty(error.id())),
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").field("duties", &self.duties).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Why the first of two parts ended; the other one goes on.
    async fn ended(task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> String {
        let mut background = Background::default();
        background.run("goes on", pending());
        background.watch("lives", || true);
        background.run("ends", task);
        format!("{:#}", background.ended().await)
    }

    #[tokio::test]
    async fn a_task_that_ends_is_named_with_the_cause() {
        assert_eq!(ended(async { Ok(()) }).await, "ends: the task has ended by itself");
        assert_eq!(ended(async { Err(anyhow!("no memory")) }).await, "ends: no memory");
        let panicked = ended(async { panic!("a mistake") }).await;
        assert!(panicked.starts_with("ends: task") && panicked.contains("panicked"), "{panicked}");
    }

    #[tokio::test]
    async fn a_thread_that_ends_is_named() {
        let mut background = Background::default();
        background.run("goes on", pending());
        let thread = std::thread::spawn(|| {});
        background.watch("reads files", move || !thread.is_finished());
        let why = format!("{:#}", background.ended().await);
        assert_eq!(why, "reads files: a thread has ended by itself, see the log above");
    }
}
