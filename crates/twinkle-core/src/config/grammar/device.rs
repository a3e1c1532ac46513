//! `device_group` and `device_mesh`.

use super::Need::{Default, Optional, Required};
use super::{Grammar, Kind, key};

const DEVICE_TYPES: Kind = Kind::Words(&["cuda", "gpu", "npu", "cpu"]);

const WHOLE: &str = r#"{"anyOf": [{"type": ["integer", "string"], "minimum": 0, "pattern": "^\\s*[+-]?[0-9]+(\\.0*)?\\s*$|\\$\\{"}, {"type": "array", "items": {"type": ["integer", "string"], "minimum": 0}}]}"#;

const RANKS: Kind = Kind::Other { told: "whole number ≥ 0, or list of whole numbers", schema: WHOLE, example: "1" };
const VISIBLE: Kind = Kind::Other {
    told: "list, text or whole number",
    schema: r#"{"anyOf": [{"type": ["integer", "string"], "minimum": 0}, {"type": "array", "items": {"type": ["integer", "string"], "minimum": 0}}]}"#,
    example: "[0]",
};
const MESH: Kind =
    Kind::Other { told: "nested list of whole numbers", schema: r#"{"type": ["array", "string"]}"#, example: "[0]" };
const AXES: Kind = Kind::Other {
    told: "list of `dp`, `fsdp`, `tp`, `pp`, `cp`, `ep`, `ulysses`",
    schema: r#"{"anyOf": [{"type": "array", "items": {"enum": ["dp", "fsdp", "tp", "pp", "cp", "ep", "ulysses"]}}, {"type": "string", "pattern": "\\$\\{"}]}"#,
    example: "[dp]",
};
const SIZE: Kind = Kind::Whole(1, u32::MAX as i64);

pub(super) static DEVICE_GROUP: Grammar = Grammar {
    name: "device_group",
    about: "The devices of an application. An application runs on one device; what asks for more is refused.",
    keys: &[
        key(
            "name",
            Kind::Text,
            Required,
            "Its name. Two applications that use one name for cards must mean the same cards",
        ),
        key(
            "ranks",
            RANKS,
            Required,
            "A list names devices by ordinal, a number asks for as many. On the CPU a list, or 0, means as many \
             workers as `device_mesh` has",
        )
        .refused("more than one device"),
        key("device_type", DEVICE_TYPES, Default("cuda"), "What they are, in any case of letters; `gpu` is `cuda`")
            .refused("`npu`"),
        key(
            "gpus_per_worker",
            Kind::Whole(1, 4096),
            Default("1"),
            "Devices of one worker; must divide the number of `ranks`, and with `nproc_per_node` given they must be on \
             one node",
        )
        .since("G3, G4"),
        key(
            "visible_devices",
            VISIBLE,
            Optional,
            "The devices that `ranks` counts: rank 0 is the first of them. All that the process sees when left out",
        ),
    ],
};

pub(super) static DEVICE_MESH: Grammar = Grammar {
    name: "device_mesh",
    about: "How work is split over the devices, as sizes or as `mesh` with `mesh_dim_names`. The sizes of `fsdp`, `pp`, \
            `dp`, `cp` and `tp` multiply to the number of workers; all workers are data parallel when it is left out.",
    keys: &[
        key("device_type", DEVICE_TYPES, Optional, "The same as in `device_group`"),
        key("dp_size", SIZE, Default("1"), "Data parallel: copies with shares of a batch").since("G2–G4"),
        key("fsdp_size", SIZE, Default("1"), "Fully sharded data parallel").since("G2–G4"),
        key("tp_size", SIZE, Default("1"), "Tensor parallel: workers over which every layer is split").since("G2–G4"),
        key("pp_size", SIZE, Default("1"), "Pipeline parallel: workers over which the layers are divided")
            .since("G2–G4"),
        key("cp_size", SIZE, Default("1"), "Context parallel: workers over which a sequence is split").since("G2–G4"),
        key(
            "ulysses_size",
            SIZE,
            Default("1"),
            "Sequence parallel by heads; needs no workers of its own and must divide `dp_size` times `fsdp_size`",
        )
        .since("G2–G4"),
        key("ep_size", SIZE, Default("1"), "Expert parallel; needs no workers of its own and must divide their number")
            .since("G2–G4"),
        key("etp_size", SIZE, Default("1"), "Tensor parallel inside an expert").since("G2–G4").refused("above 1"),
        key("ep_fsdp_size", SIZE, Optional, "Workers over `ep_size`; anything else is an error").since("G2–G4"),
        key("vpp_size", SIZE, Optional, "Virtual pipeline stages").since("G2–G4").refused("above 1"),
        key("world_size", SIZE, Default("1"), "Number of workers; above 1 it must be the product of the sizes")
            .since("G2–G4"),
        key("sequence_parallel", Kind::Flag, Default("false"), "Splits a sequence between tensor-parallel workers")
            .since("G2–G4")
            .inert(),
        key("mesh", MESH, Optional, "Ranks as a list, nested once for each axis; needs `mesh_dim_names`").since("G1"),
        key("mesh_dim_names", AXES, Optional, "The axes of `mesh`, outermost first").since("G1"),
    ],
};
