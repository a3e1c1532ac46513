//! What this crate must never pull in: whoever uses the client should not build a server.
#![forbid(unsafe_code)]

use std::process::Command;

#[test]
fn no_database_tensor_or_server_crate_is_pulled_in() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "twinkle-client", "--edges", "normal", "--prefix", "none"])
        .args(["--all-features", "--format", "{lib}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(crates.contains(&"twinkle_core") && crates.contains(&"reqwest"), "{tree}");
    let databases = ["sqlx", "libsqlite3_sys", "redis"];
    let tensors = ["tch", "torch_sys", "candle_core", "cudarc", "ndarray", "safetensors", "half"];
    let servers = ["axum", "tonic", "governor", "moka", "tokenizers", "minijinja", "opentelemetry"];
    let ours = ["torch", "kernels", "nn", "model", "sampler", "processor", "hub", "server"];
    let ours = ours.map(|name| format!("twinkle_{name}"));
    let others = [&databases[..], &tensors, &servers].concat();
    for unwanted in others.into_iter().chain(ours.iter().map(String::as_str)) {
        assert!(!crates.contains(&unwanted), "`{unwanted}` is a dependency of `twinkle-client`");
    }
}
