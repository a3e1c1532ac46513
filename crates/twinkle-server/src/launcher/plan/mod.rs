//! What `twinkle-server plan` says of a configuration: the memory that a launch would divide, and predicted speeds.

mod facts;
mod speed;

use twinkle_core::config::ServerConfig;
use twinkle_core::error::Result;

pub(crate) use facts::PlanFacts;
pub(crate) use speed::Speeds;

use super::memory::MemoryPlan;
use super::model_folders::ModelFolders;

/// A configuration whose memory has been divided.
pub(crate) struct NodePlan {
    memory: MemoryPlan,
}

impl NodePlan {
    /// Divides what is free now. No hub is asked for a model that is not on this machine.
    pub(crate) async fn of(config: &ServerConfig) -> Result<Self> {
        let folders = ModelFolders::on_this_machine(config).await?;
        Ok(Self { memory: MemoryPlan::new(config, &folders)? })
    }

    /// Everything there is to say.
    pub(crate) fn facts(&self, speeds: &Speeds) -> PlanFacts {
        PlanFacts::of(&self.memory, speeds)
    }
}
