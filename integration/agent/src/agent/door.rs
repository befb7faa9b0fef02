//! How other parts of the agent reach the thread that owns engine and maps.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_api::Refusal;
use namegate_dns_proxy::NotInstalled;
use namegate_engine::Answer;
use tokio::sync::oneshot;

use super::{
    gate::Gate,
    inbox::{AGENT, Inbox, Next, Refused},
    refusals::{Bound, Refusals},
};

/// Answers of one endpoint to be installed.
pub(super) struct Learn {
    pub(super) answers: Vec<Answer>,
    pub(super) since: Instant,
    pub(super) done: oneshot::Sender<Vec<Result<(), NotInstalled>>>,
}

/// Anything else that the gate can be asked.
pub(super) type Question = Box<dyn FnOnce(&mut Gate) + Send>;
type Requests = Inbox<Learn, Question>;

/// How the gate is reached.
#[derive(Clone)]
pub(crate) struct Door {
    inbox: Arc<Requests>,
    refusals: Arc<Refusals>,
}

/// The inbox as the thread has it: with its end, however it comes, nothing waits any more.
pub(super) struct Served(Arc<Requests>);

impl Served {
    /// Waits for the next request, at most this long.
    pub(super) fn next(&self, patience: Duration) -> Next<Learn, Question> {
        self.0.next(patience)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Door {
    pub(super) fn new(refusals: Arc<Refusals>) -> Self {
        Self { inbox: Arc::default(), refusals }
    }

    /// The other side: the thread's.
    pub(super) fn served(&self) -> Served {
        Served(Arc::clone(&self.inbox))
    }

    /// Ends the thread after what waits.
    pub(super) fn stop(&self) {
        self.inbox.stop();
    }

    /// Hands over answers of one endpoint. They are refused where too many of its answers wait.
    pub(crate) fn learn(&self, answers: Vec<Answer>) -> oneshot::Receiver<Vec<Result<(), NotInstalled>>> {
        let (done, result) = oneshot::channel();
        let endpoint = answers.first().map_or(AGENT, |answer| answer.endpoint.0);
        let learn = Learn { answers, since: Instant::now(), done };
        if let Err((Refused::Full(_), Learn { answers, done, .. })) = self.inbox.answers(endpoint, learn) {
            self.refusals.add(Bound::AnswersWaiting, endpoint, answers.len() as u64);
            let _ = done.send(vec![Err(NotInstalled::Full); answers.len()]);
        }
        result
    }

    /// Runs a function on the gate's thread and waits for what it gives.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Gate) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        self.ask_for(AGENT, question).await
    }

    /// The same where an endpoint is the cause: its questions wait for each other, and have a share of the places.
    pub(crate) async fn ask_for<T: Send + 'static>(
        &self,
        endpoint: u32,
        question: impl FnOnce(&mut Gate) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (question, answer) = asked(question);
        self.inbox.question(endpoint, question).map_err(|(refused, _)| match refused {
            Refused::Full(_) => {
                self.refusals.count(Bound::QuestionsWaiting, endpoint);
                Refusal::Unavailable("too many requests wait".to_owned())
            }
            Refused::Closed => stopped(),
        })?;
        answer.await.map_err(|_| stopped())
    }

    /// The same for a part of the agent that asks one question at a time: only the end of the thread is a refusal.
    pub(crate) async fn ask_always<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Gate) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (question, answer) = asked(question);
        self.inbox.own_question(question).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// The same for a thread that may block.
    pub(crate) fn ask_blocking<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Gate) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (question, answer) = asked(question);
        self.inbox.own_question(question).map_err(|_| stopped())?;
        answer.blocking_recv().map_err(|_| stopped())
    }

    /// What was refused to single endpoints.
    pub(crate) fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }
}

/// A question for the inbox, and where its answer comes.
fn asked<T: Send + 'static>(
    question: impl FnOnce(&mut Gate) -> T + Send + 'static,
) -> (Question, oneshot::Receiver<T>) {
    let (done, answer) = oneshot::channel();
    let question = Box::new(move |gate: &mut Gate| {
        // The asker may have gone away.
        let _ = done.send(question(gate));
    });
    (question, answer)
}

fn stopped() -> Refusal {
    Refusal::Unavailable("it has stopped".to_owned())
}
