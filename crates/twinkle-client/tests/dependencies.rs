//! What this crate must never pull in: whoever uses the client should not build a server.
#![forbid(unsafe_code)]

use std::process::Command;

#[test]
fn no_database_tensor_or_server_crate_is_pulled_in() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "twinkle-client", "--edges", "normal", "--prefix", "none"])
        .args(["--format", "{lib}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(crates.contains(&"twinkle_core") && crates.contains(&"reqwest"), "{tree}");
    for unwanted in
        ["sqlx", "libsqlite3_sys", "tch", "torch_sys", "candle_core", "axum", "governor", "moka", "tokenizers"]
    {
        assert!(!crates.contains(&unwanted), "`{unwanted}` is a dependency of `twinkle-client`");
    }
    for unwanted in
        ["twinkle_torch", "twinkle_nn", "twinkle_model", "twinkle_sampler", "twinkle_processor", "twinkle_server"]
    {
        assert!(!crates.contains(&unwanted), "`{unwanted}` is a dependency of `twinkle-client`");
    }
}
