//! `--log-level`: how much is logged, as a whole and by module.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Builder;
use twinkle_core::error::nearest;

/// The levels, as an operator writes them.
const LEVELS: [&str; 6] = ["error", "warning", "info", "debug", "trace", "off"];

/// Our own modules at debug. Libraries would drown them, so those stay at info.
const OURS_AT_DEBUG: &str = "info,twinkle_core=debug,twinkle_hub=debug,twinkle_nn=debug,twinkle_model=debug,\
    twinkle_sampler=debug,twinkle_processor=debug,twinkle_server=debug";

/// How much is logged: a level, and other levels for single modules.
///
/// ```
/// use twinkle_server::logging::LogFilter;
///
/// let filter: LogFilter = "warning,twinkle_model=debug".parse().unwrap();
/// assert!("inof".parse::<LogFilter>().unwrap_err().contains("did you mean `info`?"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter {
    directives: String,
}

impl LogFilter {
    pub(super) fn to_filter(&self) -> EnvFilter {
        // Parsed once already.
        builder().parse_lossy(&self.directives)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self { directives: "info".to_owned() }
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<String> =
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(directive).collect::<Result<_, _>>()?;
        if parts.is_empty() {
            return Ok(Self::default());
        }
        let directives = parts.join(",");
        builder().parse(&directives).map_err(|error| format!("{error}; an example is `info,twinkle_model=debug`"))?;
        Ok(Self { directives })
    }
}

fn builder() -> Builder {
    EnvFilter::builder().with_regex(false)
}

/// One part in the words of the filter.
fn directive(part: &str) -> Result<String, String> {
    if let Some((module, level)) = part.rsplit_once('=') {
        let level = level_named(level)
            .ok_or_else(|| format!("`{level}` is not a level; levels are {}", LEVELS.map(quoted).join(", ")))?;
        return Ok(format!("{module}={level}"));
    }
    match level_named(part) {
        Some("debug") => Ok(OURS_AT_DEBUG.to_owned()),
        Some(level) => Ok(level.to_owned()),
        // A module alone means everything of it, unless it was to be a level.
        None => match nearest(&part.to_ascii_lowercase(), LEVELS) {
            Some(level) => Err(format!("`{part}` is not a level; did you mean `{level}`?")),
            None => Ok(part.to_owned()),
        },
    }
}

/// The filter's word for a level.
fn level_named(word: &str) -> Option<&'static str> {
    let word = word.trim().to_ascii_lowercase();
    match word.as_str() {
        "warning" | "warn" => Some("warn"),
        _ => LEVELS.into_iter().find(|level| *level == word),
    }
}

fn quoted(level: &str) -> String {
    format!("`{level}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directives(text: &str) -> String {
        text.parse::<LogFilter>().unwrap().directives
    }

    #[test]
    fn levels_are_understood_in_every_spelling() {
        for text in ["WARNING", "warn", "Warning"] {
            assert_eq!(directives(text), "warn");
        }
        assert_eq!(directives("ERROR"), "error");
        assert_eq!(directives(""), "info");
    }

    #[test]
    fn libraries_stay_quiet_at_debug() {
        let debug = directives("DEBUG");
        assert!(debug.starts_with("info,") && debug.contains("twinkle_model=debug"), "{debug}");
        assert!(!debug.contains("hyper"));
        assert_eq!(directives("trace"), "trace");
    }

    #[test]
    fn single_modules_have_levels_of_their_own() {
        assert_eq!(directives("info, twinkle_model=DEBUG,hyper=warning"), "info,twinkle_model=debug,hyper=warn");
        assert_eq!(directives("twinkle_server::node"), "twinkle_server::node");
    }

    #[test]
    fn a_misspelt_level_is_an_error() {
        assert_eq!("inof".parse::<LogFilter>().unwrap_err(), "`inof` is not a level; did you mean `info`?");
        let error = "info,twinkle_model=loud".parse::<LogFilter>().unwrap_err();
        assert!(error.starts_with("`loud` is not a level; levels are `error`, `warning`"), "{error}");
    }
}
