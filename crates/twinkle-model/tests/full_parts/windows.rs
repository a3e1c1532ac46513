//! Updates that take several backward passes, and how far a run is when it is saved and asked.

use twinkle_core::call::RunState;

use super::*;

/// Some of the three sequences, for a loss that is a sum over their tokens.
fn part(range: std::ops::Range<usize>) -> RunOperation {
    let RunOperation::ForwardBackward { data, .. } = forward_backward(true) else { panic!("another operation") };
    let mut loss = LossSpec::named("CrossEntropyLoss");
    loss.options.insert("reduction".to_owned(), "sum".to_owned());
    let data = data.get(range).unwrap().to_vec();
    RunOperation::ForwardBackward { data, loss, backward: true, options: ForwardOptions::default() }
}

/// What `clip_grad_and_step` of the native protocol does.
fn update() -> RunOperation {
    RunOperation::Optimize(OptimizerWork {
        normalise: true,
        clip: Some(GradientClip { max_norm: 1.0, norm: GradientNorm::Two }),
        step: true,
        zero_gradients: true,
        step_scheduler: true,
        only_at_boundary: true,
        ..OptimizerWork::default()
    })
}

/// Whether a window was full.
fn was_due(metrics: &BTreeMap<String, f64>) -> bool {
    metrics["was_due"] > 0.5
}

fn every(steps: u64) -> RunOperation {
    RunOperation::Optimize(OptimizerWork { accumulation_steps: Some(steps), ..OptimizerWork::default() })
}

impl House {
    async fn adapter(&mut self) {
        self.ask(RUN, create(false)).await.unwrap();
        self.ask(RUN, optimizer("AdamW", json!({ "lr": 0.01 }))).await.unwrap();
    }

    async fn state(&mut self, values: bool) -> RunState {
        match self.ask(RUN, RunOperation::Describe { values }).await.unwrap() {
            RunOutcome::Described(state) => *state,
            other => panic!("{other:?}"),
        }
    }

    async fn save(&mut self, name: &str, training: SavedTraining) -> CheckpointPath {
        let path = CheckpointPath::new(RunId::new(RUN), CheckpointKind::Weights, name).unwrap();
        let save = RunOperation::SaveState {
            path: path.clone(),
            ttl_seconds: None,
            overwrite: false,
            user_metadata: BTreeMap::new(),
            training,
        };
        self.ask(RUN, save).await.unwrap();
        path
    }
}

#[tokio::test]
async fn two_passes_of_a_window_are_one_mean_over_all_tokens() {
    let mut trained = Vec::new();
    for spills in [None, Some(false), Some(true)] {
        let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
        house.register().await;
        house.adapter().await;
        let mut norms = Vec::new();
        for _ in 0..2 {
            let Some(spills) = spills else {
                house.ask(RUN, part(0..3)).await.unwrap();
                norms.push(house.step(update()).await["grad_norm"].to_bits());
                continue;
            };
            house.ask(RUN, every(2)).await.unwrap();
            house.ask(RUN, part(0..2)).await.unwrap();
            let early = house.step(update()).await;
            assert!(!was_due(&early) && !early.contains_key("grad_norm"));
            if spills {
                house.ask(RUN, RunOperation::Spill).await.unwrap();
            }
            house.ask(RUN, part(2..3)).await.unwrap();
            let due = house.step(update()).await;
            assert!(was_due(&due));
            norms.push(due["grad_norm"].to_bits());
        }
        let parameters = house.state(true).await.parameters;
        trained.push((norms, parameters));
    }
    assert!(trained[0] == trained[1], "in two passes");
    assert!(trained[0] == trained[2], "in two passes, on disk between them");
}

#[tokio::test]
async fn a_step_alone_is_a_mean_too_and_a_second_one_changes_nothing() {
    let mut trained = Vec::new();
    for clips in [true, false] {
        let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
        house.adapter().await;
        for _ in 0..2 {
            house.ask(RUN, part(0..3)).await.unwrap();
            let native = OptimizerWork { only_at_boundary: true, ..OptimizerWork::default() };
            let clip = Some(GradientClip { max_norm: 1e9, norm: GradientNorm::Two });
            if clips {
                house.step(RunOperation::Optimize(OptimizerWork { normalise: true, clip, ..native.clone() })).await;
            }
            house.step(RunOperation::Optimize(OptimizerWork { normalise: true, step: true, ..native.clone() })).await;
            house.step(RunOperation::Optimize(OptimizerWork { zero_gradients: true, ..native.clone() })).await;
            // Sent again without gradients: momentum does not move the weights.
            house.step(RunOperation::Optimize(OptimizerWork { normalise: true, step: true, ..native })).await;
        }
        trained.push(house.state(true).await.parameters);
    }
    assert!(trained[0] == trained[1]);
}

#[tokio::test]
async fn a_checkpoint_knows_how_far_the_training_had_come() {
    let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
    house.adapter().await;
    house.ask(RUN, every(2)).await.unwrap();
    for _ in 0..3 {
        house.ask(RUN, part(0..2)).await.unwrap();
    }
    let whole = SavedTraining { consumed_train_samples: 12, without_optimizer: false };
    let path = house.save("whole", whole).await;
    let bare = house.save("bare", SavedTraining { without_optimizer: true, ..whole }).await;
    house.ask(RUN, part(0..2)).await.unwrap();
    house.ask(RUN, every(5)).await.unwrap();

    let load = |path: &CheckpointPath, with_optimizer| RunOperation::LoadState {
        path: path.clone(),
        with_optimizer,
        owner: None,
    };
    let error = house.ask(RUN, load(&bare, true)).await.unwrap_err();
    assert!(error.to_string().contains("holds no optimizer"), "{error}");
    let RunOutcome::Loaded { progress: Some(progress), .. } = house.ask(RUN, load(&bare, false)).await.unwrap() else {
        panic!("no progress");
    };
    assert_eq!((progress.cur_step, progress.consumed_train_samples, progress.accumulation_steps), (3, 12, 2));
    let state = house.state(false).await;
    assert_eq!((state.cur_step, state.accumulation_steps), (4, 5), "the run's own go on with weights alone");

    house.ask(RUN, load(&path, true)).await.unwrap();
    let state = house.state(false).await;
    assert_eq!((state.cur_step, state.accumulation_steps), (3, 2));
    // Its gradients are not part of a checkpoint: the next window is a whole one.
    house.ask(RUN, part(0..2)).await.unwrap();
    assert!(!was_due(&house.step(update()).await));
    house.ask(RUN, part(0..2)).await.unwrap();
    assert!(was_due(&house.step(update()).await));
}

#[tokio::test]
async fn a_run_is_described_by_the_names_of_its_checkpoint() {
    let mut house = House::open("qwen3", TrainMode::Lora, Precision::Float32).await;
    house.adapter().await;
    let schedule = SchedulerSpec::named("StepLR", settings(json!({ "step_size": 2 }))).unwrap();
    house.ask(RUN, RunOperation::SetScheduler(schedule)).await.unwrap();
    let short = house.state(false).await;
    assert!(!short.parameters.is_empty() && short.parameters.iter().all(|tensor| tensor.values.is_empty()));
    assert_eq!((short.optimizer.name(), short.scheduler.unwrap().name()), ("AdamW", "StepLR"));
    let long = house.state(true).await;
    let numbers: usize = long.parameters.iter().map(|tensor| tensor.values.len()).sum();
    assert_eq!((numbers as u64, long.trained), (long.trained, short.trained));
    for tensor in &long.parameters {
        assert_eq!(tensor.shape.iter().product::<usize>(), tensor.values.len(), "{}", tensor.name);
    }
    let is_adapter = |name: &str| name.starts_with("base_model.model.") && name.contains(".lora_");
    assert!(long.parameters.iter().all(|tensor| is_adapter(&tensor.name)), "{:?}", long.parameters[0].name);
}
