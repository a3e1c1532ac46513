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

impl Problem {
    /// As `file:line:column: what`, and the hint on a line of its own.
    pub(super) fn told(&self, file: &str) -> String {
        let mut told = match self.line {
            0 => format!("{file}: {}", self.message),
            line => format!("{file}:{line}:{}: {}", self.column, self.message),
        };
        if let Some(hint) = &self.hint {
            told.push_str("\nhint: ");
            told.push_str(hint);
        }
        told
    }
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
            formatter.write_str(&problem.told(&self.file))?;
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
    warnings: RefCell<Vec<Problem>>,
    #[cfg(test)]
    asked: RefCell<std::collections::BTreeMap<String, Vec<&'static str>>>,
}

/// What a file's reading found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Findings {
    /// What is wrong.
    pub(super) problems: Vec<Problem>,
    /// What changes nothing.
    pub(super) inert: Vec<InertKey>,
    /// What cannot be done yet.
    pub(super) unavailable: Vec<Problem>,
    /// What is allowed and probably not meant.
    pub(super) warnings: Vec<Problem>,
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

    /// How many problems there are so far.
    pub(super) fn problem_count(&self) -> usize {
        self.problems.borrow().len()
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

    /// Something is right and probably not meant.
    pub(super) fn warning(&self, place: Place, message: impl Into<String>) {
        self.warnings.borrow_mut().push(problem_at(place, message, None));
    }

    /// A section is read, and these are the keys it knows.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only the tests keep a list"))]
    pub(super) fn asked(&self, path: &str, keys: &[&'static str]) {
        #[cfg(test)]
        self.asked.borrow_mut().insert(path.to_owned(), keys.to_vec());
        #[cfg(not(test))]
        let _ = (path, keys);
    }

    /// The keys each section knows, by its path.
    #[cfg(test)]
    pub(super) fn all_asked(&self) -> std::collections::BTreeMap<String, Vec<&'static str>> {
        self.asked.borrow().clone()
    }

    pub(super) fn into_findings(self) -> Findings {
        Findings {
            problems: self.problems.into_inner(),
            inert: self.inert.into_inner(),
            unavailable: self.unavailable.into_inner(),
            warnings: self.warnings.into_inner(),
        }
    }
}

fn problem_at(place: Place, message: impl Into<String>, hint: Option<String>) -> Problem {
    Problem { line: place.line, column: place.column, message: message.into(), hint }
}
