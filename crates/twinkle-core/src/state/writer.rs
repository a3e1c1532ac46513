//! The task that owns the writing connection: group commit, and patience while the database is away.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::backend::{Backend, NotCommitted, Recovered};
use super::connection::Connection;
use super::failure::{Failure, closed, outcome_unknown};
use crate::error::{Error, Result};
use crate::telemetry::labels::Whole;
use crate::telemetry::metrics::{STORE_COMMIT, STORE_GROUP};

/// Writes that may wait for the next commit; further callers wait for a place.
const WAITING_WRITES: usize = 1024;
/// Writes that share one commit at most.
const GROUP: usize = 256;
/// How long a write waits for a database that is away before its caller is told to try again.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause between two attempts to reach the database: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A change to the store.
///
/// It checks before it changes: a write that refuses has changed nothing. It may be applied
/// again after a rollback, so it must not give its contents away.
pub(super) trait Write: Send + 'static {
    /// What the caller learns once the change is durable.
    type Answer: Send + 'static;

    /// Whether it waits for as long as an outage lasts: there is no client who could try again.
    const PATIENT: bool = false;

    /// Makes the change inside the group's transaction.
    fn apply(&self, connection: &mut Connection) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// Sends writes to the task that owns the connection.
#[derive(Clone, Debug)]
pub(super) struct WriterHandle {
    commands: mpsc::Sender<Command>,
}

enum Command {
    Write(Box<dyn PendingWrite>),
    Close(oneshot::Sender<()>),
}

impl WriterHandle {
    /// Starts the task.
    pub(super) fn spawn(backend: Backend) -> Self {
        let (commands, queue) = mpsc::channel(WAITING_WRITES);
        let writer =
            Writer { backend, queue, waiting: Vec::with_capacity(GROUP), close_requests: Vec::new(), fenced: None };
        tokio::spawn(writer.run());
        Self { commands }
    }

    /// Makes a change and returns when it is durable.
    pub(super) async fn write<W: Write + Sync>(&self, write: W) -> Result<W::Answer> {
        let (reply, answer) = oneshot::channel();
        let pending = Waiting { write, applied: None, reply };
        self.commands.send(Command::Write(Box::new(pending))).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Commits what is waiting and gives the store and its lock back.
    pub(super) async fn close(&self) {
        let (reply, ended) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            let _ = ended.await;
        }
    }
}

// === impl Waiting ===

/// A write with its caller: the form in which writes of every type wait in one queue.
pub(super) trait PendingWrite: Send {
    /// Applies the write and keeps its answer. An error means the transaction must be rolled back.
    fn apply<'a>(&'a mut self, connection: &'a mut Connection) -> BoxFuture<'a, Result<(), sqlx::Error>>;
    /// See [`Write::PATIENT`].
    fn is_patient(&self) -> bool;
    /// Tells the caller: the answer when the commit succeeded, else the commit's error.
    fn settle(self: Box<Self>, committed: Result<()>);
}

struct Waiting<W: Write> {
    write: W,
    applied: Option<Result<W::Answer>>,
    reply: oneshot::Sender<Result<W::Answer>>,
}

impl<W: Write + Sync> PendingWrite for Waiting<W> {
    fn apply<'a>(&'a mut self, connection: &'a mut Connection) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            match self.write.apply(connection).await {
                Ok(answer) => self.applied = Some(Ok(answer)),
                Err(Failure::Refused(error)) => self.applied = Some(Err(error)),
                Err(Failure::Database(error)) => return Err(error),
            }
            Ok(())
        })
    }

    fn is_patient(&self) -> bool {
        W::PATIENT
    }

    fn settle(self: Box<Self>, committed: Result<()>) {
        let answer = match committed {
            Ok(()) => {
                self.applied.unwrap_or_else(|| Err(Error::internal("a write was committed before it was applied")))
            }
            Err(error) => Err(error),
        };
        // The caller may have gone away; its write is durable all the same.
        let _ = self.reply.send(answer);
    }
}

// === impl Writer ===

type Group = Vec<Box<dyn PendingWrite>>;

struct Writer {
    backend: Backend,
    queue: mpsc::Receiver<Command>,
    /// Taken out of the queue, not yet settled.
    waiting: Group,
    /// Whoever wants to know when the store is closed; not empty once it is closing.
    close_requests: Vec<oneshot::Sender<()>>,
    /// Why this server must not write any more.
    fenced: Option<Error>,
}

impl Writer {
    async fn run(mut self) {
        let mut taken = Vec::with_capacity(GROUP);
        while self.close_requests.is_empty() {
            tokio::select! {
                biased;
                count = self.queue.recv_many(&mut taken, GROUP) => {
                    if count == 0 {
                        break;
                    }
                    taken.drain(..).for_each(|command| self.take(command));
                    self.commit_waiting().await;
                }
                () = self.backend.renewal_due() => self.renew().await,
            }
        }
        self.backend.close().await;
        for reply in self.close_requests {
            let _ = reply.send(());
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Write(write) => self.waiting.push(write),
            Command::Close(reply) => self.close_requests.push(reply),
        }
    }

    /// One transaction for all that waits; when a statement of any of them fails, one transaction for each.
    async fn commit_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let together = self.commit(self.waiting.len()).await;
        let Err(NotCommitted::Statement(_)) = together else { return };
        while !self.waiting.is_empty() {
            let _ = self.commit(1).await;
        }
    }

    /// Commits the first `count` writes that wait and settles them; only when a statement of several failed, they
    /// wait on.
    async fn commit(&mut self, count: usize) -> Result<(), NotCommitted> {
        let mut group: Group = self.waiting.drain(..count.min(self.waiting.len())).collect();
        let began = Instant::now();
        let outcome = self.commit_group(&mut group).await;
        if outcome.is_ok() {
            STORE_COMMIT.record(began.elapsed(), Whole);
            STORE_GROUP.record(group.len() as u64, Whole);
        }
        if group.len() > 1 && matches!(outcome, Err(NotCommitted::Statement(_))) {
            group.append(&mut self.waiting);
            self.waiting = group;
            return outcome;
        }
        settle(group, &outcome);
        outcome
    }

    /// Commits the group through as many outages as there are. It may be smaller at the end: what has no patience
    /// has been answered.
    async fn commit_group(&mut self, group: &mut Group) -> Result<(), NotCommitted> {
        loop {
            if let Some(error) = &self.fenced {
                return Err(NotCommitted::Fenced(error.clone()));
            }
            match self.backend.commit(group).await {
                Err(NotCommitted::Lost { error, uncertain }) => {
                    if self.outlast(error, uncertain, group).await? == Recovered::Committed {
                        return Ok(());
                    }
                    if group.is_empty() {
                        return Ok(());
                    }
                }
                Err(NotCommitted::Fenced(error)) => self.fence(error),
                outcome => return outcome,
            }
        }
    }

    /// Keeps what this server holds of the records' ownership.
    async fn renew(&mut self) {
        match self.backend.renew().await {
            Ok(()) => {}
            Err(NotCommitted::Lost { error, uncertain }) => {
                let mut nobody = Vec::new();
                if let Err(error) = self.outlast(error, uncertain, &mut nobody).await {
                    tracing::error!(?error, "the state store is lost to this server");
                }
                self.commit_waiting().await;
            }
            Err(NotCommitted::Fenced(error)) => self.fence(error),
            Err(error) => tracing::warn!(?error, "the ownership of the state store could not be renewed"),
        }
    }

    /// Waits until the database is back, and learns what became of the commit that was under way.
    ///
    /// Writes wait with it for a while. Then those without patience are answered: that they were not stored, or, if
    /// they are part of the commit that was interrupted, that nobody knows yet. Asking again is safe then, because a
    /// request that was stored before is recognised.
    async fn outlast(&mut self, error: Error, uncertain: bool, group: &mut Group) -> Result<Recovered, NotCommitted> {
        tracing::warn!(%error, "the state store's database is away");
        let (began, mut pause, unknown) = (Instant::now(), FIRST_PAUSE, outcome_unknown());
        loop {
            let latest = match self.backend.recover().await {
                Ok(recovered) => {
                    tracing::info!(seconds = began.elapsed().as_secs_f64(), "the state store's database is back");
                    return Ok(recovered);
                }
                Err(NotCommitted::Fenced(error)) => {
                    self.fence(error.clone());
                    return Err(NotCommitted::Fenced(error));
                }
                Err(
                    NotCommitted::Lost { error, .. } | NotCommitted::Refused(error) | NotCommitted::Statement(error),
                ) => error,
            };
            let next = Instant::now() + pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if began.elapsed() < PATIENCE {
                sleep(next - Instant::now()).await;
                continue;
            }
            refuse_impatient(group, if uncertain { &unknown } else { &latest });
            refuse_impatient(&mut self.waiting, &latest);
            self.answer_queue_until(next, &latest).await;
            if !self.close_requests.is_empty() {
                settle(std::mem::take(&mut self.waiting), &Err(NotCommitted::Refused(latest.clone())));
                return Err(NotCommitted::Refused(if uncertain { unknown } else { latest }));
            }
        }
    }

    /// Tells whoever asks that the database is away. What has patience waits, up to the queue's size.
    async fn answer_queue_until(&mut self, time: Instant, error: &Error) {
        while self.close_requests.is_empty() && self.waiting.len() < WAITING_WRITES {
            tokio::select! {
                () = tokio::time::sleep_until(time) => return,
                command = self.queue.recv() => match command {
                    Some(command) => self.take(command),
                    None => return tokio::time::sleep_until(time).await,
                },
            }
            refuse_impatient(&mut self.waiting, error);
        }
        tokio::time::sleep_until(time).await;
    }

    fn fence(&mut self, error: Error) {
        tracing::error!(%error, "this server writes no more");
        self.fenced = Some(error);
    }
}

fn settle(group: Group, outcome: &Result<(), NotCommitted>) {
    for write in group {
        write.settle(match outcome {
            Ok(()) => Ok(()),
            Err(
                NotCommitted::Statement(error)
                | NotCommitted::Refused(error)
                | NotCommitted::Lost { error, .. }
                | NotCommitted::Fenced(error),
            ) => Err(error.clone()),
        });
    }
}

fn refuse_impatient(group: &mut Group, error: &Error) {
    let (patient, impatient): (Group, Group) = std::mem::take(group).into_iter().partition(|write| write.is_patient());
    *group = patient;
    for write in impatient {
        write.settle(Err(error.clone()));
    }
}
