use std::path::PathBuf;

use twinkle_core::ErrorCode;

use super::*;

const GIB: u64 = 1 << 30;

/// A machine with 16 GiB, of which `free` are free.
async fn plan(applications: &str, free: u64) -> Result<MemoryPlan> {
    let model = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/fixtures/qwen2");
    let server = "- {name: server, route_prefix: /api/v1, import_path: server}";
    let text = format!("applications:\n{server}\n{applications}").replace("MODEL", &model.display().to_string());
    let config = ServerConfig::parse("node.yaml", &text).unwrap();
    let folders = ModelFolders::on_this_machine(&config).await.unwrap();
    MemoryPlan::with_memory(&config, &folders, |_| Some(MachineMemory { total: 16 * GIB, available: free }))
}

fn trainer(more: &str) -> String {
    format!(
        "- name: trainer\n  route_prefix: /api/v1/model/tiny\n  import_path: model\n  args:\n    model_id: MODEL\n    \
         backend: transformers\n    max_r: 4\n    device_group: {{name: model, ranks: 1, device_type: CPU}}\n    \
         device_mesh: {{device_type: CPU, dp_size: 1}}\n{more}"
    )
}

fn sampler(name: &str, utilization: f64) -> String {
    format!(
        "- name: {name}\n  route_prefix: /api/v1/sampler/{name}\n  import_path: sampler\n  args:\n    model_id: MODEL\n    \
         engine_args: {{gpu_memory_utilization: {utilization}}}\n    \
         device_group: {{name: sampler, ranks: 1, device_type: CPU}}\n"
    )
}

#[tokio::test]
async fn beside_a_trainer_caches_take_a_quarter_of_what_weights_leave() {
    let plan = plan(&(trainer("") + &sampler("one", 0.7) + &sampler("two", 0.7)), 9 * GIB).await.unwrap();
    let rest = plan.devices[0].rest().unwrap();
    assert!(rest < 9 * GIB, "weights are taken off");
    assert_eq!(plan.trainers[0].limit, Some(rest / 2));
    for sampler in &plan.samplers {
        assert_eq!(sampler.budget().bytes, rest / 4 / 2, "{}", sampler.application);
    }
}

#[tokio::test]
async fn weights_and_caches_together_take_no_more_than_the_share_that_is_configured() {
    let weights = plan(&sampler("one", 0.7), 15 * GIB).await.unwrap().devices[0].weight_bytes();
    // (the share, what is free, what caches get): bound by the share of 16 GiB, and by what is free.
    for (share, free, expected) in [
        (0.25, 15 * GIB, 4 * GIB - weights),
        (0.5, 15 * GIB, 8 * GIB - weights),
        (1.0, 8 * GIB, (8 * GIB - weights) - (8 * GIB - weights) / 4),
    ] {
        let plan = plan(&sampler("one", share), free).await.unwrap();
        assert_eq!(plan.samplers[0].budget().bytes, expected, "{share} of 16 GiB, {free} free");
        assert_eq!(
            plan.sampler("one").unwrap().budget(),
            plan.samplers[0].caches.unwrap(),
            "the node gets what is shown"
        );
    }
}

#[tokio::test]
async fn a_share_that_leaves_no_room_for_a_token_is_refused_with_numbers() {
    let error = plan(&sampler("one", 1e-6), 15 * GIB).await.err().unwrap();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("`one` has no room for the cache of one token"), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("gpu_memory_utilization")));
}

#[tokio::test]
async fn a_run_of_all_weights_leaves_its_passes_the_rest() {
    let plan = plan(&trainer("    train_mode: full\n    memory_limit: 1 GiB\n"), 9 * GIB).await.unwrap();
    let trainer = &plan.trainers[0];
    assert_eq!(trainer.limits.pass, GIB - trainer.cost.full_run_bytes());
    assert!(trainer.largest_run > trainer.cost.weight_bytes() * 2, "masters, gradients and moments in fp32");

    let limit = trainer.cost.full_run_bytes() + 1000;
    let trainer = format!("    train_mode: full\n    memory_limit: {limit}\n");
    let error = self::plan(&self::trainer(&trainer), 9 * GIB).await.err().unwrap();
    assert!(error.message.contains("a run of all weights takes"), "{error}");
}

#[tokio::test]
async fn copies_of_gradients_are_a_part_of_what_a_pass_takes() {
    let plan = plan(&trainer("    memory_limit: 48 MiB\n    max_length: 4096\n"), 9 * GIB).await.unwrap();
    let trainer = &plan.trainers[0];
    assert!(trainer.undo > 0);
    let rows = trainer.rows_per_pass;
    assert!(trainer.pass_bytes(rows, trainer.recompute_most()) + trainer.undo <= trainer.limits.pass, "{trainer:?}");
}
