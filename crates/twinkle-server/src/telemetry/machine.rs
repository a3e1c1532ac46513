//! What the node uses of its machine: processors, memory, and GPUs where there is a driver.

use std::time::Duration;

use nvml_wrapper::Nvml;
use sysinfo::{
    CpuRefreshKind, MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System, get_current_pid,
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;
use twinkle_core::telemetry::labels::{Gpu, GpuIndex, Whole};
use twinkle_core::telemetry::metrics::{CPU_UTILIZATION, GPU_MEMORY, GPU_UTILIZATION, PROCESS_MEMORY, SYSTEM_MEMORY};

/// Looks at the machine again and again, beside the async runtime: these are reads of files and calls of a driver.
pub(crate) async fn watch(every: Duration) {
    let Ok(Some(mut machine)) = tokio::task::spawn_blocking(Machine::open).await else { return };
    let mut ticks = interval(every.max(Duration::from_millis(250)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let looked = tokio::task::spawn_blocking(move || {
            machine.look();
            machine
        });
        let Ok(back) = looked.await else { return };
        machine = back;
    }
}

struct Machine {
    system: System,
    process: Option<Pid>,
    /// `None` without an NVIDIA driver, which is nothing to complain about.
    gpus: Option<Nvml>,
}

impl Machine {
    fn open() -> Option<Self> {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kinds);
        let system = system.inspect_err(|error| debug!(?error, "this machine tells nothing about itself")).ok()?;
        Some(Self { system, process: get_current_pid().ok(), gpus: Nvml::init().ok() })
    }

    fn look(&mut self) {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        CPU_UTILIZATION.set(f64::from(self.system.global_cpu_usage()) / 100.0, Whole);
        SYSTEM_MEMORY.set(self.system.used_memory(), Whole);
        if let Some(id) = self.process {
            let kinds = ProcessRefreshKind::nothing().with_memory().without_tasks();
            self.system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, kinds);
            if let Some(process) = self.system.process(id) {
                PROCESS_MEMORY.set(process.memory(), Whole);
            }
        }
        if let Some(gpus) = &self.gpus {
            look_at_gpus(gpus);
        }
    }
}

/// A GPU that does not answer is left out until it does.
fn look_at_gpus(gpus: &Nvml) {
    for index in 0..gpus.device_count().unwrap_or(0) {
        let Ok(device) = gpus.device_by_index(index) else { continue };
        let label = || Gpu { gpu_index: GpuIndex(index) };
        if let Ok(utilization) = device.utilization_rates() {
            GPU_UTILIZATION.set(f64::from(utilization.gpu) / 100.0, label());
        }
        if let Ok(memory) = device.memory_info() {
            GPU_MEMORY.set(memory.used, label());
        }
    }
}
