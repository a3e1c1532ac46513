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
    insta::assert_snapshot!(problems(text), @r"node.yaml:9:9: `ranks` is missing in `applications[0].args.device_group`");
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
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:3:9: `port` in `http_options` must be a whole number, got the text `eighty`
    node.yaml:5:9: unknown `mode` `fiel` in `persistence`
    hint: did you mean `file`? known values: `memory`, `file`, `redis`, `postgres`
    node.yaml:7:14: `rps_limit` in `task_queue` must be at least 0, got the number `-1`
    node.yaml:8:21: `max_input_tokens` in `task_queue` must be at least 1, got the number `0`
    node.yaml:11:19: route_prefix `api/v1` must start with `/`
    node.yaml:12:18: unknown import_path `serverr`
    hint: did you mean `server`? known import paths: `server`, `model`, `sampler`, `processor`
    node.yaml:13:11: name `one` is used by another application
    node.yaml:14:19: route_prefix `/x/` must not end with `/`
    node.yaml:17:7: `model_id` is missing in `applications[1].args`
    node.yaml:17:7: `device_group` is missing in `applications[1].args`
    node.yaml:17:21: unknown `sampler_type` `vlm` in `applications[1].args`
    hint: did you mean `vllm`? known values: `vllm`, `torch`, `mock`
    node.yaml:19:9: unknown key `max_model_length` in `applications[1].args.engine_args`
    hint: did you mean `max_model_len`? known keys: `async_scheduling`, `block_size`, `compilation_config`, `cpu_offload_gb`, `data_parallel_size`, `disable_custom_all_reduce`, `disable_log_stats`, `distributed_executor_backend`, `dtype`, `enable_chunked_prefill`, `enable_expert_parallel`, `enable_lora`, `enable_prefix_caching`, `enable_sleep_mode`, `enable_tower_connector_lora`, `enforce_eager`, `gpu_memory_utilization`, `hf_overrides`, `kv_cache_dtype`, `limit_mm_per_prompt`, `load_format`, `logprobs_mode`, `max_logprobs`, `max_lora_rank`, `max_loras`, `max_model_len`, `max_num_batched_tokens`, `max_num_seqs`, `mm_processor_kwargs`, `pipeline_parallel_size`, `quantization`, `rope_scaling`, `rope_theta`, `seed`, `speculative_config`, `swap_space`, `tensor_parallel_size`, `tokenizer`, `trust_remote_code`
    node.yaml:20:22: `enable_lora` in `applications[1].args.engine_args` must be `true` or `false`, got the text `maybe`
    node.yaml:21:5: `name` is missing in `applications[2]`
    node.yaml:24:17: `model_id` in `applications[2].args` is empty
    node.yaml:25:16: unknown `backend` `megatorn` in `applications[2].args`
    hint: did you mean `megatron`? known values: `transformers`, `megatron`, `mock`
    node.yaml:26:20: unknown `torch_dtype` `float15` in `applications[2].args`
    hint: did you mean `float16`? known values: `auto`, `float32`, `bfloat16`, `float16`, `fp8`
    node.yaml:27:42: rank `0` is listed twice in `applications[2].args.device_group`
    node.yaml:27:45: `ranks` in `applications[2].args.device_group` must be a list of whole numbers, got the text `x`
    node.yaml:27:62: unknown `device_type` `tpu` in `applications[2].args.device_group`
    hint: did you mean `npu`? known values: `cuda`, `npu`, `cpu`
    node.yaml:28:5: `applications[3]` must be a mapping, got the number `7`
    node.yaml:29:1: unknown key `colour`
    hint: known keys: `applications`, `auth`, `http_options`, `model`, `persistence`, `persistence_config`, `proxy_location`, `ray`, `ray_namespace`, `server`, `server_type`, `task_queue`, `telemetry`, `telemetry_config`
    ");
}

#[test]
fn a_broken_file_says_where_it_breaks() {
    insta::assert_snapshot!(problems("applications:\n  - name: [a\n    b: c\n"), @r"node.yaml:3:6: malformed YAML: illegal placement of ':' indicator");
    insta::assert_snapshot!(problems("http_options: {host: a}\nhttp_options: {host: b}\n"), @r"node.yaml:2:1: key `http_options` is given twice");
    insta::assert_snapshot!(problems("- a\n- b\n"), @r"node.yaml:1:1: the top level must be a mapping, got a list");
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
    insta::assert_snapshot!(problems(&model_with("use_megatron: true\nbackend: transformers")), @r"
    node.yaml:8:21: `use_megatron: true` contradicts `backend: transformers` in `applications[0].args`
    hint: keep `backend`; `use_megatron` is its older form
    ");
}

/// The unified generation (0.2–0.3), with all it had.
const UNIFIED: &str = "\
proxy_location: EveryNode
http_options: {host: 0.0.0.0, port: '8000'}
applications:
  - name: server
    route_prefix: /api/v1
    import_path: build_server_app
    args:
      server_config: {per_token_model_limit: 3}
      supported_models: [Qwen/Qwen3-4B, {model_name: Qwen/Qwen3-8B}]
  - name: model
    route_prefix: /api/v1/model/Qwen/Qwen3-4B
    import_path: twinkle.server:build_model_app
    args:
      use_megatron: false
      model_id: ms://Qwen/Qwen3-4B
      max_length: 10240
      nproc_per_node: 1
      mixed_precision: bf16
      device_group: {name: model, ranks: 1, device_type: cuda}
      device_mesh: {device_type: cuda, dp_size: 1}
      queue_config: {rps_limit: 20, tps_limit: 0, window_seconds: 2}
      adapter_config: {adapter_timeout: 30, adapter_max_lifetime: 36000, max_loras: 7}
    deployments:
      - name: ModelManagement
        max_queued_requests: -1
        autoscaling_config: {min_replicas: 1, max_replicas: 1, target_ongoing_requests: 16}
        ray_actor_options: {num_cpus: 0.1}
";

/// The typed generation (0.4–0.5) of the same node.
const TYPED: &str = "\
http_options: {host: 0.0.0.0, port: 8000}
task_queue: {rps_limit: 20, tps_limit: 0, window_seconds: 2.0}
applications:
  - name: server
    route_prefix: /api/v1
    import_path: server
    args:
      server_config:
        per_token_model_limit: 3
        supported_models: [Qwen/Qwen3-4B, Qwen/Qwen3-8B]
  - name: model
    route_prefix: /api/v1/model/Qwen/Qwen3-4B
    import_path: model
    args:
      backend: transformers
      train_mode: lora
      model_id: ms://Qwen/Qwen3-4B
      torch_dtype: bfloat16
      max_loras: 7
      max_length: 10240
      device_group: {name: model, ranks: 1, device_type: GPU}
      device_mesh: {device_type: cuda, world_size: 1}
      adapter_config: {adapter_timeout: 30}
";

#[test]
fn both_generations_end_in_the_same_normal_form() {
    let unified = parse(UNIFIED).unwrap();
    let typed = parse(TYPED).unwrap();
    assert_eq!(unified.applications, typed.applications);
    assert_eq!(unified.check_supported(), Ok(()));
    insta::assert_yaml_snapshot!("generations", typed);
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
    insta::assert_snapshot!(config.check_supported().unwrap_err(), @r"
    node.yaml:1:14: `persistence` with `mode: redis` is understood but not available yet
    node.yaml:2:22: `telemetry` with `enabled: true` is understood but not available yet
    node.yaml:7:34: `num_replicas: 2` is understood but not available yet
    node.yaml:9:7: more than one device (2) in `args of m` is understood but not available yet
    node.yaml:9:16: backend `megatron` is understood but not available yet
    node.yaml:10:19: `train_mode: full` is understood but not available yet
    ");
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
    insta::assert_snapshot!(config.inert_keys().join("\n"), @r"
    proxy_location: there is one listener
    ray_namespace: everything runs in one process
    http_options.keep_alive_timeout_s: a setting of Ray Serve's proxy
    applications[0].deployments[0].ray_actor_options.num_cpus: a hint for Ray's placement
    applications[0].deployments[0].ray_actor_options.runtime_env.env_vars.A: one process has one environment: set variables for the node
    ");
}

#[test]
fn the_mesh_must_fit_the_group() {
    insta::assert_snapshot!(problems(&model_with("device_mesh: {device_type: CPU, dp_size: 2, tp_size: 2}")), @r"
    node.yaml:8:20: `device_mesh` needs 4 workers, but `device_group` `g` has 1
    hint: the product of dp, fsdp, tp, pp and cp sizes must equal the number of `ranks`, divided by `gpus_per_worker`
    ");
    insta::assert_snapshot!(problems(&model_with("device_mesh: {mesh: [[0, 1]], mesh_dim_names: [dp]}")), @r"node.yaml:8:27: `mesh` has 2 axes, but `mesh_dim_names` names 1");
    assert!(parse(&model_with("device_mesh: {mesh: [0], mesh_dim_names: [dp]}")).is_ok());
}

#[test]
fn two_applications_may_not_claim_one_model() {
    let twice = "\
applications:
  - {name: a, route_prefix: /one/model/x/y, import_path: model, args: {model_id: ./m, device_group: {name: g, ranks: 1, device_type: cpu}}}
  - {name: b, route_prefix: /two/model/x/y, import_path: model, args: {model_id: ./m, device_group: {name: g, ranks: 1, device_type: cpu}}}
";
    insta::assert_snapshot!(problems(twice), @r"
    node.yaml:3:5: two `model` applications serve the model `x/y`
    hint: give one of them another name in its `route_prefix`
    ");
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
    insta::assert_snapshot!(below("org/present"), @r"<here>/org/present");
    insta::assert_snapshot!(below("./org/present"), @r"<here>/org/present");
    insta::assert_snapshot!(below("org/absent"), @r"model_id `org/absent` is not a folder: looked at `<here>/org/absent` (hint: downloading from a hub is not available yet: download the model and give its folder)");
    insta::assert_snapshot!(below("./absent"), @r"model_id `./absent` is not a folder: looked at `<here>/absent` (hint: give the folder that holds `config.json`)");
    insta::assert_snapshot!(below("ms://org/name"), @r"`ms://org/name` is on a hub, and downloading is not available yet (hint: download the model and give its folder as `model_id`)");
    insta::assert_snapshot!(below("s3://bucket/name"), @r"unknown scheme `s3://` in model_id `s3://bucket/name` (hint: known schemes: `ms://`, `hf://`, `file://`, or a folder)");
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
