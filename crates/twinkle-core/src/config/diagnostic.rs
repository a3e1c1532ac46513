//! How a problem of a configuration file is told: `file:line:column: what`, and a hint.

use std::cell::RefCell;
use std::fmt;

use super::tree::Place;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; 0 when the problem is the file itself.
    pub line: u32,
    /// Column in characters, from 1; 0 when the problem is the file itself.
    pub column: u32,
    /// What is wrong, lowercase, without a trailing full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Every problem of one file, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name as the operator wrote it.
    pub file: String,
    /// What is wrong with it; never empty.
    pub problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self { file: file.to_owned(), problems }
    }

    /// A problem with the file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>) -> Self {
        Self::new(file, vec![Problem { line: 0, column: 0, message: message.into(), hint: None }])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            match problem.line {
                0 => write!(formatter, "{}: {}", self.file, problem.message)?,
                line => write!(formatter, "{}:{line}:{}: {}", self.file, problem.column, problem.message)?,
            }
            if let Some(hint) = &problem.hint {
                write!(formatter, "\nhint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A key that is understood and has no effect here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InertKey {
    path: String,
    reason: &'static str,
}

impl fmt::Display for InertKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.reason)
    }
}

/// What reading a file finds out besides its values.
#[derive(Debug, Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    inert: RefCell<Vec<InertKey>>,
    unavailable: RefCell<Vec<Problem>>,
}

impl Report {
    /// Something is wrong.
    pub(super) fn problem(&self, place: Place, message: impl Into<String>) {
        self.problems.borrow_mut().push(problem_at(place, message, None));
    }

    /// Something is wrong, and this helps.
    pub(super) fn problem_with_hint(&self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.borrow_mut().push(problem_at(place, message, Some(hint.into())));
    }

    /// Something is right and cannot be done yet.
    pub(super) fn unavailable(&self, place: Place, what: impl fmt::Display) {
        let message = format!("{what} is understood but not available yet");
        self.unavailable.borrow_mut().push(problem_at(place, message, None));
    }

    /// Something is right and changes nothing.
    pub(super) fn inert(&self, path: String, reason: &'static str) {
        self.inert.borrow_mut().push(InertKey { path, reason });
    }

    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<InertKey>, Vec<Problem>) {
        (self.problems.into_inner(), self.inert.into_inner(), self.unavailable.into_inner())
    }
}

fn problem_at(place: Place, message: impl Into<String>, hint: Option<String>) -> Problem {
    Problem { line: place.line, column: place.column, message: message.into(), hint }
}
