//! The state of all processors of a machine, as plain data.

use serde::{Deserialize, Serialize};

use super::idle::Idle;
use super::turn::{Activity, Turn};
use crate::vcpu::CpuState;

/// The state of all processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessorsState {
    /// Complete: a machine can go on from it.
    Soft(SteppedState),
    /// General and special registers of each processor as text. It only serves to tell two states apart: no machine can
    /// be restored from it.
    Kvm(Vec<String>),
}

/// All processors of a machine on the `soft` backend, and whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteppedState {
    /// The processors, in order of their local APIC identities.
    pub vcpus: Vec<CpuState>,
    /// Activity of each processor.
    pub activities: Vec<Activity>,
    /// Whose turn it is.
    pub turn: Turn,
    /// Time that passed without instructions.
    pub idle: Idle,
}

impl SteppedState {
    /// Number of processors.
    #[must_use]
    pub fn count(&self) -> usize {
        self.vcpus.len()
    }

    /// Instructions retired by all processors.
    #[must_use]
    pub fn retired(&self) -> u64 {
        let retired = |vcpu: &CpuState| vcpu.time.saturating_sub(vcpu.skipped);
        self.vcpus.iter().map(retired).fold(0, u64::saturating_add)
    }

    /// Instruction pointer of the processor whose turn it is.
    #[must_use]
    pub fn rip(&self) -> u64 {
        let current = self.vcpus.get(self.turn.processor);
        current.map_or(0, |vcpu| vcpu.registers.rip)
    }
}
