//! A backend that fails where a test says so, and otherwise is the real one.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use twinkle_core::call::AdamParams;
use twinkle_core::ids::TenantId;
use twinkle_core::{Error, Result};
use twinkle_model::backend::{Backend, Transformers};
use twinkle_model::pass::{Found, Participant, Way};
use twinkle_model::run::Run;
use twinkle_nn::BaseModel;

/// What a test lets go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A panic in the middle of an operation, with the run's tensors half changed.
    Panic,
    /// The same, because memory ran out.
    OutOfMemory,
    /// The device is lost, as CUDA tells it, with the run's tensors half changed.
    DeviceLost,
    /// Waits until the test lets it go on.
    Gate,
    /// Nothing.
    Nothing,
}

/// The real backend, except where a fault is planned.
#[derive(Default)]
pub(crate) struct Faulty {
    /// By tenant and learning rate: the next faults of that step.
    planned: Mutex<HashMap<(String, u64), Vec<Fault>>>,
    /// By tenant: the next faults of passes with a run of it.
    in_passes: Mutex<HashMap<String, Vec<Fault>>>,
    /// Whose runs were in each pass that was begun.
    passes: Mutex<Vec<Vec<TenantId>>>,
    /// The next answers of the probe.
    pub(crate) dead_probes: Mutex<u32>,
    gate: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    /// Told when an operation has come to the gate.
    at_gate: Mutex<Option<mpsc::UnboundedSender<()>>>,
}

impl Faulty {
    /// The optimizer step with this learning rate fails like this, once for each fault.
    pub(crate) fn plan(&self, tenant: &str, learning_rate: f64, faults: &[Fault]) {
        let key = (tenant.to_owned(), learning_rate.to_bits());
        self.planned.lock().insert(key, faults.to_vec());
    }

    /// The next passes with this tenant's run fail like this, one for each fault.
    pub(crate) fn plan_in_passes(&self, tenant: &str, faults: &[Fault]) {
        self.in_passes.lock().insert(tenant.to_owned(), faults.to_vec());
    }

    /// How many runs shared the passes of this tenant's run.
    pub(crate) fn runs_in_passes_of(&self, tenant: &str) -> Vec<usize> {
        let tenant = TenantId::new(tenant);
        let passes = self.passes.lock();
        passes.iter().filter(|tenants| tenants.contains(&tenant)).map(Vec::len).collect()
    }

    /// Operations stop at the gate; returned are who is told of it, and what opens it.
    pub(crate) fn close_gate(&self) -> (mpsc::UnboundedReceiver<()>, std::sync::mpsc::Sender<()>) {
        let (open, gate) = std::sync::mpsc::channel();
        let (sender, at_gate) = mpsc::unbounded_channel();
        *self.gate.lock() = Some(gate);
        *self.at_gate.lock() = Some(sender);
        (at_gate, open)
    }

    fn next(&self, run: &Run, learning_rate: f64) -> Option<Fault> {
        let key = (run.tenant.as_str().to_owned(), learning_rate.to_bits());
        let mut planned = self.planned.lock();
        let faults = planned.get_mut(&key)?;
        if faults.is_empty() { None } else { Some(faults.remove(0)) }
    }

    /// What goes wrong in the next pass with a run of this tenant.
    fn next_in_pass(&self, tenant: &TenantId) -> Option<Fault> {
        let mut planned = self.in_passes.lock();
        let faults = planned.get_mut(tenant.as_str())?;
        if faults.is_empty() { None } else { Some(faults.remove(0)) }
    }

    fn fail(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Panic => panic!("scripted panic"),
            Fault::OutOfMemory => panic!("CUDA out of memory. Tried to allocate 2.00 GiB"),
            Fault::DeviceLost => return Err(Error::internal("CUDA error: device-side assert triggered")),
            Fault::Gate => self.wait_at_gate(),
            Fault::Nothing => {}
        }
        Ok(())
    }

    fn wait_at_gate(&self) {
        if let Some(sender) = self.at_gate.lock().as_ref() {
            let _ = sender.send(());
        }
        let gate = self.gate.lock().take();
        if let Some(gate) = gate {
            let _ = gate.recv();
        }
    }
}

impl Backend for Faulty {
    fn probe(&self, base: &BaseModel) -> Result<()> {
        let mut dead = self.dead_probes.lock();
        if *dead > 0 {
            *dead -= 1;
            return Err(Error::internal("CUDA error: still lost"));
        }
        Transformers.probe(base)
    }

    fn pass(&self, base: &BaseModel, participants: &mut [Participant<'_>], way: Way) -> Result<Vec<Vec<Found>>> {
        self.passes.lock().push(participants.iter().map(|participant| participant.run.tenant.clone()).collect());
        for participant in participants.iter_mut() {
            let Some(fault) = self.next_in_pass(&participant.run.tenant) else { continue };
            if !matches!(fault, Fault::Gate | Fault::Nothing) {
                let _ = participant.run.gradients.flat_mut().fill_(7.0);
            }
            self.fail(fault)?;
        }
        Transformers.pass(base, participants, way)
    }

    fn optimizer_step(&self, run: &mut Run, settings: &AdamParams) -> Result<f64> {
        let fault = self.next(run, settings.learning_rate);
        if matches!(fault, Some(Fault::Panic | Fault::OutOfMemory | Fault::DeviceLost)) {
            let _ = run.parameters.fill_(7.0);
        }
        if let Some(fault) = fault {
            self.fail(fault)?;
        }
        Transformers.optimizer_step(run, settings)
    }
}
