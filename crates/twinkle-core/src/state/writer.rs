//! The task that owns the writing connection, and group commit.

use std::fs::File;

use futures::future::BoxFuture;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::failure::{Failure, closed, describe};
use crate::error::{Error, Result};

/// Writes that may wait for the next commit; further callers wait for a place.
const WAITING_WRITES: usize = 1024;
/// Writes that share one commit at most.
const GROUP: usize = 256;

/// A change to the store.
///
/// It checks before it changes: a write that refuses has changed nothing. It may be applied
/// again after a rollback, so it must not give its contents away.
pub(super) trait Write: Send + 'static {
    /// What the caller learns once the change is durable.
    type Answer: Send + 'static;

    /// Makes the change inside the group's transaction.
    fn apply(&self, connection: &mut SqliteConnection) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
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
    /// Starts the task. It holds `lock` as long as it may write.
    pub(super) fn spawn(connection: SqliteConnection, lock: File) -> Self {
        let (commands, queue) = mpsc::channel(WAITING_WRITES);
        tokio::spawn(run(connection, lock, queue));
        Self { commands }
    }

    /// Makes a change and returns when it is on the disk.
    pub(super) async fn write<W: Write + Sync>(&self, write: W) -> Result<W::Answer> {
        let (reply, answer) = oneshot::channel();
        let pending = Waiting { write, applied: None, reply };
        self.commands.send(Command::Write(Box::new(pending))).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Commits what is waiting and gives the file and its lock back.
    pub(super) async fn close(&self) {
        let (reply, ended) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            let _ = ended.await;
        }
    }
}

// === impl Waiting ===

/// A write with its caller: the form in which writes of every type wait in one queue.
trait PendingWrite: Send {
    /// Applies the write and keeps its answer. An error means the transaction must be rolled back.
    fn apply<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), sqlx::Error>>;
    /// Tells the caller: the answer when the commit succeeded, else the commit's error.
    fn settle(self: Box<Self>, committed: Result<()>);
}

struct Waiting<W: Write> {
    write: W,
    applied: Option<Result<W::Answer>>,
    reply: oneshot::Sender<Result<W::Answer>>,
}

impl<W: Write + Sync> PendingWrite for Waiting<W> {
    fn apply<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            match self.write.apply(connection).await {
                Ok(answer) => self.applied = Some(Ok(answer)),
                Err(Failure::Refused(error)) => self.applied = Some(Err(error)),
                Err(Failure::Database(error)) => return Err(error),
            }
            Ok(())
        })
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

// === impl task ===

async fn run(mut connection: SqliteConnection, lock: File, mut queue: mpsc::Receiver<Command>) {
    let mut taken = Vec::with_capacity(GROUP);
    let mut close_requests = Vec::new();
    while close_requests.is_empty() && queue.recv_many(&mut taken, GROUP).await > 0 {
        let mut group = Vec::with_capacity(taken.len());
        for command in taken.drain(..) {
            match command {
                Command::Write(write) => group.push(write),
                Command::Close(reply) => close_requests.push(reply),
            }
        }
        commit_group(&mut connection, group).await;
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the state store was not closed cleanly");
    }
    drop(lock);
    for reply in close_requests {
        let _ = reply.send(());
    }
}

/// One transaction for all; when `SQLite` fails on any of them, one transaction for each.
async fn commit_group(connection: &mut SqliteConnection, mut group: Vec<Box<dyn PendingWrite>>) {
    if group.is_empty() {
        return;
    }
    let outcome = commit(connection, &mut group).await;
    let Err(error) = outcome else {
        for write in group {
            write.settle(Ok(()));
        }
        return;
    };
    if group.len() == 1 {
        for write in group {
            write.settle(Err(describe(&error)));
        }
        return;
    }
    for write in group {
        let mut alone = [write];
        let outcome = commit(connection, &mut alone).await.map_err(|error| describe(&error));
        let [write] = alone;
        write.settle(outcome);
    }
}

/// The statements are our own, not sqlx's transaction object: `SQLite` ends a transaction by itself when
/// the disk is full, and sqlx would count it as open for ever.
async fn commit(connection: &mut SqliteConnection, group: &mut [Box<dyn PendingWrite>]) -> Result<(), sqlx::Error> {
    let outcome = apply_all(connection, group).await;
    if outcome.is_err()
        && let Err(error) = sqlx::query("ROLLBACK").execute(connection).await
    {
        tracing::debug!(%error, "nothing to roll back");
    }
    outcome
}

async fn apply_all(connection: &mut SqliteConnection, group: &mut [Box<dyn PendingWrite>]) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    for write in group {
        write.apply(connection).await?;
    }
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}
