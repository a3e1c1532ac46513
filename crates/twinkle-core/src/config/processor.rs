//! `args` of an application with `import_path: processor`.

use std::path::PathBuf;

use serde::Serialize;

use super::application::Surroundings;
use super::device::Devices;
use super::limits::Limits;
use super::queue::QueueConfig;
use super::section::Section;

/// Text work without a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessorArgs {
    /// Most requests worked on at once; `None` is the number of cores.
    pub workers: Option<u32>,
    /// What a tenant may send.
    pub queue: QueueConfig,
    /// Seconds of silence after which a tenant's processors are dropped.
    pub processor_timeout: f64,
    /// Most processors of one tenant.
    pub per_token_processor_limit: u32,
    /// Folders whose data sets every tenant may read; `None` is what `TWINKLE_DATA_DIRS` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_folders: Option<Vec<PathBuf>>,
}

impl ProcessorArgs {
    pub(super) fn read(mut args: Section<'_>, surroundings: &Surroundings<'_>) -> Self {
        let workers = args.integer("ncpu_proc_per_node", 1..=4096).map(|workers| workers.value);
        let queue = QueueConfig::read(args.section("queue_config"), surroundings.task_queue);
        // Checked like any other, so that a slip is told; text work needs no device.
        let _ = Devices::read(&mut args, surroundings);
        args.inert("device_group", "text is worked on by threads of this process");
        args.inert("device_mesh", "text is worked on by threads of this process");
        let mut processor_timeout = 1800.0;
        let mut per_token_processor_limit = surroundings.processors_per_tenant.filter(|most| *most > 0).unwrap_or(20);
        let mut data_folders = None;
        if let Some(mut section) = args.section("processor_config") {
            section.set_number("processor_timeout", Limits::SOME_SECONDS, &mut processor_timeout);
            if let Some(limit) = section.integer("per_token_processor_limit", 1..) {
                per_token_processor_limit = limit.value;
            }
            let folders = section.text_list("data_folders");
            data_folders = folders.map(|folders| folders.into_iter().map(|folder| folder.value.into()).collect());
            section.finish();
        }
        args.finish();
        Self { workers, queue, processor_timeout, per_token_processor_limit, data_folders }
    }
}
