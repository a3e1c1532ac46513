//! `device_group`: which devices an application runs on, and whether `device_mesh` fits them.

use serde::Serialize;

use super::application::Surroundings;
use super::choices::choices;
use super::mesh::{DeviceMesh, GivenMesh};
use super::section::{Located, Section};
use super::tree::{Node, Place, Value};

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
choices!(DeviceType { Cuda = "cuda" | "gpu", Npu = "npu", Cpu = "cpu" });

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

    /// Reads the devices of an application that needs some, and refuses what a single-device engine cannot do.
    pub(super) fn required(args: &mut Section<'_>, surroundings: &Surroundings<'_>) -> Option<Self> {
        if !args.has("device_group") {
            args.missing("device_group");
        }
        let place = args.node("device_group").map_or(args.place(), |group| group.place);
        let devices = Self::read(args, surroundings)?;
        if devices.group.device_type == DeviceType::Npu {
            let what = format!("`device_type: npu` of application `{}`", surroundings.name);
            args.report().unavailable(place, what);
        }
        let count = devices.mesh.world_size().max(u64::from(devices.group.ranks.count()));
        if count > 1 {
            let what = format!("more than one device ({count}) for application `{}`", surroundings.name);
            args.report().unavailable(place, what);
        }
        Some(devices)
    }

    /// Reads `device_group`, `device_mesh` and `nproc_per_node` of an application's `args`.
    pub(super) fn read(args: &mut Section<'_>, surroundings: &Surroundings<'_>) -> Option<Self> {
        let per_node: Option<Located<u32>> = args.integer("nproc_per_node", 1..=4096);
        args.inert("nproc_per_node", "one process drives every device");
        let mesh = args.section("device_mesh").map(GivenMesh::read);
        let group = args.section("device_group").map(|section| GivenGroup::read(section, surroundings))??;
        if let Some(device_type) = mesh.as_ref().and_then(|mesh| mesh.device_type.as_ref())
            && device_type.value != group.device_type
        {
            let message =
                format!("`device_type` of `device_mesh` differs from that of `device_group` `{}`", group.name);
            args.report().problem(device_type.place, message);
        }
        Some(if group.device_type == DeviceType::Cpu {
            group.on_the_host(mesh, args)
        } else {
            group.on_cards(mesh, per_node.map(|count| count.value), args)
        })
    }
}

/// A group as a file gives it.
struct GivenGroup {
    name: String,
    ranks: Ranks,
    place: Place,
    device_type: DeviceType,
    gpus_per_worker: Option<Located<u32>>,
}

impl GivenGroup {
    fn read(mut section: Section<'_>, surroundings: &Surroundings<'_>) -> Option<Self> {
        let place = section.place();
        let name = section.required_text("name");
        let ranks = section.required("ranks", |section, key| {
            let node = section.node(key)?;
            read_ranks(section, key, node)
        });
        let device_type = section.choice::<DeviceType>("device_type").map_or(DeviceType::Cuda, |kind| kind.value);
        let gpus_per_worker = section.integer("gpus_per_worker", 1..=4096);
        let visible = section.node("visible_devices").and_then(|node| read_visible(&section, node));
        let on_cards = device_type != DeviceType::Cpu;
        let ranks = ranks.map(|ranks| match visible.filter(|_| on_cards) {
            Some(visible) => among(&ranks, &visible, &section),
            None => ranks,
        });
        if let (true, Some(cards), Some(Ranks::List(list))) = (on_cards, surroundings.cards_per_machine, &ranks)
            && let Some(rank) = list.iter().find(|rank| **rank >= cards)
        {
            let what = format!("rank {rank} on a machine of {cards} cards, for application `{}`,", surroundings.name);
            section.report().unavailable(place, what);
        }
        section.finish();
        let ranks = ranks?;
        Some(Self { name: name?.value, ranks, place, device_type, gpus_per_worker })
    }

    /// On the host a rank names nothing: a list, or 0, is as many workers as the mesh has.
    fn on_the_host(self, mesh: Option<GivenMesh>, args: &Section<'_>) -> Devices {
        let named = u64::from(self.ranks.count());
        let mesh = match mesh {
            None => DeviceMesh::data_parallel(named),
            Some(given) => {
                if matches!(self.ranks, Ranks::Count(count) if count > 0) {
                    check_fit(&given, named, &self.name, args);
                }
                given.mesh
            }
        };
        let ranks = Ranks::Count(u32::try_from(mesh.world_size()).unwrap_or(u32::MAX));
        let gpus_per_worker = self.gpus_per_worker.map_or(1, |devices| devices.value);
        Devices { group: DeviceGroup { name: self.name, ranks, device_type: self.device_type, gpus_per_worker }, mesh }
    }

    fn on_cards(self, mesh: Option<GivenMesh>, per_node: Option<u32>, args: &Section<'_>) -> Devices {
        let count = self.ranks.count();
        let gpus_per_worker = self.gpus_per_worker.as_ref().map_or(1, |devices| devices.value);
        let report = args.report();
        if count == 0 {
            report.problem(self.place, format!("`device_group` `{}` has no ranks", self.name));
        }
        if let Some(per_worker) = &self.gpus_per_worker {
            if !count.is_multiple_of(per_worker.value) {
                let message =
                    format!("number of ranks ({count}) must be divisible by gpus_per_worker ({})", per_worker.value);
                report.problem(per_worker.place, message);
            } else if let Some(per_node) = per_node
                && !workers_fit(&self.ranks, per_worker.value, per_node)
            {
                let message = format!(
                    "the {} devices of one worker are not on one node of {} (`nproc_per_node`)",
                    per_worker.value, per_node
                );
                report.problem(per_worker.place, message);
            }
        }
        let workers = u64::from(count) / u64::from(gpus_per_worker);
        let mesh = match mesh {
            None => DeviceMesh::data_parallel(workers),
            Some(given) => {
                check_fit(&given, workers, &self.name, args);
                given.mesh
            }
        };
        let Self { name, ranks, device_type, .. } = self;
        Devices { group: DeviceGroup { name, ranks, device_type, gpus_per_worker }, mesh }
    }
}

fn check_fit(given: &GivenMesh, workers: u64, group: &str, args: &Section<'_>) {
    let world = given.mesh.world_size();
    if world == workers || !given.is_sound {
        return;
    }
    let noun = if world == 1 { "worker" } else { "workers" };
    args.report().problem_with_hint(
        given.place,
        format!("`device_mesh` needs {world} {noun}, but `device_group` `{group}` has {workers}"),
        "the product of dp, fsdp, tp, pp and cp sizes must equal the number of `ranks`, divided by `gpus_per_worker`",
    );
}

/// Whether every worker's devices are on one node, where `rank / per_node` is a rank's node.
fn workers_fit(ranks: &Ranks, per_worker: u32, per_node: u32) -> bool {
    let node_of = |rank: &u32| rank / per_node;
    match ranks {
        Ranks::List(list) => list
            .chunks(per_worker as usize)
            .all(|worker| worker.iter().map(node_of).all(|node| Some(node) == worker.first().map(node_of))),
        // Consecutive ranks: either workers divide a node, or the only worker fits.
        Ranks::Count(count) => per_node.is_multiple_of(per_worker) || (*count == per_worker && per_worker <= per_node),
    }
}

fn read_ranks(section: &mut Section<'_>, key: &str, node: &Node) -> Option<Ranks> {
    let rank = |node: &Node| node.whole_number().and_then(|number| u32::try_from(number).ok());
    let Value::List(items) = &node.value else {
        let count = rank(node).filter(|count| *count <= 65_536);
        if count.is_none() {
            section.wrong_type(key, node, "a number of devices or a list of ranks");
        }
        return count.map(Ranks::Count);
    };
    let mut list = Vec::with_capacity(items.len());
    for item in items {
        match rank(item) {
            Some(rank) if list.contains(&rank) => {
                let message = format!("rank `{rank}` is listed twice{}", section.suffix());
                section.report().problem(item.place, message);
            }
            Some(rank) => list.push(rank),
            None => section.wrong_type(key, item, "a list of whole numbers"),
        }
    }
    Some(Ranks::List(list))
}

/// `visible_devices`: one ordinal, a list of them, or a text of them with commas between.
fn read_visible(section: &Section<'_>, node: &Node) -> Option<Located<Vec<u32>>> {
    let ordinal = |node: &Node| node.whole_number().and_then(|number| u32::try_from(number).ok());
    let list: Option<Vec<u32>> = match &node.value {
        Value::List(items) => items.iter().map(ordinal).collect(),
        Value::Text(text) => text.split(',').map(|part| part.trim().parse().ok()).collect(),
        _ => ordinal(node).map(|ordinal| vec![ordinal]),
    };
    if list.is_none() {
        let message = format!("`visible_devices`{} must hold device ordinals", section.suffix());
        section.report().problem(node.place, message);
    }
    list.map(|value| Located { value, place: node.place })
}

/// The devices that ranks name among the visible ones.
fn among(ranks: &Ranks, visible: &Located<Vec<u32>>, section: &Section<'_>) -> Ranks {
    let wanted: Vec<u32> = match ranks {
        Ranks::Count(count) => (0..*count).collect(),
        Ranks::List(list) => list.clone(),
    };
    let found: Option<Vec<u32>> = wanted.iter().map(|rank| visible.value.get(*rank as usize).copied()).collect();
    let Some(found) = found else {
        let message = format!("`ranks` names more than the {} `visible_devices`", visible.value.len());
        section.report().problem(visible.place, message);
        return ranks.clone();
    };
    Ranks::List(found)
}
