//! Executes one instruction on softcpu where KVM's own emulator gives up (KVM_INTERNAL_ERROR_EMULATION).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use kvm_bindings::{kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;
use softcpu::memory::Ram;
use softcpu::{Cpu, CpuModel, Exit, Translation};

use super::error::KvmError;
use super::exclusive::Exclusive;
use super::{emulatable, registers, xsave};
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::processors::StopReason;
use crate::soft::vcpu::ram_view;
use crate::vcpu::{BackendError, Bus, CpuWrite, Registers};

/// Most instructions that softcpu executes in KVM's place in one run. A guest that needs more should run on softcpu
/// altogether.
pub(super) const LIMIT: u64 = 4_000_000;
/// Bytes of the longest x86 instruction.
const MAX_INSTRUCTION: usize = 15;

/// Executes instructions of one vCPU on softcpu.
pub(super) struct Emulator {
    cpu: Cpu,
    /// Points into `owner` and is dropped before it.
    ram: Ram,
    owner: Arc<GuestRam>,
    counts: BTreeMap<String, u64>,
    total: u64,
    limit: u64,
}

impl Emulator {
    /// For a vCPU with this RAM; executes at most `limit` instructions.
    pub fn new(ram: Arc<GuestRam>, limit: u64) -> Result<Self, BackendError> {
        let mut cpu = Cpu::new(CpuModel::default());
        // A few instructions, in a thread whose filter allows no executable memory.
        cpu.translate(Translation::Off);
        Ok(Self {
            cpu,
            // SAFETY: `owner` keeps the mappings for as long as the view. softcpu accesses them in `step` only. Its
            // caller holds the platform's lock, so that no device accesses RAM, and proves by `Exclusive` that no vCPU
            // is in the guest.
            #[allow(unsafe_code)]
            ram: unsafe { ram_view(&ram) }?,
            owner: ram,
            counts: BTreeMap::new(),
            total: 0,
            limit,
        })
    }

    /// How often each mnemonic was executed.
    pub fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// Executes the vCPU's next instruction. Returns what ends the run; `None` if the vCPU can go on behind the
    /// instruction. The caller holds the platform's lock.
    pub fn step(
        &mut self,
        vcpu: &VcpuFd,
        _: &Exclusive<'_>,
        bus: &mut dyn Bus,
    ) -> Result<Option<StopReason>, KvmError> {
        let regs = vcpu.get_regs().map_err(KvmError::ioctl("KVM_GET_REGS"))?;
        let mut sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
        let mut xsave = vcpu.get_xsave().map_err(KvmError::ioctl("KVM_GET_XSAVE"))?;
        let before = registers::from_kvm(&regs, &sregs);
        let (bytes, pages) = fetch(vcpu, &self.owner, before.rip);
        if let Some(refused) = self.admit(&bytes, before.rip) {
            return Ok(Some(refused));
        }
        self.load(&before, &sregs, &xsave);
        self.cpu.begin_write_epoch(&self.ram);
        // The guest may have changed the code since softcpu decoded it.
        for page in pages {
            self.cpu.memory_written(&self.ram, page, PAGE_SIZE);
        }
        let until = self.cpu.now().saturating_add(1);
        let exit = self.cpu.run(&mut self.ram, bus, until);
        if let Some(end) = ended(exit) {
            return Ok(Some(end));
        }
        self.store(vcpu, &before, &mut sregs, &mut xsave)?;
        Ok(None)
    }

    /// First write of the last instruction to each page, at guest time `now`.
    pub fn writes(&self, now: u64) -> impl Iterator<Item = CpuWrite> {
        let writes = self.cpu.epoch_writes().iter();
        writes.map(move |write| CpuWrite { time: now, ..*write })
    }

    /// Counts the instruction. Returns why softcpu may not execute it; `None` if it may.
    fn admit(&mut self, bytes: &[u8], rip: u64) -> Option<StopReason> {
        self.total += 1;
        if self.total > self.limit {
            return Some(StopReason::UnknownInstruction {
                bytes: Vec::new(),
                what: format!(
                    "more than {} instructions had to be executed in KVM's place",
                    self.limit
                ),
            });
        }
        let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if !emulatable::is_allowed(&instruction) {
            return Some(refusal(&instruction, bytes));
        }
        let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
        *self.counts.entry(mnemonic).or_default() += 1;
        None
    }

    fn load(&mut self, before: &Registers, sregs: &kvm_sregs, xsave: &kvm_xsave) {
        let mut state = softcpu::Registers::default();
        before.copy_to(&mut state);
        state.ldtr = registers::segment_from_kvm(&sregs.ldt);
        state.cr8 = sregs.cr8;
        xsave::load(&mut state, xsave);
        // softcpu drops its cached translations here.
        self.cpu.set_registers(&state);
    }

    fn store(
        &self,
        vcpu: &VcpuFd,
        before: &Registers,
        sregs: &mut kvm_sregs,
        xsave: &mut kvm_xsave,
    ) -> Result<(), KvmError> {
        let state = self.cpu.registers();
        let after = Registers::from(&state);
        xsave::store(&state, xsave);
        vcpu.set_regs(&registers::general_to_kvm(&after.gpr, after.rip, after.rflags))
            .map_err(KvmError::ioctl("KVM_SET_REGS"))?;
        #[allow(unsafe_code)]
        // SAFETY: the structure came from KVM_GET_XSAVE of this vCPU, which has no dynamically enabled XSTATE features,
        // so its 4096 bytes are all that KVM reads.
        unsafe { vcpu.set_xsave(xsave) }.map_err(KvmError::ioctl("KVM_SET_XSAVE"))?;
        if special(&after) != special(before) {
            registers::update_sregs(sregs, &after);
            vcpu.set_sregs(sregs).map_err(KvmError::ioctl("KVM_SET_SREGS"))?;
        }
        Ok(())
    }
}

/// The bytes at `rip`, as far as they are mapped and in RAM, and the physical addresses of the pages they are in.
fn fetch(vcpu: &VcpuFd, ram: &GuestRam, rip: u64) -> (Vec<u8>, BTreeSet<u64>) {
    let (mut bytes, mut pages) = (Vec::with_capacity(MAX_INSTRUCTION), BTreeSet::new());
    for at in 0..MAX_INSTRUCTION as u64 {
        let mut byte = [0];
        let Ok(translation) = vcpu.translate_gva(rip.wrapping_add(at)) else {
            break;
        };
        if translation.valid == 0 || ram.read(translation.physical_address, &mut byte).is_err() {
            break;
        }
        bytes.extend(byte);
        pages.insert(translation.physical_address / PAGE_SIZE * PAGE_SIZE);
    }
    (bytes, pages)
}

fn refusal(instruction: &Instruction, bytes: &[u8]) -> StopReason {
    StopReason::UnknownInstruction {
        bytes: bytes[..instruction.len().min(bytes.len())].to_vec(),
        what: format!(
            "KVM does not execute {instruction}, and softcpu may not stand in for it, because it has no more of the \
             vCPU's state than general, segment, x87 and SSE registers"
        ),
    }
}

/// The registers that KVM_SET_SREGS sets; the others are zero.
fn special(registers: &Registers) -> Registers {
    Registers {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        ..registers.clone()
    }
}

/// What ends the run; `None` if the instruction was executed.
fn ended(exit: Exit) -> Option<StopReason> {
    match exit {
        Exit::Shutdown(shutdown) => Some(StopReason::TripleFault {
            reason: format!(
                "exceptions {:?} from {:#x} on, CR2 {:#x}, in an instruction that softcpu executed for KVM",
                shutdown.vectors, shutdown.rip, shutdown.cr2
            ),
        }),
        Exit::Unknown(unknown) => Some(StopReason::UnknownInstruction {
            what: format!("neither KVM nor softcpu executes it: {unknown}"),
            bytes: unknown.bytes,
        }),
        _ => None,
    }
}
