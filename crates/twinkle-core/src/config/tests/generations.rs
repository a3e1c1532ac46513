//! Every generation of the grammar, and the older names of a thing.

use super::super::Device;
use super::{model_args, model_on, model_with, parse, problems, refusals};
use crate::component::ComponentKind;

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
      memory_limit: null
      device_group: {name: model, ranks: 1, device_type: GPU}
      device_mesh: {device_type: cuda, world_size: 1}
      adapter_config: {adapter_timeout: 30}
    deployments: [{autoscaling_config: {target_ongoing_requests: 16}}]
";

#[test]
fn both_generations_end_in_the_same_normal_form() {
    let unified = parse(UNIFIED).unwrap();
    let typed = parse(TYPED).unwrap();
    assert_eq!(unified.applications, typed.applications);
    assert_eq!(unified.check_supported(), Ok(()));
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

/// One application on two cards of CUDA, with these devices.
fn devices(lines: &str) -> super::super::Devices {
    let text = model_on("{name: g, ranks: [0, 1], device_type: cuda}", &format!("device_mesh: {{{lines}}}"));
    model_args(&parse(&text).unwrap_or_else(|errors| panic!("{errors}"))).devices.clone()
}

#[test]
fn a_mesh_of_ranks_and_sizes_mean_the_same() {
    assert_eq!(devices("mesh: [0, 1], mesh_dim_names: [dp]"), devices("dp_size: 2"));
    assert_eq!(devices("mesh: [[0, 1]], mesh_dim_names: [dp, tp]"), devices("tp_size: 2"));
    assert_eq!(devices("mesh: [[0], [1]], mesh_dim_names: [pp, tp]"), devices("pp_size: 2, world_size: 2"));
    // Experts need no workers of their own: as an axis they share those of the data axis.
    assert_eq!(devices("mesh: [[0, 1]], mesh_dim_names: [dp, ep]"), devices("dp_size: 2, ep_size: 2"));
    assert_eq!(devices("mesh: [0, 1], mesh_dim_names: [ulysses]"), devices("dp_size: 2, ulysses_size: 2"));
}

#[test]
fn the_first_generations_names_of_an_application_are_names() {
    let older = "applications: [{app: s, server: build_server_app, route_prefix: /api/v1}]";
    let newer = "applications: [{name: s, import_path: server, route_prefix: /api/v1}]";
    assert_eq!(parse(older).unwrap(), parse(newer).unwrap());
    let both = "applications: [{name: s, app: s, import_path: server, server: 'm:build_gateway_app'}]";
    insta::assert_snapshot!(problems(both), @r"
    node.yaml:1:63: `server` contradicts `import_path` in `applications[0]`
    hint: keep `import_path`; `server` is its older name
    ");
    let differing = "applications: [{name: s, app: t, import_path: server, server: model}]";
    insta::assert_snapshot!(problems(differing), @r"
    node.yaml:1:31: `app` contradicts `name` in `applications[0]`
    hint: keep `name`; `app` is its older name
    node.yaml:1:63: `server` contradicts `import_path` in `applications[0]`
    hint: keep `import_path`; `server` is its older name
    ");
}

#[test]
fn older_names_must_not_contradict_newer_ones() {
    let same = "telemetry: {enabled: true}\ntelemetry_config: {enabled: true}\n";
    assert!(parse(same).unwrap().telemetry.enabled);
    insta::assert_snapshot!(problems("telemetry: {enabled: true}\ntelemetry_config: {enabled: false}\n"), @r"
    node.yaml:2:19: `telemetry_config` contradicts `telemetry`
    hint: keep `telemetry`; `telemetry_config` is its older name
    ");
    assert!(parse(&model_with("torch_dtype: float32\nmixed_precision: no")).is_ok());
    insta::assert_snapshot!(problems(&model_with("torch_dtype: bf16\nmixed_precision: no")), @r"
    node.yaml:9:24: `mixed_precision` contradicts `torch_dtype` in `applications[0].args`
    hint: keep `torch_dtype`; `mixed_precision` is its older name
    ");
    insta::assert_snapshot!(problems(&model_with("max_loras: 3\nadapter_config: {max_loras: 4, per_token_model_limit: 2, per_token_adapter_limit: 3}")), @r"
    node.yaml:9:35: `max_loras` is 4 here and 3 in `args`
    hint: keep one of them
    node.yaml:9:89: `per_token_adapter_limit` contradicts `per_token_model_limit` in `applications[0].args.adapter_config`
    hint: keep `per_token_model_limit`; `per_token_adapter_limit` is its older name
    ");
    let twice = "applications: [{name: s, import_path: server, args: {supported_models: [a], server_config: {supported_models: [b]}}}]";
    insta::assert_snapshot!(problems(twice), @r"
    node.yaml:1:111: `supported_models` in `applications[0].args.server_config` contradicts the one in `args`
    hint: keep one of them
    ");
}

#[test]
fn the_short_form_stands_for_four_applications() {
    let short = "model: {model_id: Qwen/Qwen3-4B, torch_dtype: bf16}\nserver: {port: 9000}\nray: {num_gpus: 1}\n";
    let config = parse(short).unwrap();
    let mounted: Vec<_> = config.applications.iter().map(|app| (app.args.kind(), app.route_prefix.as_str())).collect();
    assert_eq!(
        mounted,
        [
            (ComponentKind::Server, "/api/v1"),
            (ComponentKind::Model, "/api/v1/model/Qwen/Qwen3-4B"),
            (ComponentKind::Sampler, "/api/v1/sampler/Qwen/Qwen3-4B"),
            (ComponentKind::Processor, "/api/v1/processor"),
        ]
    );
    assert_eq!((config.http.host.as_str(), config.http.port), ("0.0.0.0", 9000));
    assert_eq!(config.check_supported(), Ok(()));
    assert_eq!(config.inert_keys(), Vec::<String>::new());
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn a_folder_in_the_short_form_is_called_by_its_last_part() {
    let config = parse("model: {model_id: /data/models/Qwen3-4B}\nray: {num_gpus: 0}").unwrap();
    assert_eq!(config.applications[1].route_prefix, "/api/v1/model/Qwen3-4B");
    assert_eq!(config.applications[1].args.devices().unwrap().first(), Device::Cpu);
}

#[test]
fn mistakes_in_the_short_form_are_told_where_they_are() {
    let text = "\
model:
  model_id: s3://bucket/name
  tensor_paralel_size: 2
  torch_dtype: float15
server: {host: 7, num_replicas: 0}
ray: {num_gpus: -1}
http_options: {port: 1, hots: a}
";
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:2:13: unknown scheme `s3://` in model_id `s3://bucket/name`
    hint: known schemes: `ms`, `hf`, `file`, or a folder or `.gguf` file
    node.yaml:3:3: unknown key `tensor_paralel_size` in `model`
    hint: did you mean `tensor_parallel_size`? known keys: `model_id`, `pipeline_parallel_size`, `tensor_parallel_size`, `torch_dtype`, `use_megatron`
    node.yaml:4:16: unknown `torch_dtype` `float15` in `model`
    hint: did you mean `float16`? known values: `bfloat16`, `float16`, `float32`
    node.yaml:5:16: `host` in `server` must be a text, got the number `7`
    node.yaml:5:33: `num_replicas` in `server` must be between 1 and 65536, got the number `0`
    node.yaml:6:17: `num_gpus` in `ray` must be between 0 and 65536, got the number `-1`
    node.yaml:7:25: unknown key `hots` in `http_options`
    hint: did you mean `host`? known keys: `host`, `keep_alive_timeout_s`, `location`, `num_cpus`, `port`, `request_timeout_s`, `root_path`, `tls`
    ");
    insta::assert_snapshot!(problems("server: {port: 1}"), @r"node.yaml:1:1: `model` is missing");
    insta::assert_snapshot!(problems("model: {model_id: m, tensor_parallel_size: 3}\nray: {num_gpus: 4}"), @r"node.yaml:1:8: `tensor_parallel_size` times `pipeline_parallel_size` (3) must divide `num_gpus` (4)");
    insta::assert_snapshot!(problems("model: {model_id: m}\napplications: []"), @r"node.yaml:1:8: `model` belongs to the short form and cannot stand beside `applications`");
    insta::assert_snapshot!(refusals("model: {model_id: m, use_megatron: true, torch_dtype: fp16, tensor_parallel_size: 2}\nserver: {num_replicas: 2}\nray: {num_gpus: 4}"), @r"
    node.yaml:1:8: `backend: megatron` is understood but not available yet
    node.yaml:1:8: `torch_dtype: float16` is understood but not available yet
    node.yaml:1:8: more than one device (4) for application `model-m` is understood but not available yet
    node.yaml:1:8: `dtype: float16` is understood but not available yet
    node.yaml:1:8: `tensor_parallel_size: 2` is understood but not available yet
    node.yaml:1:8: more than one device (4) for application `sampler-m` is understood but not available yet
    node.yaml:2:24: `num_replicas: 2` is understood but not available yet
    ");
}

#[test]
fn the_short_form_may_add_to_the_listener_and_not_contradict_it() {
    let config =
        parse("model: {model_id: m}\nhttp_options: {host: 127.0.0.1, tls: {certificate: c, private_key: k}}").unwrap();
    assert_eq!((config.http.host.as_str(), config.http.tls.is_some()), ("127.0.0.1", true));
    let text = "model: {model_id: m}\nhttp_options: {host: a, port: 1}\nserver: {host: b, port: 2}";
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:3:16: `host` in `server` contradicts `host` in `http_options`
    node.yaml:3:25: `port` in `server` contradicts `port` in `http_options`
    ");
}
