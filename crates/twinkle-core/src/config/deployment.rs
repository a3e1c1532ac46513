//! `deployments` of an application: how many requests it takes, and what a cluster would be told.

use std::collections::BTreeMap;

use serde::Serialize;

use super::limits::Limits;
use super::section::Section;
use super::tree::{Node, Value};

/// Why what scales replicas does nothing.
const ONE_REPLICA: &str = "one replica runs";
const FOR_RAY_SERVE: &str = "a setting of Ray Serve";

/// How an application is deployed (`deployments[0]`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deployment {
    /// Most requests inside the component at once.
    pub max_ongoing_requests: u32,
    /// Most requests waiting to enter it; `-1` in the file is this default, because nothing grows without a bound.
    pub max_queued_requests: u32,
    /// How many replicas are asked for. One runs; more is refused at start.
    pub num_replicas: u32,
    /// How many replicas there may be, and when another one is due; `None` when the file does not say.
    pub autoscaling: Option<Autoscaling>,
    /// Seconds the component has to finish its work when the node stops.
    pub graceful_shutdown_timeout_s: f64,
    /// Environment variables of the component.
    pub env_vars: BTreeMap<String, String>,
}

/// `autoscaling_config` of a deployment. One replica runs, whatever the bounds are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Autoscaling {
    /// Fewest replicas.
    pub min_replicas: u32,
    /// Most replicas.
    pub max_replicas: u32,
    /// Requests inside a replica above which it counts as busy.
    pub target_ongoing_requests: f64,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            max_ongoing_requests: 256,
            max_queued_requests: 4096,
            num_replicas: 1,
            autoscaling: None,
            graceful_shutdown_timeout_s: 20.0,
            env_vars: BTreeMap::new(),
        }
    }
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self { min_replicas: 1, max_replicas: 1, target_ongoing_requests: 2.0 }
    }
}

impl Deployment {
    /// Reads `deployments` of an application; only the first entry counts.
    pub(super) fn read(application: &mut Section<'_>) -> Self {
        let list = application.list("deployments");
        for (index, _) in list.iter().enumerate().skip(1) {
            let path = application.path_of(&format!("deployments[{index}]"));
            application.report().inert(path, "only the first deployment of an application counts");
        }
        let first = list.first().and_then(|node| application.item("deployments", 0, node));
        first.map_or_else(Self::default, Self::read_entry)
    }

    fn read_entry(mut entry: Section<'_>) -> Self {
        let mut deployment = Self::default();
        // Only a label, which every generation spells differently.
        let _ = entry.text("name");
        if let Some(most) = entry.integer("max_ongoing_requests", 1..=1_000_000) {
            deployment.max_ongoing_requests = most.value;
        }
        if let Some(most) = entry.integer::<i64>("max_queued_requests", -1..=10_000_000) {
            deployment.max_queued_requests = u32::try_from(most.value).unwrap_or(deployment.max_queued_requests);
        }
        let timeout = &mut deployment.graceful_shutdown_timeout_s;
        entry.set_number("graceful_shutdown_timeout_s", Limits::SECONDS, timeout);
        deployment.num_replicas = read_replicas(&mut entry);
        deployment.autoscaling = read_autoscaling(&mut entry);
        if let Some(actor) = entry.section("ray_actor_options") {
            deployment.env_vars = read_actor_options(actor);
        }
        entry.inert_number("graceful_shutdown_wait_loop_s", Limits::SECONDS, FOR_RAY_SERVE);
        entry.inert_number("health_check_period_s", Limits::SECONDS, FOR_RAY_SERVE);
        entry.inert_number("health_check_timeout_s", Limits::SECONDS, FOR_RAY_SERVE);
        for key in ["user_config", "placement_group_bundles", "placement_group_strategy", "logging_config"] {
            entry.inert(key, FOR_RAY_SERVE);
        }
        entry.finish();
        deployment
    }
}

/// A number of replicas, or `auto`, which is what autoscaling chooses. One is what we run; more is refused.
fn read_replicas(entry: &mut Section<'_>) -> u32 {
    let Some(node) = entry.node("num_replicas") else { return 1 };
    if node.value == Value::Text("auto".to_owned()) {
        entry.inert("num_replicas", ONE_REPLICA);
        return 1;
    }
    if entry.has("autoscaling_config") {
        let message = format!("`num_replicas` and `autoscaling_config` exclude each other{}", entry.suffix());
        entry.report().problem(node.place, message);
    }
    let count = entry.integer::<u32>("num_replicas", 1..).map_or(1, |count| count.value);
    if count > 1 {
        entry.unavailable_value("num_replicas");
    }
    count
}

/// At least `min_replicas` must run, so more than one is refused; room for more is noted.
fn read_autoscaling(entry: &mut Section<'_>) -> Option<Autoscaling> {
    let mut scaling = entry.section("autoscaling_config")?;
    let mut autoscaling = Autoscaling::default();
    let least = scaling.integer::<u32>("min_replicas", 0..);
    let most = scaling.integer::<u32>("max_replicas", 1..);
    let initial = scaling.integer::<u32>("initial_replicas", 0..);
    if let Some(least) = &least {
        autoscaling.min_replicas = least.value;
        if least.value > 1 {
            scaling.unavailable_value("min_replicas");
        }
    }
    if let Some(most) = &most {
        autoscaling.max_replicas = most.value;
        if most.value > 1 {
            scaling.inert("max_replicas", ONE_REPLICA);
        }
    }
    let Autoscaling { min_replicas, max_replicas, .. } = autoscaling;
    if min_replicas > max_replicas {
        let place = most.or(least).map_or(scaling.place(), |bound| bound.place);
        let message = format!("`min_replicas` ({min_replicas}) is above `max_replicas` ({max_replicas})");
        scaling.report().problem(place, message);
    } else if let Some(initial) = initial {
        if (min_replicas..=max_replicas).contains(&initial.value) {
            scaling.inert("initial_replicas", ONE_REPLICA);
        } else {
            let message = format!(
                "`initial_replicas` ({}) is not between `min_replicas` ({min_replicas}) and `max_replicas` ({max_replicas})",
                initial.value,
            );
            scaling.report().problem(initial.place, message);
        }
    }
    let target = &mut autoscaling.target_ongoing_requests;
    scaling.set_number("target_ongoing_requests", Limits::ABOVE_ZERO, target);
    for key in [
        "upscale_delay_s",
        "downscale_delay_s",
        "metrics_interval_s",
        "look_back_period_s",
        "smoothing_factor",
        "upscale_smoothing_factor",
        "downscale_smoothing_factor",
        "upscaling_factor",
        "downscaling_factor",
    ] {
        scaling.inert_number(key, Limits::FROM_ZERO, ONE_REPLICA);
    }
    scaling.finish();
    Some(autoscaling)
}

fn read_actor_options(mut actor: Section<'_>) -> BTreeMap<String, String> {
    const HINT: &str = "a hint for Ray's placement";
    for key in ["num_cpus", "num_gpus", "memory"] {
        actor.inert_number(key, Limits::FROM_ZERO, HINT);
    }
    for key in ["resources", "accelerator_type"] {
        actor.inert(key, HINT);
    }
    let variables = actor.section("runtime_env").map(read_runtime_env).unwrap_or_default();
    actor.finish();
    variables
}

fn read_runtime_env(mut runtime: Section<'_>) -> BTreeMap<String, String> {
    let variables = runtime.texts("env_vars");
    for name in variables.keys() {
        if !HONOURED_VARIABLES.contains(&name.as_str()) {
            let path = runtime.path_of(&format!("env_vars.{name}"));
            runtime.report().inert(path, "one process has one environment: set variables for the node");
        }
    }
    for key in ["pip", "uv", "working_dir", "py_modules", "conda", "container", "config"] {
        runtime.inert(key, "no Python runs here");
    }
    runtime.finish();
    variables
}

/// How many accelerators one machine has, in the generations that count cards over all machines.
pub(super) const CARDS_PER_MACHINE: &str = "DEVICE_COUNT_PER_PHYSICAL_NODE";

/// Most processors of one tenant, for a processor application that does not say.
pub(super) const PROCESSORS_PER_TENANT: &str = "TWINKLE_PER_USER_PROCESSOR_LIMIT";

/// The variables of a component that configuration itself reads.
const HONOURED_VARIABLES: [&str; 2] = [CARDS_PER_MACHINE, PROCESSORS_PER_TENANT];

/// The value of one of the component's own variables, before anything is read of it.
pub(super) fn own_variable<'a>(application: &'a Node, name: &str) -> Option<&'a Node> {
    let Value::List(deployments) = &application.at(&["deployments"])?.value else { return None };
    deployments.first()?.at(&["ray_actor_options", "runtime_env", "env_vars", name])
}
