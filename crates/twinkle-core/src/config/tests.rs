//! Every message and the normal form, as an operator sees them.

use std::collections::BTreeMap;
use std::path::Path;

use super::{ApplicationArgs, ConfigErrors, Device, ModelSource, Persistence, ServerConfig};

fn parse(text: &str) -> Result<ServerConfig, ConfigErrors> {
    ServerConfig::parse_with("node.yaml", text, &|_| None)
}

#[track_caller]
fn problems(text: &str) -> String {
    parse(text).expect_err("the configuration was accepted").to_string()
}

/// One `model` application with these lines inside its `args`.
fn model_with(lines: &str) -> String {
    let mut text = String::from(
        "applications:\n  - name: m\n    route_prefix: /api/v1/model/a/b\n    import_path: model\n    args:\n      model_id: ./m\n      device_group: {name: g, ranks: 1, device_type: CPU}\n",
    );
    for line in lines.lines() {
        text.push_str("      ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The only application's `args`, which must be a model's.
#[track_caller]
fn model_args(config: &ServerConfig) -> &super::ModelArgs {
    match &config.applications[0].args {
        ApplicationArgs::Model(args) => args,
        other => panic!("not a model: {other:?}"),
    }
}

#[test]
fn an_unknown_key_points_at_its_place_and_names_the_nearest() {
    let text = "\
applications:
  - name: m
    route_prefix: /api/v1/model/a/b
    import_path: model
    args:
      backend: transformers
      model_id: ./m
      device_group:
        name: model
        rnaks: 1
        device_type: CPU
";
    insta::assert_snapshot!(problems(text), @"");
}

#[test]
fn every_problem_of_a_file_is_told_at_once() {
    let text = "\
http_options:
  host: 127.0.0.1
  port: eighty
persistence:
  mode: fiel
task_queue:
  rps_limit: -1
  max_input_tokens: 0
applications:
  - name: one
    route_prefix: api/v1
    import_path: serverr
  - name: one
    route_prefix: /x/
    import_path: sampler
    args:
      sampler_type: vlm
      engine_args:
        max_model_length: 4096
        enable_lora: maybe
  - import_path: model
    route_prefix: /api/v1/model/a/b
    args:
      model_id: ''
      backend: megatorn
      torch_dtype: float15
      device_group: {name: g, ranks: [0, 0, x], device_type: tpu}
  - 7
colour: blue
";
    insta::assert_snapshot!(problems(text), @"");
}

#[test]
fn a_broken_file_says_where_it_breaks() {
    insta::assert_snapshot!(problems("applications:\n  - name: [a\n    b: c\n"), @"");
    insta::assert_snapshot!(problems("http_options: {host: a}\nhttp_options: {host: b}\n"), @"");
    insta::assert_snapshot!(problems("- a\n- b\n"), @"");
    let missing = ServerConfig::load(Path::new("no/such.yaml")).unwrap_err();
    assert_eq!(missing.to_string(), "no/such.yaml: config file not found");
}

#[test]
fn an_empty_file_is_a_node_without_applications() {
    let config = parse("").unwrap();
    assert_eq!((config.http.host.as_str(), config.http.port), ("localhost", 8000));
    assert!(config.applications.is_empty());
}

#[test]
fn the_older_and_the_newer_word_for_a_backend_mean_the_same() {
    let newer = parse(&model_with("backend: transformers")).unwrap();
    let older = parse(&model_with("use_megatron: false")).unwrap();
    assert_eq!(newer, older);
    insta::assert_snapshot!(problems(&model_with("use_megatron: true\nbackend: transformers")), @"");
}

#[test]
fn what_is_not_available_yet_is_refused_and_never_ignored() {
    let text = "\
persistence: {mode: redis, redis_url: 'redis://localhost'}
telemetry: {enabled: true}
applications:
  - name: m
    route_prefix: /api/v1/model/a/b
    import_path: model
    deployments: [{num_replicas: 2}]
    args:
      backend: megatron
      train_mode: full
      model_id: ./m
      device_group: {name: g, ranks: [0, 1], device_type: cuda}
      device_mesh: {device_type: cuda, tp_size: 2}
";
    let config = parse(text).unwrap();
    insta::assert_snapshot!(config.check_supported().unwrap_err(), @"");
}

#[test]
fn keys_without_an_effect_are_listed() {
    let text = "\
proxy_location: EveryNode
ray_namespace: twinkle
http_options: {port: 8001, keep_alive_timeout_s: 5}
applications:
  - name: s
    route_prefix: /api/v1
    import_path: server
    args:
    deployments:
      - name: GatewayServer
        autoscaling_config: {min_replicas: 1, max_replicas: 1, target_ongoing_requests: 128}
        ray_actor_options: {num_cpus: 0.1, runtime_env: {env_vars: {A: 1}}}
";
    let config = parse(text).unwrap();
    assert_eq!(config.check_supported(), Ok(()));
    insta::assert_snapshot!(config.inert_keys().join("\n"), @"");
}

#[test]
fn the_mesh_must_fit_the_group() {
    insta::assert_snapshot!(problems(&model_with("device_mesh: {device_type: CPU, dp_size: 2, tp_size: 2}")), @"");
    insta::assert_snapshot!(problems(&model_with("device_mesh: {mesh: [[0, 1]], mesh_dim_names: [dp]}")), @"");
    assert!(parse(&model_with("device_mesh: {mesh: [0], mesh_dim_names: [dp]}")).is_ok());
}

#[test]
fn two_applications_may_not_claim_one_model() {
    let twice = "\
applications:
  - {name: a, route_prefix: /one/model/x/y, import_path: model, args: {model_id: ./m, device_group: {name: g, ranks: 1, device_type: cpu}}}
  - {name: b, route_prefix: /two/model/x/y, import_path: model, args: {model_id: ./m, device_group: {name: g, ranks: 1, device_type: cpu}}}
";
    insta::assert_snapshot!(problems(twice), @"");
}

#[test]
fn the_public_name_is_the_end_of_the_prefix_else_the_id() {
    let named = parse(&model_with("backend: transformers")).unwrap();
    assert_eq!(model_args(&named).public_name, "a/b");
    let text =
        model_with("backend: transformers").replace("/api/v1/model/a/b", "/train").replace("./m", "ms://org/name");
    assert_eq!(model_args(&parse(&text).unwrap()).public_name, "org/name");
}

#[test]
fn a_model_that_is_no_folder_says_where_it_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let below = |id: &str| {
        let told = ModelSource::new(id).folder_below(root.path()).map(|folder| folder.display().to_string());
        let told = told.unwrap_or_else(|error| error.to_string());
        told.replace(&root.path().display().to_string(), "<here>")
    };
    std::fs::create_dir_all(root.path().join("org/present")).unwrap();
    insta::assert_snapshot!(below("org/present"), @"");
    insta::assert_snapshot!(below("./org/present"), @"");
    insta::assert_snapshot!(below("org/absent"), @"");
    insta::assert_snapshot!(below("./absent"), @"");
    insta::assert_snapshot!(below("ms://org/name"), @"");
    insta::assert_snapshot!(below("s3://bucket/name"), @"");
    let absolute = format!("file://{}", root.path().join("org/present").display());
    assert_eq!(below(&absolute), "<here>/org/present");
}

#[test]
fn state_is_kept_in_a_file_unless_the_operator_says_otherwise() {
    let directory = |text: &str| parse(text).unwrap().persistence;
    let file = |path: &str| Persistence::File { directory: path.into() };
    assert_eq!(directory(""), file("twinkle-state"));
    assert_eq!(directory("persistence: {mode: memory}"), Persistence::Memory);
    assert_eq!(directory("persistence: {mode: file, file_path: /var/lib/twinkle}"), file("/var/lib/twinkle"));
    assert_eq!(directory("persistence: {mode: file, file_path: data/state.json}"), file("data"));
    insta::assert_snapshot!(problems("persistence: {mode: file}"), @"");
}

#[test]
fn interpolation_reads_the_environment_and_other_keys() {
    let environment = BTreeMap::from([("PORT", "9000")]);
    let text = "\
ray_namespace: ${oc.env:NAMESPACE,blue}
http_options: {host: 'node-${ray_namespace}', port: '${oc.env:PORT}'}
";
    let lookup = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    let config = ServerConfig::parse_with("node.yaml", text, &lookup).unwrap();
    assert_eq!((config.http.host.as_str(), config.http.port), ("node-blue", 9000));
    insta::assert_snapshot!(problems("http_options: {host: '${oc.env:HOST}', port: '${a.b}'}\nray_namespace: ${ray_namespace}\n"), @"");
}

#[test]
fn the_runnable_files_parse_into_these_normal_forms() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    assert!(names.contains(&"quickstart.yaml".to_owned()));
    for name in names {
        let text = std::fs::read_to_string(folder.join(&name)).unwrap();
        let config = ServerConfig::parse_with(&name, &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.check_supported(), Ok(()), "{name} cannot run");
        insta::assert_yaml_snapshot!(name, config);
    }
}

#[test]
fn quickstart_runs_on_the_cpu() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/quickstart.yaml");
    let config = ServerConfig::load(&path).unwrap();
    let model = config.applications.iter().find_map(|application| match &application.args {
        ApplicationArgs::Model(args) => Some(args),
        _ => None,
    });
    assert_eq!(model.unwrap().devices.first(), Device::Cpu);
    assert_eq!(config.inert_keys(), Vec::<String>::new());
}
