//! What is recorded about every operation, wherever it is executed.

use std::time::Duration;

use super::labels::{Deployment, FinishedTask, Task, TaskStatus, TaskType};
use super::metrics::{TASK_EXECUTION, TASK_WAIT, TASKS};
use crate::error::Result;

/// An operation has waited this long and begins now.
pub fn began(deployment: Deployment, task_type: TaskType, waited: Duration) {
    TASK_WAIT.record(waited, Task { deployment, task_type });
}

/// An operation ended like this, after this long.
pub fn ended<T>(deployment: Deployment, task_type: TaskType, took: Duration, outcome: &Result<T>) {
    TASKS.add(1, FinishedTask { deployment, task_type, status: TaskStatus::of(outcome) });
    TASK_EXECUTION.record(took, Task { deployment, task_type });
}
