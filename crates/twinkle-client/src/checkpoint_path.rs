//! Where a checkpoint is, as a text that names its run, its kind and itself.

use crate::error::{Error, Result};

/// `tinker://<run>/<kind>/<name>`, or the same with `twinkle://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckpointPath<'a> {
    run: &'a str,
    kind: &'a str,
    name: &'a str,
}

impl<'a> CheckpointPath<'a> {
    pub(crate) fn parse(path: &'a str) -> Result<Self> {
        let rest = path.strip_prefix("tinker://").or_else(|| path.strip_prefix("twinkle://"));
        let parts: Option<Vec<&str>> = rest.map(|rest| rest.split('/').collect());
        match parts.as_deref() {
            Some(&[run, kind, name]) if [run, kind, name].into_iter().all(is_segment) => Ok(Self { run, kind, name }),
            _ => Err(Error::InvalidArgument(format!("`{path}` is not a path like `tinker://<run>/weights/<name>`"))),
        }
    }

    /// The run it was saved by.
    pub(crate) const fn run(&self) -> &'a str {
        self.run
    }

    /// The route of the checkpoint.
    pub(crate) fn route(&self) -> String {
        format!("/api/v1/training_runs/{}/checkpoints/{}/{}", self.run, self.kind, self.name)
    }
}

/// Whether a text may stand between two slashes of an address as it is.
pub(crate) fn is_segment(text: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._~:@!$&'()*+,;=".contains(letter);
    !text.is_empty() && !text.chars().all(|letter| letter == '.') && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_route_follows_from_its_path() {
        for scheme in ["tinker", "twinkle"] {
            let path = format!("{scheme}://s-1:train:0/weights/last");
            let parsed = CheckpointPath::parse(&path).unwrap();
            assert_eq!(parsed.route(), "/api/v1/training_runs/s-1:train:0/checkpoints/weights/last");
            assert_eq!(parsed.run(), "s-1:train:0");
        }
    }

    #[test]
    fn what_is_no_path_is_refused_here() {
        for wrong in [
            "",
            "s-1:train:0/weights/last",
            "tinker://run/last",
            "tinker://run/weights/",
            "tinker://a/b/c/d",
            "tinker://a/b/..",
            "tinker://a/b/c?d",
            "tinker://a/b/c#d",
            "tinker://a/b/c d",
            "tinker://a/b/%2e",
        ] {
            assert!(CheckpointPath::parse(wrong).is_err(), "{wrong}");
        }
    }
}
