//! The `soft` backend: softcpu processors and the devices in turn on one thread, so that a run is a pure function of its inputs.
//!
//! Guest time is retired instructions, one nanosecond each, plus time skipped in HLT.
//!
//! ```text
//!  Soft         makes processors after power-on or from a snapshot
//!   `- stepped      whose turn it is; interrupts; sleeping                 Processors
//!       |- vcpu     one processor: softcpu on guest RAM                    Vcpu
//!       `- code     which processors have decoded which pages
//! ```

mod code;
#[cfg(test)]
mod several_tests;
pub(crate) mod stepped;
#[cfg(test)]
mod tests;
pub(crate) mod vcpu;

use std::sync::Arc;

pub use softcpu::Translation;

use crate::boot::wakeup;
use crate::devices::bus::CRYSTAL_HZ;
use crate::devices::lapic::LocalApics;
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Backend, PowerOn, Processors};
use crate::vcpu::{BackendError, Vcpu};
use stepped::Stepped;
use vcpu::SoftVcpu;

/// The software processor as a backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Soft {
    /// Which guest code is translated to host code. Nothing but speed depends on it.
    pub translation: Translation,
}

impl Soft {
    /// The backend's name.
    pub const NAME: &str = "soft";
}

impl Backend for Soft {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn translation(&self) -> Translation {
        self.translation
    }

    fn gigabyte_pages(&self) -> bool {
        true
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    fn starts_by_mailbox(&self) -> bool {
        true
    }

    fn power_on(
        &self,
        ram: Arc<GuestRam>,
        platform: &mut Platform,
        request: &PowerOn,
    ) -> Result<Box<dyn Processors>, BackendError> {
        platform.bus.lapics = LocalApics::new(request.count, CRYSTAL_HZ);
        let mut vcpus: Vec<Box<dyn Vcpu>> = Vec::new();
        for id in 0..request.count {
            let mut vcpu = SoftVcpu::new(Arc::clone(&ram), id, request.count, self.translation)?;
            if id == 0 {
                vcpu.set_registers(&request.registers);
            } else {
                vcpu.set_registers(&wakeup::registers());
            }
            vcpu.begin_write_epoch();
            vcpus.push(Box::new(vcpu));
        }
        Ok(Box::new(Stepped::new(vcpus)))
    }
}
