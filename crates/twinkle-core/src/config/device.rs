//! `device_group` and `device_mesh`: which devices, and how work is split over them.

use serde::Serialize;

use super::choices::choices;
use super::section::{Located, Section};
use super::tree::{Node, Value};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceType {
    /// The host.
    Cpu,
    /// An NVIDIA card.
    Cuda,
    /// An Ascend card.
    Npu,
}
choices!(DeviceType {
    Cuda = "cuda" | "CUDA" | "Cuda" | "gpu" | "GPU" | "Gpu",
    Npu = "npu" | "NPU" | "Npu",
    Cpu = "cpu" | "CPU" | "Cpu",
});

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The host.
    Cpu,
    /// The CUDA device of this ordinal.
    Cuda(u32),
}

/// Which devices of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranks {
    /// This many, chosen by the node.
    Count(u32),
    /// These, by ordinal.
    List(Vec<u32>),
}

impl Ranks {
    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        match self {
            Self::Count(count) => *count,
            Self::List(list) => u32::try_from(list.len()).unwrap_or(u32::MAX),
        }
    }
}

/// A named set of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceGroup {
    /// Its name.
    pub name: String,
    /// Which devices.
    pub ranks: Ranks,
    /// What they are.
    pub device_type: DeviceType,
    /// Devices of one worker, for tensor-parallel sampling.
    pub gpus_per_worker: u32,
}

/// How work is split over the devices; every size is at least 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMesh {
    /// Data parallel.
    pub dp_size: u32,
    /// Fully sharded data parallel.
    pub fsdp_size: u32,
    /// Tensor parallel.
    pub tp_size: u32,
    /// Pipeline parallel.
    pub pp_size: u32,
    /// Context parallel.
    pub cp_size: u32,
    /// Sequence parallel by heads (Ulysses); does not change the number of devices.
    pub ulysses_size: u32,
    /// Expert parallel; does not change the number of devices.
    pub ep_size: u32,
}

impl Default for DeviceMesh {
    fn default() -> Self {
        Self { dp_size: 1, fsdp_size: 1, tp_size: 1, pp_size: 1, cp_size: 1, ulysses_size: 1, ep_size: 1 }
    }
}

impl DeviceMesh {
    /// Number of workers: the product of the sizes that split devices.
    #[must_use]
    pub fn world_size(&self) -> u64 {
        [self.dp_size, self.fsdp_size, self.tp_size, self.pp_size, self.cp_size]
            .into_iter()
            .fold(1, |product, size| product.saturating_mul(u64::from(size)))
    }
}

/// The devices of one application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Devices {
    /// Which.
    pub group: DeviceGroup,
    /// How work is split over them.
    pub mesh: DeviceMesh,
}

impl Devices {
    /// The first device: the only one while an application runs on one.
    #[must_use]
    pub fn first(&self) -> Device {
        match (self.group.device_type, &self.group.ranks) {
            (DeviceType::Cpu, _) => Device::Cpu,
            (_, Ranks::List(list)) => Device::Cuda(list.first().copied().unwrap_or(0)),
            (_, Ranks::Count(_)) => Device::Cuda(0),
        }
    }

    /// Reads `device_group` and `device_mesh` of an application's `args`.
    pub(super) fn read(args: &mut Section<'_>) -> Option<Self> {
        args.inert("nproc_per_node", "one process drives every device");
        let mesh_section = args.section("device_mesh");
        let mesh_place = mesh_section.as_ref().map(Section::place);
        let mesh = mesh_section.map(read_mesh);
        let group = args.section("device_group").map(read_group)??;

        let workers = u64::from(group.ranks.count()) / u64::from(group.gpus_per_worker);
        let mut mesh = match mesh {
            Some(mesh) => mesh,
            None => DeviceMesh { dp_size: u32::try_from(workers.max(1)).unwrap_or(1), ..DeviceMesh::default() },
        };
        let chosen_by_mesh = group.device_type == DeviceType::Cpu && workers == 0;
        if let Some(place) = mesh_place
            && !chosen_by_mesh
            && mesh.world_size() != workers
        {
            let message = format!(
                "`device_mesh` needs {} {}, but `device_group` `{}` has {workers}",
                mesh.world_size(),
                if mesh.world_size() == 1 { "worker" } else { "workers" },
                group.name,
            );
            args.report().problem_with_hint(
                place,
                message,
                "the product of dp, fsdp, tp, pp and cp sizes must equal the number of `ranks`",
            );
        }
        if mesh.world_size() == 0 {
            mesh = DeviceMesh::default();
        }
        Some(Self { group, mesh })
    }

    /// Reports what a single-device engine cannot do.
    pub(super) fn check_available(&self, args: &Section<'_>) {
        let application = args.suffix();
        if self.group.device_type == DeviceType::Npu {
            args.report().unavailable(args.place(), format!("`device_type: npu`{application}"));
        }
        let devices = self.mesh.world_size().max(u64::from(self.group.ranks.count()));
        if devices > 1 {
            args.report().unavailable(args.place(), format!("more than one device ({devices}){application}"));
        }
    }
}

fn read_group(mut section: Section<'_>) -> Option<DeviceGroup> {
    let name = section.required_text("name");
    let ranks = section.required("ranks", |section, key| {
        let node = section.node(key)?;
        read_ranks(section, node)
    });
    let device_type = section.choice::<DeviceType>("device_type").map_or(DeviceType::Cuda, |kind| kind.value);
    let gpus_per_worker: Option<Located<u32>> = section.integer("gpus_per_worker", 1..);
    section.inert("visible_devices", "set `CUDA_VISIBLE_DEVICES` for the node");
    let report = section.report();
    if let (Some(ranks), Some(per_worker)) = (&ranks, &gpus_per_worker)
        && !ranks.count().is_multiple_of(per_worker.value)
    {
        report.problem(
            per_worker.place,
            format!(
                "number of ranks ({}) must be divisible by `gpus_per_worker` ({})",
                ranks.count(),
                per_worker.value
            ),
        );
    }
    if device_type != DeviceType::Cpu && ranks.as_ref().is_some_and(|ranks| ranks.count() == 0) {
        report.problem(section.place(), format!("`device_group`{} has no ranks", section.suffix()));
    }
    section.finish();
    let gpus_per_worker = gpus_per_worker.map_or(1, |per_worker| per_worker.value);
    Some(DeviceGroup { name: name?.value, ranks: ranks?, device_type, gpus_per_worker })
}

fn read_ranks(section: &mut Section<'_>, node: &Node) -> Option<Ranks> {
    let rank = |value: &Value| match value {
        Value::Integer(number) => u32::try_from(*number).ok(),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    if let Value::List(items) = &node.value {
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            match rank(&item.value) {
                Some(rank) if list.contains(&rank) => {
                    section.report().problem(item.place, format!("rank `{rank}` is listed twice in `ranks`"));
                }
                Some(rank) => list.push(rank),
                None => {
                    let message = format!("a rank in `ranks` must be a whole number, got {}", item.value.describe());
                    section.report().problem(item.place, message);
                }
            }
        }
        return Some(Ranks::List(list));
    }
    let count = rank(&node.value);
    if count.is_none() {
        let message = format!(
            "`ranks`{} must be a number of devices or a list of ranks, got {}",
            section.suffix(),
            node.value.describe()
        );
        section.report().problem(node.place, message);
    }
    count.map(Ranks::Count)
}

fn read_mesh(mut section: Section<'_>) -> DeviceMesh {
    let mut mesh = DeviceMesh::default();
    let sizes = [
        ("dp_size", &mut mesh.dp_size),
        ("fsdp_size", &mut mesh.fsdp_size),
        ("tp_size", &mut mesh.tp_size),
        ("pp_size", &mut mesh.pp_size),
        ("cp_size", &mut mesh.cp_size),
        ("ulysses_size", &mut mesh.ulysses_size),
        ("ep_size", &mut mesh.ep_size),
    ];
    for (key, size) in sizes {
        if let Some(given) = section.integer(key, 1..) {
            *size = given.value;
        }
    }
    // What the group says wins; a mesh of another type would be a typing slip.
    let _ = section.choice::<DeviceType>("device_type");
    for key in ["etp_size", "ep_fsdp_size", "vpp_size"] {
        if section.integer::<u32>(key, 1..).is_some_and(|size| size.value > 1) {
            section.unavailable(key);
        }
    }
    section.inert("sequence_parallel", "one device holds the whole sequence");
    if let Some(world) = section.integer::<u64>("world_size", 1..)
        && world.value > 1
        && world.value != mesh.world_size()
    {
        let message = format!("`world_size` is {}, but the sizes multiply to {}", world.value, mesh.world_size());
        section.report().problem(world.place, message);
    }
    read_mesh_form(&mut section, &mut mesh);
    section.finish();
    mesh
}

/// The older form: `mesh: [[0, 1], [2, 3]]` with `mesh_dim_names: ['dp', 'tp']`.
fn read_mesh_form(section: &mut Section<'_>, mesh: &mut DeviceMesh) {
    let names = section.list("mesh_dim_names");
    let Some(nested) = section.node("mesh") else { return };
    let shape = shape_of(nested);
    if shape.len() != names.len() {
        let message = format!("`mesh` has {} axes, but `mesh_dim_names` names {}", shape.len(), names.len());
        section.report().problem(nested.place, message);
        return;
    }
    for (name, size) in names.iter().zip(shape) {
        let Value::Text(axis) = &name.value else {
            section
                .report()
                .problem(name.place, format!("an axis of `mesh` must be a text, got {}", name.value.describe()));
            continue;
        };
        let target = match axis.as_str() {
            "dp" => &mut mesh.dp_size,
            "fsdp" => &mut mesh.fsdp_size,
            "tp" => &mut mesh.tp_size,
            "pp" => &mut mesh.pp_size,
            "cp" => &mut mesh.cp_size,
            "ulysses" => &mut mesh.ulysses_size,
            "ep" => &mut mesh.ep_size,
            other => {
                let known = ["dp", "fsdp", "tp", "pp", "cp", "ep", "ulysses"];
                let hint = crate::error::suggestion(other, "axes", &known);
                section.report().problem_with_hint(
                    name.place,
                    format!("unknown axis `{other}` in `mesh_dim_names`"),
                    hint,
                );
                continue;
            }
        };
        *target = size.max(1);
    }
}

/// The sizes of a nested list, outermost first.
fn shape_of(node: &Node) -> Vec<u32> {
    let mut shape = Vec::new();
    let mut level = Some(node);
    while let Some(Node { value: Value::List(items), .. }) = level {
        shape.push(u32::try_from(items.len()).unwrap_or(u32::MAX));
        level = items.first();
    }
    shape
}
