//! What is recorded about every operation, wherever it is executed.

use std::time::Duration;

use super::labels::{Deployment, FinishedTask, Task, TaskStatus, TaskType};
use super::metrics::{TASK_EXECUTION, TASK_WAIT, TASKS};

/// An operation has waited this long and begins now.
pub fn began(deployment: Deployment, task_type: TaskType, waited: Duration) {
    TASK_WAIT.record(waited, Task { deployment, task_type });
}

/// An operation ended like this, after this long.
pub fn ended(deployment: Deployment, task_type: TaskType, took: Duration, status: TaskStatus) {
    TASKS.add(1, FinishedTask { deployment, task_type, status });
    TASK_EXECUTION.record(took, Task { deployment, task_type });
}
