//! The binary as an operator meets it: help, bad configurations, exit codes.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// Runs the binary with no configuration in its environment.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("twinkle-server").unwrap();
    command.env_remove("TWINKLE_SERVER_CONFIG").env_remove("RUST_LOG").env("NO_COLOR", "1").env("COLUMNS", "100");
    command.current_dir(folder).args(arguments).timeout(std::time::Duration::from_mins(1)).output().unwrap()
}

/// Exit code and stderr of `check` or a launch with this configuration.
fn complaint(yaml: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("node.yaml"), yaml).unwrap();
    let output = run(folder.path(), arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn help_teaches_with_an_example() {
    let output = run(Path::new("."), &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!("help", String::from_utf8(output.stdout).unwrap());
}

#[test]
fn every_subcommand_teaches_with_an_example() {
    for command in ["launch", "stop", "check", "schema", "plan", "routes", "clear persistence"] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let output = run(Path::new("."), &arguments);
        assert_eq!(output.status.code(), Some(0), "{command}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Example"), "{command}: {text}");
        insta::assert_snapshot!(format!("help_{}", command.replace(' ', "_")), text);
    }
}

#[test]
fn a_misspelt_level_is_an_error_of_the_command_line() {
    let output = run(Path::new("."), &["--config", "node.yaml", "--log-level", "inof"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!("misspelt_level", String::from_utf8(output.stderr).unwrap());
}

#[test]
fn older_names_of_check_print_the_same_normal_form() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "applications:\n  - {name: server, route_prefix: /api/v1, import_path: server}\n";
    std::fs::write(folder.path().join("node.yaml"), yaml).unwrap();
    let normal = run(folder.path(), &["check", "-c", "node.yaml"]);
    let text = String::from_utf8(normal.stdout.clone()).unwrap();
    assert!(text.contains("port: 8000\n"), "{text}");
    for command in ["check-config", "print-config"] {
        let output = run(folder.path(), &[command, "-c", "node.yaml", "--format", "yaml"]);
        assert_eq!((output.status.code(), &output.stdout), (Some(0), &normal.stdout), "{command}");
    }
    let wrong = run(folder.path(), &["print-config", "-c", "node.yaml", "--format", "xml"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn routes_are_listed_with_who_answers_them() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "applications:
  - {name: gateway, route_prefix: /api/v1, import_path: server}
  - {name: texts, route_prefix: /api/v1/processor, import_path: processor, args: {ncpu_proc_per_node: 1}}
";
    std::fs::write(folder.path().join("node.yaml"), yaml).unwrap();
    let output = run(folder.path(), &["routes", "-c", "node.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!("routes", String::from_utf8(output.stdout).unwrap());
}

/// What `plan` makes of a trainer over a fixture with so much memory.
fn plan(memory_limit: &str) -> Output {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen2");
    let folder = tempfile::tempdir().unwrap();
    let yaml = format!(
        "applications:
  - name: trainer
    route_prefix: /api/v1/model/tiny
    import_path: model
    args:
      model_id: {}
      backend: transformers
      max_r: 4
      memory_limit: {memory_limit}
      device_group: {{name: model, ranks: 1, device_type: CPU}}
      device_mesh: {{device_type: CPU, dp_size: 1}}
",
        fixture.canonicalize().unwrap().display()
    );
    std::fs::write(folder.path().join("node.yaml"), yaml).unwrap();
    run(folder.path(), &["plan", "-c", "node.yaml", "--format", "json"])
}

#[test]
fn a_plan_says_what_a_launch_would_decide() {
    let output = plan("1 GiB");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let trainer = &facts["trainers"][0];
    assert_eq!(trainer["memory_limit"], 1 << 30);
    assert_eq!(trainer["runs_limit"], 1 << 29);
    assert!(trainer["weights"].as_u64().is_some_and(|bytes| bytes > 100_000), "{trainer}");
    assert!(trainer["full_pass"].as_u64() > trainer["full_pass_recomputed"].as_u64(), "{trainer}");
    assert!(trainer["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{trainer}");
}

#[test]
fn a_plan_that_cannot_work_is_refused_with_numbers() {
    let output = plan("64 KiB");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("application `trainer` has 64.0 KiB for runs and passes"), "{text}");
    assert!(text.contains("hint: set `memory_limit` to at least"), "{text}");
}

#[test]
fn nothing_to_stop_is_told_apart_from_a_bad_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("node.yaml"), "persistence: {mode: file, file_path: state}\napplications: []\n")
        .unwrap();
    let output = run(folder.path(), &["stop", "-c", "node.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!("nothing_to_stop", String::from_utf8(output.stderr).unwrap());
    let output = run(folder.path(), &["stop", "-c", "no-such.yaml"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_a_configuration_the_command_says_how_to_name_one() {
    let output = run(Path::new("."), &[]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @r"
    error: no configuration given
    hint: name one with `--config FILE` or `TWINKLE_SERVER_CONFIG`; `twinkle-server --help` shows an example
    ");
}

#[test]
fn a_missing_file_is_named() {
    let output = run(Path::new("."), &["--config", "no-such.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap(), @"error: no-such.yaml: config file not found");
}

#[test]
fn a_misspelt_key_is_shown_with_its_place_by_check_and_by_a_launch() {
    let yaml = "http_options: {host: 127.0.0.1, port: 0}\napplicatons: []\n";
    for arguments in [&["check", "-c", "node.yaml"][..], &["-c", "node.yaml"]] {
        let (code, stderr) = complaint(yaml, arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(stderr.starts_with("error: node.yaml:2:1: unknown key `applicatons`"), "{stderr}");
        assert!(stderr.contains("did you mean `applications`?"), "{stderr}");
    }
}

#[test]
fn check_prints_the_normal_form_on_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "applications:\n  - {name: server, route_prefix: /api/v1, import_path: server}\n";
    std::fs::write(folder.path().join("node.yaml"), yaml).unwrap();
    let output = run(folder.path(), &["check", "--config", "node.yaml", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let normal: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(normal["http"]["port"], 8000);
    assert_eq!(normal["applications"][0]["args"]["server"]["per_token_model_limit"], 30);
}

#[test]
fn an_open_address_is_refused_before_anything_starts() {
    let yaml = "http_options: {host: 0.0.0.0, port: 0}\napplications:\n  - {name: server, route_prefix: /api/v1, import_path: server}\n";
    let (code, stderr) = complaint(yaml, &["--config", "node.yaml", "--log-level", "error"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("error: refusing to listen on `0.0.0.0`"), "{stderr}");
    assert!(stderr.contains("\nhint: "), "{stderr}");
}

#[test]
fn a_missing_model_folder_is_one_error_before_listening() {
    let yaml = "http_options: {host: 127.0.0.1, port: 0}
persistence: {mode: memory}
applications:
  - {name: server, route_prefix: /api/v1, import_path: server}
  - name: model
    route_prefix: /api/v1/model/tiny
    import_path: model
    args:
      model_id: ./no-such-model
      device_group: {name: model, ranks: 1, device_type: CPU}
";
    let (code, stderr) = complaint(yaml, &["--config", "node.yaml", "--log-level", "error"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("error: the model `./no-such-model` cannot be had; looked at"), "{stderr}");
}
