//! The scripts in `cookbook/client`, unmodified, each against the server of its folder.

use twinkle_tests::run_with_kit;

#[tokio::test]
async fn every_script_of_both_clients_runs_offline_against_its_own_server() {
    let arguments = ["--server", env!("CARGO_BIN_EXE_node")];
    run_with_kit("../cookbook/client.py", &arguments).await.expect("every script");
}
