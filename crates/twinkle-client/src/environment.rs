//! Address and key from environment variables.

use crate::error::{Error, Result};

/// Where a key is looked for, the most particular name first.
pub const API_KEY_VARIABLES: [&str; 4] = ["TWINKLE_SERVER_TOKEN", "TINKER_API_KEY", "MODELSCOPE_TOKEN", "API_KEY"];
/// Where an address is looked for.
pub const BASE_URL_VARIABLES: [&str; 2] = ["TWINKLE_SERVER_URL", "TINKER_BASE_URL"];
/// The address where there is none: a server on this machine.
pub const DEFAULT_BASE_URL: &str = "http://127.0.0.1:8000";

/// The key in the first of [`API_KEY_VARIABLES`] that is set and not empty.
pub fn api_key_from_env() -> Result<String> {
    first_of(&API_KEY_VARIABLES, read).ok_or_else(|| {
        let names = API_KEY_VARIABLES.map(|name| format!("`{name}`")).join(", ");
        Error::InvalidArgument(format!("there is no API key: set one of {names}"))
    })
}

/// The address in the first of [`BASE_URL_VARIABLES`] that is set and not empty, else [`DEFAULT_BASE_URL`].
#[must_use]
pub fn base_url_from_env() -> String {
    first_of(&BASE_URL_VARIABLES, read).unwrap_or_else(|| DEFAULT_BASE_URL.to_owned())
}

fn read(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn first_of(names: &[&str], read: impl Fn(&str) -> Option<String>) -> Option<String> {
    names.iter().filter_map(|name| read(name)).map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(set: &[(&str, &str)]) -> Option<String> {
        first_of(&API_KEY_VARIABLES, |name| {
            set.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_most_particular_variable_wins_and_empty_ones_do_not_count() {
        let all = [("API_KEY", "d"), ("MODELSCOPE_TOKEN", "c"), ("TINKER_API_KEY", "b"), ("TWINKLE_SERVER_TOKEN", "a")];
        for count in 1..=4 {
            assert_eq!(key(&all[..count]).as_deref(), Some(all[count - 1].1));
        }
        assert_eq!(key(&[("TWINKLE_SERVER_TOKEN", " "), ("API_KEY", " d\n")]).as_deref(), Some("d"));
        assert_eq!(key(&[]), None);
    }
}
