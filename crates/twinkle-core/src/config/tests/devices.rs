//! `device_group` and `device_mesh`.

use super::super::{Device, Devices, Ranks};
use super::{model_args, model_on, model_with, parse, problems, refusals};

#[test]
fn the_mesh_must_fit_the_group() {
    insta::assert_snapshot!(problems(&model_with("device_mesh: {device_type: CPU, dp_size: 2, tp_size: 2}")), @r"
    node.yaml:8:20: `device_mesh` needs 4 workers, but `device_group` `g` has 1
    hint: the product of dp, fsdp, tp, pp and cp sizes must equal the number of `ranks`, divided by `gpus_per_worker`
    ");
    insta::assert_snapshot!(problems(&model_with("device_mesh: {mesh: [[0, 1]], mesh_dim_names: [dp]}")), @r"node.yaml:8:27: `mesh` has 2 axes, but `mesh_dim_names` names 1");
    assert!(parse(&model_with("device_mesh: {mesh: [0], mesh_dim_names: [dp]}")).is_ok());
}

fn on_cards(group: &str, lines: &str) -> String {
    model_on(&format!("{{name: g, device_type: cuda, {group}}}"), lines)
}

fn devices(text: &str) -> Devices {
    model_args(&parse(text).unwrap_or_else(|errors| panic!("{errors}"))).devices.clone()
}

#[test]
fn on_the_host_a_list_or_zero_means_the_mesh() {
    for ranks in ["0", "[0]", "[7, 9]", "4"] {
        let group = format!("{{name: g, ranks: {ranks}, device_type: cpu}}");
        let found = devices(&model_on(&group, "device_mesh: {dp_size: 4}"));
        assert_eq!(found.group.ranks, Ranks::Count(4), "of {ranks}");
        assert_eq!(found.first(), Device::Cpu);
    }
    let found = devices(&model_on("{name: g, ranks: 0, device_type: CPU}", ""));
    assert_eq!(found.group.ranks, Ranks::Count(1));
    insta::assert_snapshot!(problems(&model_on("{name: g, ranks: 3, device_type: CPU}", "device_mesh: {dp_size: 4}")), @r"
    node.yaml:8:20: `device_mesh` needs 4 workers, but `device_group` `g` has 3
    hint: the product of dp, fsdp, tp, pp and cp sizes must equal the number of `ranks`, divided by `gpus_per_worker`
    ");
}

#[test]
fn visible_devices_are_what_ranks_count() {
    for visible in ["[4, 6]", "'4, 6'"] {
        let text = on_cards(&format!("ranks: [1], visible_devices: {visible}"), "");
        assert_eq!(devices(&text).first(), Device::Cuda(6));
    }
    assert_eq!(devices(&on_cards("ranks: 1, visible_devices: 5", "")).first(), Device::Cuda(5));
    insta::assert_snapshot!(problems(&on_cards("ranks: 2, visible_devices: [4]", "")), @r"node.yaml:7:77: `ranks` names more than the 1 `visible_devices`");
    insta::assert_snapshot!(problems(&on_cards("ranks: 1, visible_devices: [a]", "")), @r"node.yaml:7:77: `visible_devices` in `applications[0].args.device_group` must hold device ordinals");
}

#[test]
fn the_devices_of_one_worker_are_on_one_node() {
    insta::assert_snapshot!(problems(&on_cards("ranks: 3, gpus_per_worker: 2", "")), @r"node.yaml:7:77: number of ranks (3) must be divisible by gpus_per_worker (2)");
    insta::assert_snapshot!(problems(&on_cards("ranks: 2, gpus_per_worker: 2", "nproc_per_node: 1")), @r"node.yaml:7:77: the 2 devices of one worker are not on one node of 1 (`nproc_per_node`)");
    insta::assert_snapshot!(problems(&on_cards("ranks: [0, 2], gpus_per_worker: 2", "nproc_per_node: 2")), @r"node.yaml:7:82: the 2 devices of one worker are not on one node of 2 (`nproc_per_node`)");
    for (group, lines) in [
        ("ranks: 2, gpus_per_worker: 2", "nproc_per_node: 2"),
        ("ranks: 4, gpus_per_worker: 2", "nproc_per_node: 4"),
        ("ranks: [2, 3], gpus_per_worker: 2", "nproc_per_node: 2"),
        ("ranks: 2, gpus_per_worker: 2", ""),
    ] {
        assert!(parse(&on_cards(group, lines)).is_ok(), "{group}; {lines}");
    }
}

#[test]
fn a_mesh_that_is_none_is_told() {
    let mesh = |lines: &str| problems(&on_cards("ranks: 4", &format!("device_mesh: {{{lines}}}")));
    let told = [
        "mesh: [[0, 1], [2]], mesh_dim_names: [dp, tp]",
        "mesh: [[0, 1], 2], mesh_dim_names: [dp, tp]",
        "mesh: [], mesh_dim_names: [dp]",
        "mesh: [0, 0, 1, 2], mesh_dim_names: [dp]",
        "mesh: [0, a, 1, 2], mesh_dim_names: [dp]",
        "mesh: [0, 1, 2, 3]",
        "mesh_dim_names: [dp]",
        "mesh: [[0, 1], [2, 3]], mesh_dim_names: [dp, dp]",
        "mesh: [0, 1, 2, 3], mesh_dim_names: [ddp]",
        "mesh: [0, 1, 2, 3], mesh_dim_names: [dp], dp_size: 2",
        "dp_size: 4, world_size: 8",
        "dp_size: 4, ulysses_size: 3",
        "dp_size: 4, ep_size: 3",
        "dp_size: 4, ep_size: 2, ep_fsdp_size: 4",
        "dp_size: 4, device_type: npu",
        "dp_size: 0",
    ]
    .map(mesh);
    insta::assert_snapshot!(told.join("\n"), @r"
    node.yaml:8:36: every row of `mesh` must have the same length, at least 1
    node.yaml:8:36: `mesh` must be nested equally deep everywhere
    node.yaml:8:27: every row of `mesh` must have the same length, at least 1
    node.yaml:8:31: rank `0` is listed twice in `mesh`
    node.yaml:8:31: `mesh` in `applications[0].args.device_mesh` must be a list of ranks, got the text `a`
    node.yaml:8:20: `mesh_dim_names` is missing in `applications[0].args.device_mesh`
    node.yaml:8:20: `mesh` is missing in `applications[0].args.device_mesh`
    node.yaml:8:66: axis `dp` is named twice in `mesh_dim_names`
    node.yaml:8:58: unknown axis `ddp` in `mesh_dim_names`
    hint: did you mean `dp`? known axes: `dp`, `fsdp`, `tp`, `pp`, `cp`, `ep`, `ulysses`
    node.yaml:8:72: `dp_size` contradicts `mesh` in `applications[0].args.device_mesh`
    node.yaml:8:45: `world_size` is 8, but the sizes multiply to 4
    node.yaml:8:20: `ulysses_size` (3) must divide `dp_size` times `fsdp_size` (4)
    node.yaml:8:20: `ep_size` (3) must divide the number of workers (4)
    node.yaml:8:59: `ep_fsdp_size` is 4, but 4 workers over `ep_size` make 2
    node.yaml:8:46: `device_type` of `device_mesh` differs from that of `device_group` `g`
    node.yaml:8:30: `dp_size` in `applications[0].args.device_mesh` must be at least 1, got the number `0`
    ");
}

#[test]
fn what_one_device_cannot_do_is_refused() {
    insta::assert_snapshot!(refusals(&on_cards("ranks: [0, 1]", "device_mesh: {tp_size: 2, vpp_size: 2, etp_size: 2}")), @r"
    node.yaml:7:21: more than one device (2) for application `m` is understood but not available yet
    node.yaml:8:43: `vpp_size: 2` is understood but not available yet
    node.yaml:8:56: `etp_size: 2` is understood but not available yet
    ");
    insta::assert_snapshot!(refusals(&model_on("{name: g, ranks: 1, device_type: NPU}", "")), @r"node.yaml:7:21: `device_type: npu` of application `m` is understood but not available yet");
    let second_machine = format!(
        "{}    deployments: [{{ray_actor_options: {{runtime_env: {{env_vars: {{DEVICE_COUNT_PER_PHYSICAL_NODE: '8'}}}}}}}}]\n",
        on_cards("ranks: [9]", "")
    );
    insta::assert_snapshot!(refusals(&second_machine), @r"node.yaml:7:21: rank 9 on a machine of 8 cards, for application `m`, is understood but not available yet");
}

#[test]
fn one_name_stands_for_one_set_of_cards() {
    let two = |first: &str, second: &str| {
        format!(
            "applications:\n  - {{name: a, route_prefix: /model/a, import_path: model, args: {{model_id: m, device_group: {first}}}}}\n  - {{name: b, route_prefix: /model/b, import_path: model, args: {{model_id: m, device_group: {second}}}}}\n"
        )
    };
    assert!(parse(&two("{name: g, ranks: [0]}", "{name: g, ranks: [0]}")).is_ok());
    assert!(parse(&two("{name: g, ranks: [0]}", "{name: g, ranks: 2, device_type: cpu}")).is_ok());
    insta::assert_snapshot!(problems(&two("{name: g, ranks: [0]}", "{name: g, ranks: [1]}")), @r"
    node.yaml:3:5: `device_group` `g` of `b` is not the one of `a`
    hint: give one of them another name
    ");
}
