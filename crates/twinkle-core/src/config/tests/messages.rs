//! What an operator is told about a file that cannot be used.

use std::path::Path;

use super::super::ServerConfig;
use super::{parse, problems, refusals};

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
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:9:9: `ranks` is missing in `applications[0].args.device_group`
    node.yaml:10:9: unknown key `rnaks` in `applications[0].args.device_group`
    hint: did you mean `ranks`? known keys: `device_type`, `gpus_per_worker`, `name`, `ranks`, `visible_devices`
    ");
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
    hint: did you mean `max_model_len`?
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
fn what_is_not_available_yet_is_refused_and_never_ignored() {
    let text = "\
applications:
  - name: m
    route_prefix: /api/v1/model/a/b
    import_path: model
    deployments: [{autoscaling_config: {min_replicas: 2, max_replicas: 2}}]
    args:
      backend: megatron
      torch_dtype: fp16
      lora_config: {r: 8}
      target_modules: [q_proj]
      model_id: ./m
      device_group: {name: g, ranks: [0, 1], device_type: cuda}
      device_mesh: {device_type: cuda, tp_size: 2}
";
    insta::assert_snapshot!(refusals(text), @r"
    node.yaml:5:55: `min_replicas: 2` is understood but not available yet
    node.yaml:7:16: `backend: megatron` is understood but not available yet
    node.yaml:8:20: `torch_dtype: fp16` is understood but not available yet
    node.yaml:9:20: `lora_config` is understood but not available yet
    node.yaml:10:23: `target_modules` other than `all-linear` is understood but not available yet
    node.yaml:12:21: more than one device (2) for application `m` is understood but not available yet
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
fn a_key_in_the_wrong_place_is_sent_home() {
    let text = "\
max_model_len: 4096
applications:
  - name: x
    route_prefix: /api/v1/sampler/a
    import_path: sampler
    max_ongoing_requests: 5
    args:
      model_id: m
      rps_limit: 5
      gpu_memory_utilization: 0.5
      device_group: {name: g, ranks: 1}
";
    insta::assert_snapshot!(problems(text), @r"
    node.yaml:1:1: unknown key `max_model_len`
    hint: `max_model_len` is a key of `engine_args`
    node.yaml:6:5: unknown key `max_ongoing_requests` in `applications[0]`
    hint: `max_ongoing_requests` is a key of `deployments[]`
    node.yaml:9:7: unknown key `rps_limit` in `applications[0].args`
    hint: `rps_limit` is a key of `queue_config`
    node.yaml:10:7: unknown key `gpu_memory_utilization` in `applications[0].args`
    hint: `gpu_memory_utilization` is a key of `engine_args`
    ");
}

#[test]
fn an_interpolation_that_fails_is_told_once() {
    insta::assert_snapshot!(problems(&super::model_with("").replace("./m", "${oc.env:NOWHERE}")), @r"
    node.yaml:6:17: environment variable `NOWHERE` is not set
    hint: set it, or write `${oc.env:NOWHERE,default}`
    ");
}
