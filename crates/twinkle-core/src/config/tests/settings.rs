//! Sections of the node itself: persistence, keys, telemetry, interpolation.

use std::collections::BTreeMap;

use super::super::{ApplicationArgs, Persistence, ServerConfig, TlsConfig};
use super::{model_args, model_with, parse, problems};

#[test]
fn state_is_kept_in_a_file_unless_the_operator_says_otherwise() {
    let directory = |text: &str| parse(text).unwrap().persistence;
    let file = |path: &str| Persistence::File { directory: path.into() };
    assert_eq!(directory(""), file("twinkle-state"));
    assert_eq!(directory("persistence: {mode: memory}"), Persistence::Memory);
    assert_eq!(directory("persistence: {mode: file, file_path: /var/lib/twinkle}"), file("/var/lib/twinkle"));
    assert_eq!(directory("persistence: {mode: file, file_path: data/state.json}"), file("data"));
    insta::assert_snapshot!(problems("persistence: {mode: file}"), @r"node.yaml:1:14: `persistence.file_path` is required when `persistence.mode` is `file`");
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
    insta::assert_snapshot!(problems("http_options: {host: '${oc.env:HOST}', port: '${a.b}'}\nray_namespace: ${ray_namespace}\n"), @r"
    node.yaml:1:22: environment variable `HOST` is not set
    hint: set it, or write `${oc.env:HOST,default}`
    node.yaml:1:46: `${a.b}` names nothing in this file
    node.yaml:2:16: `${ray_namespace}` leads in a circle
    ");
}

/// Parses with these environment variables.
fn parse_in(text: &str, variables: &[(&str, &str)]) -> Result<ServerConfig, super::ConfigErrors> {
    let lookup = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    ServerConfig::parse_with("node.yaml", text, &lookup)
}

#[test]
fn the_environment_fills_what_the_file_leaves_out_of_persistence() {
    let variables = [
        ("TWINKLE_PERSISTENCE_MODE", "redis"),
        ("TWINKLE_PERSISTENCE_REDIS_URL", "redis://env"),
        ("TWINKLE_PERSISTENCE_KEY_PREFIX", "env:"),
        ("TWINKLE_PERSISTENCE_FILE_PATH", "/env"),
    ];
    let persistence = |text: &str| parse_in(text, &variables).unwrap().persistence;
    let redis = |url: &str, key_prefix: &str, directory: &str| Persistence::Redis {
        url: url.to_owned(),
        key_prefix: key_prefix.to_owned(),
        directory: directory.into(),
    };
    assert_eq!(persistence(""), redis("redis://env", "env:", "/env"));
    assert_eq!(persistence("persistence: {mode: memory}"), Persistence::Memory);
    assert_eq!(persistence("persistence: {file_path: /yaml}"), Persistence::File { directory: "/yaml".into() });
    assert_eq!(
        persistence("persistence: {mode: redis, redis_url: 'redis://yaml'}"),
        redis("redis://yaml", "env:", "/env")
    );
    let wrong = parse_in("", &[("TWINKLE_PERSISTENCE_MODE", "redsi")]).unwrap_err();
    insta::assert_snapshot!(wrong, @r"
    node.yaml: unknown mode `redsi` in the environment variable `TWINKLE_PERSISTENCE_MODE`
    hint: did you mean `redis`? known values: `memory`, `file`, `redis`, `postgres`
    ");
}

#[test]
fn a_store_on_the_network_keeps_its_files_in_a_folder() {
    let config = parse("persistence: {mode: postgres, postgres_url: 'postgres://u@h/d', file_path: /files}").unwrap();
    let (url, key_prefix) = ("postgres://u@h/d".to_owned(), String::new());
    let expected = Persistence::Postgres { url, key_prefix, directory: "/files".into() };
    assert_eq!(config.persistence, expected);
    insta::assert_snapshot!(problems("persistence: {mode: postgres}"), @r"node.yaml:1:14: `persistence.postgres_url` is required when `persistence.mode` is `postgres`");
    insta::assert_snapshot!(problems("persistence: {mode: redis}"), @r"node.yaml:1:14: `persistence.redis_url` is required when `persistence.mode` is `redis`");
    let config = parse("persistence: {mode: file, file_path: a, redis_url: b, key_prefix: c}").unwrap();
    insta::assert_snapshot!(config.inert_keys().join("\n"), @r"
    persistence.redis_url: another `mode` uses it
    persistence.key_prefix: another `mode` uses it
    ");
}

#[test]
fn keys_and_certificates_are_files() {
    let text = "auth: {keys_file: keys.txt}\nhttp_options: {tls: {certificate: c.pem, private_key: k.pem}}\n";
    let config = parse(text).unwrap();
    assert_eq!(config.auth.keys_file.as_deref(), Some("keys.txt".as_ref()));
    assert!(config.auth.is_required());
    assert!(!parse("").unwrap().auth.is_required());
    assert_eq!(config.http.tls, Some(TlsConfig { certificate: "c.pem".into(), private_key: "k.pem".into() }));
    insta::assert_snapshot!(problems("auth: {keys_file: ''}\nhttp_options: {tls: {certificate: c.pem}}\n"), @r"
    node.yaml:1:19: `keys_file` in `auth` is empty
    node.yaml:2:21: `private_key` is missing in `http_options.tls`
    ");
}

#[test]
fn limits_that_make_no_sense_are_told() {
    let text = "\
task_queue:
  queue_timeout: .nan
  execution_timeout: .inf
  window_seconds: 0
  max_input_tokens: 0.5
  token_cleanup_interval: 1e99
  rps_limit: -0.1
  enabled: 2
applications:
  - name: s
    route_prefix: /api/v1
    import_path: server
    args:
      server_config: {cleanup_interval: 0, expiration_timeout: -1, per_token_model_limit: 0, metrics_update_interval: 1e99}
    deployments:
      - max_ongoing_requests: 0
        max_queued_requests: -2
        num_replicas: 1
        autoscaling_config: {min_replicas: 3, max_replicas: 2, target_ongoing_requests: 0}
  - name: p
    route_prefix: /api/v1/processor
    import_path: processor
    args: {ncpu_proc_per_node: 0, processor_config: {processor_timeout: 0}}
    deployments:
      - autoscaling_config: {initial_replicas: 2}
  - name: x
    route_prefix: /api/v1/sampler
    import_path: sampler
    args:
      model_id: m
      engine_args: {gpu_memory_utilization: 1.5, max_num_seqs: 0}
      device_group: {name: g, ranks: 0}
";
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:2:18: `queue_timeout` in `task_queue` must be a number, got the number `NaN`
    node.yaml:3:22: `execution_timeout` in `task_queue` must be a number, got the number `inf`
    node.yaml:4:19: `window_seconds` in `task_queue` must be above 0 and at most 1000000000, got the number `0`
    node.yaml:5:21: `max_input_tokens` in `task_queue` must be a whole number, got the number `0.5`
    node.yaml:6:27: `token_cleanup_interval` in `task_queue` must be between 0 and 1000000000, got the number `1e99`
    node.yaml:7:14: `rps_limit` in `task_queue` must be at least 0, got the number `-0.1`
    node.yaml:8:12: `enabled` in `task_queue` must be `true` or `false`, got the number `2`
    node.yaml:14:41: `cleanup_interval` in `applications[0].args.server_config` must be above 0 and at most 1000000000, got the number `0`
    node.yaml:14:64: `expiration_timeout` in `applications[0].args.server_config` must be above 0 and at most 1000000000, got the number `-1`
    node.yaml:14:91: `per_token_model_limit` in `applications[0].args.server_config` must be at least 1, got the number `0`
    node.yaml:14:119: `metrics_update_interval` in `applications[0].args.server_config` must be above 0 and at most 1000000000, got the number `1e99`
    node.yaml:16:31: `max_ongoing_requests` in `applications[0].deployments[0]` must be between 1 and 1000000, got the number `0`
    node.yaml:17:30: `max_queued_requests` in `applications[0].deployments[0]` must be between -1 and 10000000, got the number `-2`
    node.yaml:18:23: `num_replicas` and `autoscaling_config` exclude each other in `applications[0].deployments[0]`
    node.yaml:19:61: `min_replicas` (3) is above `max_replicas` (2)
    node.yaml:19:89: `target_ongoing_requests` in `applications[0].deployments[0].autoscaling_config` must be above 0, got the number `0`
    node.yaml:23:32: `ncpu_proc_per_node` in `applications[1].args` must be between 1 and 4096, got the number `0`
    node.yaml:23:73: `processor_timeout` in `applications[1].args.processor_config` must be above 0 and at most 1000000000, got the number `0`
    node.yaml:25:48: `initial_replicas` (2) is not between `min_replicas` (1) and `max_replicas` (1)
    node.yaml:31:45: `gpu_memory_utilization` in `applications[2].args.engine_args` must be above 0 and at most 1, got the number `1.5`
    node.yaml:31:64: `max_num_seqs` in `applications[2].args.engine_args` must be between 1 and 1000000, got the number `0`
    node.yaml:32:21: `device_group` `g` has no ranks
    ");
}

#[test]
fn full_training_has_one_replica() {
    let text =
        format!("{}    deployments: [{{autoscaling_config: {{max_replicas: 2}}}}]\n", model_with("train_mode: full"));
    insta::assert_snapshot!(problems(&text), @r"node.yaml:2:5: application `m`: `train_mode: full` is an exclusive single-tenant mode and requires a single replica, not 2");
}

#[test]
fn a_processor_takes_its_limit_from_the_environment_unless_the_file_says_so() {
    let application = |args: &str, own: &str| {
        format!(
            "applications:\n  - name: p\n    import_path: processor\n    args: {args}\n    deployments: [{{ray_actor_options: {{runtime_env: {{env_vars: {own}}}}}}}]\n"
        )
    };
    let limit = |text: &str| match &parse_in(text, &[("TWINKLE_PER_USER_PROCESSOR_LIMIT", "7")]).unwrap().applications
        [0]
    .args
    {
        ApplicationArgs::Processor(args) => args.per_token_processor_limit,
        other => panic!("{other:?}"),
    };
    assert_eq!(limit(&application("{}", "{}")), 7);
    assert_eq!(limit(&application("{}", "{TWINKLE_PER_USER_PROCESSOR_LIMIT: '9'}")), 9);
    let said = "{processor_config: {per_token_processor_limit: 3}}";
    assert_eq!(limit(&application(said, "{TWINKLE_PER_USER_PROCESSOR_LIMIT: '9'}")), 3);
}

#[test]
fn interpolation_goes_through_lists_other_interpolations_and_escapes() {
    let text = "\
telemetry:
  service_name: ${oc.env:NAME,${http_options.host}}-\\${x}
  resource_attributes: {first: '${applications[0].name}', again: '${applications.0.name}'}
http_options: {host: 'h', port: '${oc.env:PORT,null}'}
applications: [{name: \"s\", import_path: server, args: {supported_models: '${models}'}}]
";
    let errors = parse(text).unwrap_err();
    insta::assert_snapshot!(errors, @r"node.yaml:5:74: `${models}` names nothing in this file");
    let config = parse(&text.replace("'${models}'", "['${http_options.host}']")).unwrap();
    assert_eq!(config.telemetry.service_name, "h-${x}");
    assert_eq!(config.telemetry.resource_attributes["first"], "s");
    assert_eq!(config.telemetry.resource_attributes["again"], "s");
    assert_eq!(config.http.port, 8000);
    insta::assert_snapshot!(problems("ray_namespace: ${oc.decode:x}"), @r"
    node.yaml:1:16: unknown resolver `oc.decode` in `${oc.decode:x}`
    hint: known resolvers: `oc.env`
    ");
}

#[test]
fn scalars_are_read_as_laxly_as_the_original_does() {
    let config =
        parse(&model_with("max_loras: '4'\nmax_length: 100.0\nuse_megatron: 'off'\nlora_alpha: '1e1'")).unwrap();
    let args = model_args(&config);
    assert_eq!((args.max_loras, args.max_length), (4, Some(100)));
    assert!((args.lora_alpha - 10.0).abs() < f64::EPSILON);
    insta::assert_snapshot!(problems(&model_with("max_loras: 4.5\nmax_length: true\nuse_megatron: 2\nlora_alpha: x")), @r"
    node.yaml:8:18: `max_loras` in `applications[0].args` must be a whole number, got the number `4.5`
    node.yaml:9:19: `max_length` in `applications[0].args` must be a whole number, got `true`
    node.yaml:10:21: `use_megatron` in `applications[0].args` must be `true` or `false`, got the number `2`
    node.yaml:11:19: `lora_alpha` in `applications[0].args` must be a number, got the text `x`
    ");
}

#[test]
fn an_amount_of_memory_is_bytes_or_has_a_unit() {
    for (written, bytes) in [("1073741824", 1 << 30), ("1.5 GiB", 3 << 29), ("'2GB'", 2_000_000_000)] {
        let config = parse(&model_with(&format!("memory_limit: {written}"))).unwrap();
        assert_eq!(model_args(&config).memory_limit, Some(bytes), "{written}");
    }
    insta::assert_snapshot!(problems(&model_with("memory_limit: 5 apples")), @r"
    node.yaml:8:21: `memory_limit` in `applications[0].args` must be an amount of memory such as `8 GiB`, got the text `5 apples`
    ");
    assert!(problems(&model_with("memory_limit: 0")).contains("must be an amount of memory"));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let warnings = |text: &str| parse(text).unwrap().warnings().join("\n");
    insta::assert_snapshot!(warnings(""), @r"node.yaml:1:1: no applications are configured");
    insta::assert_snapshot!(warnings("applications: [{name: p, import_path: processor, args: {}}]"), @r"node.yaml:1:1: no `server` application is configured: the protocols' routes are missing");
    let text = "applications: [{name: s, import_path: server, args: {supported_models: [a/b]}}]";
    insta::assert_snapshot!(warnings(text), @r"node.yaml:1:16: `a/b` is in `supported_models`, but no application serves it");
}

#[test]
fn a_password_is_not_printed() {
    let printed = |url: &str| {
        let config = parse(&format!("persistence: {{mode: redis, redis_url: '{url}'}}")).unwrap();
        serde_json::to_value(&config.persistence).unwrap()["url"].as_str().unwrap().to_owned()
    };
    assert_eq!(printed("redis://me:se:cr@et@host:6379/0"), "redis://me:***@host:6379/0");
    assert_eq!(printed("redis://:secret@host"), "redis://:***@host");
    assert_eq!(printed("redis://host:6379"), "redis://host:6379");
}
