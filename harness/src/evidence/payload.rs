//! What is known of the user's own programs.

use crate::payload::PayloadPlan;
use crate::scenario::KexecBy;
use guest_agent::protocol::ProgramEnd;
use serde::{Deserialize, Serialize};

/// The programs of a run with a payload, and how they ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadEvidence {
    /// XXH3 (64 bits) of its initramfs, in hexadecimal.
    pub hash: String,
    /// The command of each generation; for an init only one.
    pub commands: Vec<String>,
    /// Whether it was PID 1.
    pub is_init: bool,
    /// Who kexecs.
    pub kexec: KexecBy,
    /// Texts that lines of the console must have.
    pub passed: Vec<String>,
    /// Texts that no line of the console may have.
    pub failed: Vec<String>,
    /// Whether the console has results in KTAP.
    pub ktap: bool,
    /// Whether it was seen when a kernel retrieves a file. It is not on a backend that cannot stop there, or without the
    /// kernel's symbols.
    #[serde(default)]
    pub retrievals_seen: bool,
    /// How the programs ended, as far as the agent could see it: not that of an init, nor of one that kexecs.
    pub ends: Vec<PayloadEnd>,
}

/// How a program of the payload ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadEnd {
    /// Kernel generation.
    pub generation: u32,
    /// When the agent said so.
    pub time_ns: u64,
    /// How.
    pub end: ProgramEnd,
}

impl From<&PayloadPlan> for PayloadEvidence {
    fn from(plan: &PayloadPlan) -> Self {
        Self {
            hash: format!("{:016x}", plan.hash()),
            commands: plan
                .programs
                .iter()
                .map(|program| program.words.join(" "))
                .collect(),
            is_init: plan.is_init,
            kexec: plan.kexec,
            passed: plan.passed.clone(),
            failed: plan.failed.clone(),
            ktap: plan.ktap,
            retrievals_seen: false,
            ends: Vec::new(),
        }
    }
}
