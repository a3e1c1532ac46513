//! `device_mesh`: how work is split over the devices, as sizes or as a nested list with named axes.

use serde::Serialize;

use super::device::DeviceType;
use super::section::{Located, Section};
use super::tree::{Node, Place, Value};
use crate::error::suggestion;

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

/// The axes a mesh may name.
const AXES: [&str; 7] = ["dp", "fsdp", "tp", "pp", "cp", "ep", "ulysses"];

impl DeviceMesh {
    /// Number of workers: the product of the sizes that split devices.
    #[must_use]
    pub fn world_size(&self) -> u64 {
        [self.dp_size, self.fsdp_size, self.tp_size, self.pp_size, self.cp_size]
            .into_iter()
            .fold(1, |product, size| product.saturating_mul(u64::from(size)))
    }

    /// All workers side by side, each with its share of a batch.
    pub(super) fn data_parallel(workers: u64) -> Self {
        Self { dp_size: u32::try_from(workers.max(1)).unwrap_or(u32::MAX), ..Self::default() }
    }

    fn axis(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "dp" => &mut self.dp_size,
            "fsdp" => &mut self.fsdp_size,
            "tp" => &mut self.tp_size,
            "pp" => &mut self.pp_size,
            "cp" => &mut self.cp_size,
            "ulysses" => &mut self.ulysses_size,
            "ep" => &mut self.ep_size,
            _ => return None,
        })
    }
}

/// A mesh as a file gives it.
pub(super) struct GivenMesh {
    pub(super) mesh: DeviceMesh,
    pub(super) device_type: Option<Located<DeviceType>>,
    pub(super) place: Place,
    /// Whether nothing about it was reported: only then its size means anything.
    pub(super) is_sound: bool,
}

impl GivenMesh {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let place = section.place();
        let before = section.report().problem_count();
        let device_type = section.choice::<DeviceType>("device_type");
        let sizes = read_sizes(&mut section);
        let mut mesh = DeviceMesh::default();
        for (axis, size) in &sizes {
            if let (Some(target), Some(size)) = (mesh.axis(axis), size) {
                *target = size.value;
            }
        }
        if let Some(named) = read_named_axes(&mut section) {
            for (axis, size) in &sizes {
                let Some(size) = size else { continue };
                if named.clone().axis(axis).is_some_and(|told| *told != size.value) {
                    let message = format!("`{axis}_size` contradicts `mesh`{}", section.suffix());
                    section.report().problem(size.place, message);
                }
            }
            mesh = named;
        }
        check_sizes(&mut section, &mesh);
        for key in ["etp_size", "vpp_size"] {
            if section.integer::<u32>(key, 1..).is_some_and(|size| size.value > 1) {
                section.unavailable_value(key);
            }
        }
        section.inert_boolean("sequence_parallel", "one device holds the whole sequence");
        let is_sound = section.report().problem_count() == before;
        section.finish();
        Self { mesh, device_type, place, is_sound }
    }
}

type Sizes = [(&'static str, Option<Located<u32>>); 7];

fn read_sizes(section: &mut Section<'_>) -> Sizes {
    let mut size = |key| section.integer::<u32>(key, 1..);
    [
        ("dp", size("dp_size")),
        ("fsdp", size("fsdp_size")),
        ("tp", size("tp_size")),
        ("pp", size("pp_size")),
        ("cp", size("cp_size")),
        ("ulysses", size("ulysses_size")),
        ("ep", size("ep_size")),
    ]
}

/// The rules between the sizes.
fn check_sizes(section: &mut Section<'_>, mesh: &DeviceMesh) {
    let world = mesh.world_size();
    let given = section.integer::<u64>("world_size", 1..);
    if let Some(given) = given.filter(|given| given.value > 1 && given.value != world) {
        let message = format!("`world_size` is {}, but the sizes multiply to {world}", given.value);
        section.report().problem(given.place, message);
    }
    let shards = u64::from(mesh.dp_size) * u64::from(mesh.fsdp_size);
    if !shards.is_multiple_of(u64::from(mesh.ulysses_size)) {
        let message =
            format!("`ulysses_size` ({}) must divide `dp_size` times `fsdp_size` ({shards})", mesh.ulysses_size);
        section.report().problem(section.place(), message);
    }
    if !world.is_multiple_of(u64::from(mesh.ep_size)) {
        let message = format!("`ep_size` ({}) must divide the number of workers ({world})", mesh.ep_size);
        section.report().problem(section.place(), message);
        return;
    }
    let per_expert = world / u64::from(mesh.ep_size);
    let given = section.integer::<u64>("ep_fsdp_size", 1..);
    if let Some(given) = given.filter(|given| given.value != per_expert) {
        let message =
            format!("`ep_fsdp_size` is {}, but {world} workers over `ep_size` make {per_expert}", given.value);
        section.report().problem(given.place, message);
    }
}

/// The older form: `mesh: [[0, 1], [2, 3]]` with `mesh_dim_names: ['dp', 'tp']`.
fn read_named_axes(section: &mut Section<'_>) -> Option<DeviceMesh> {
    let names = section.list("mesh_dim_names");
    let nested = section.node("mesh");
    let Some(nested) = nested else {
        if section.has("mesh_dim_names") {
            section.missing("mesh");
        }
        return None;
    };
    if !section.has("mesh_dim_names") {
        section.missing("mesh_dim_names");
        return None;
    }
    let shape = read_shape(nested, section)?;
    if shape.len() != names.len() {
        let axes = if shape.len() == 1 { "axis" } else { "axes" };
        let message = format!("`mesh` has {} {axes}, but `mesh_dim_names` names {}", shape.len(), names.len());
        section.report().problem(nested.place, message);
        return None;
    }
    let mut mesh = DeviceMesh::default();
    let mut seen: Vec<&str> = Vec::new();
    for (name, size) in names.iter().zip(shape) {
        let Value::Text(axis) = &name.value else {
            section.wrong_type("mesh_dim_names", name, "a list of texts");
            continue;
        };
        if seen.contains(&axis.as_str()) {
            section.report().problem(name.place, format!("axis `{axis}` is named twice in `mesh_dim_names`"));
            continue;
        }
        seen.push(axis);
        let Some(target) = mesh.axis(axis) else {
            let message = format!("unknown axis `{axis}` in `mesh_dim_names`");
            section.report().problem_with_hint(name.place, message, suggestion(axis, "axes", &AXES));
            continue;
        };
        *target = size;
    }
    // These two share the workers of the data axis: named as axes of their own they are part of it.
    for shared in [mesh.ulysses_size, mesh.ep_size] {
        mesh.dp_size = mesh.dp_size.saturating_mul(shared);
    }
    Some(mesh)
}

/// The sizes of a nested list of different ranks, outermost first; `None` after reporting one that is no such thing.
fn read_shape(nested: &Node, section: &Section<'_>) -> Option<Vec<u32>> {
    let mut shape = Vec::new();
    let mut level = vec![nested];
    while let Some(Value::List(first)) = level.first().map(|node| &node.value) {
        let length = first.len();
        let mut below = Vec::new();
        for node in &level {
            let Value::List(items) = &node.value else {
                section.report().problem(node.place, "`mesh` must be nested equally deep everywhere");
                return None;
            };
            if items.len() != length || length == 0 {
                section.report().problem(node.place, "every row of `mesh` must have the same length, at least 1");
                return None;
            }
            below.extend(items);
        }
        shape.push(u32::try_from(length).unwrap_or(u32::MAX));
        level = below;
    }
    let mut seen = std::collections::BTreeSet::new();
    for node in level {
        match node.whole_number().filter(|rank| *rank >= 0) {
            Some(rank) if seen.insert(rank) => {}
            Some(rank) => {
                section.report().problem(node.place, format!("rank `{rank}` is listed twice in `mesh`"));
                return None;
            }
            None => {
                section.wrong_type("mesh", node, "a list of ranks");
                return None;
            }
        }
    }
    Some(shape)
}
