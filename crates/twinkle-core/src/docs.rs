//! The one check of the pages under `docs/` that are written from code.

use std::path::Path;

/// Checks, in a test, that the file `docs/<name>` holds this text; with `UPDATE_DOCS` in the environment it is written
/// first.
///
/// # Panics
///
/// When the file holds another text, or cannot be written.
#[track_caller]
pub fn assert_written(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("UPDATE_DOCS").is_some()
        && let Err(error) = std::fs::write(&path, text)
    {
        panic!("docs/{name} cannot be written: {error}");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/{name} is out of date: `UPDATE_DOCS=1 cargo nextest run --workspace documentation_says` writes it"
    );
}
