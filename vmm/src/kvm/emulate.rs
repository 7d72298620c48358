//! One instruction at a time on softcpu, where KVM's own emulator gives up (KVM_INTERNAL_ERROR_EMULATION).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use iced_x86::{Decoder, DecoderOptions};
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use softcpu::memory::Ram;
use softcpu::{Cpu, CpuModel, Exit, X87};

use super::Refused;
use super::state;
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::processors::Happening;
use crate::soft::vcpu::{ram_view, registers_in, registers_out, write_out};
use crate::vcpu::{BackendError, Bus, CpuWrite, Registers};

/// Instructions that softcpu executes in KVM's place in one run. A guest that needs more would be better off on softcpu.
pub(super) const LIMIT: u64 = 4_000_000;
/// Longest x86 instruction.
const MAX_INSTRUCTION: usize = 15;

// Layout of the XSAVE area's legacy region and header (Intel SDM volume 1, section 13.4), in units of 4 bytes.
const MXCSR: usize = 6;
const X87_REGISTERS: usize = 8;
const XMM: usize = 40;
const XSTATE_BV: usize = 128;
/// XSTATE_BV: x87 and SSE state are present.
const LEGACY_STATE: u32 = 0b11;

/// softcpu, standing in for one vCPU.
pub(super) struct Emulator {
    cpu: Cpu,
    ram: Ram,
    // Declared, and so dropped, after the view into it.
    owner: Arc<GuestRam>,
    counts: BTreeMap<String, u64>,
    total: u64,
    limit: u64,
}

/// How an emulated instruction ended.
pub(super) enum Emulated {
    /// The vCPU goes on behind it. These are its writes to RAM.
    Done(Vec<CpuWrite>),
    /// It cannot go on.
    Ended(Happening),
}

impl Emulator {
    /// For a vCPU with this RAM, for at most `limit` instructions.
    pub fn new(ram: Arc<GuestRam>, limit: u64) -> Result<Self, BackendError> {
        Ok(Self {
            cpu: Cpu::new(CpuModel::default()),
            ram: ram_view(&ram)?,
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

    /// Executes the vCPU's next instruction. The caller holds the platform's lock: no device accesses RAM meanwhile.
    pub fn step(&mut self, vcpu: &VcpuFd, bus: &mut dyn Bus, now: u64) -> Result<Emulated, Refused> {
        let (regs, mut sregs, mut xsave) = (
            vcpu.get_regs().map_err(Refused::at("KVM_GET_REGS"))?,
            vcpu.get_sregs().map_err(Refused::at("KVM_GET_SREGS"))?,
            vcpu.get_xsave().map_err(Refused::at("KVM_GET_XSAVE"))?,
        );
        let before = state::out(&regs, &sregs);
        self.total += 1;
        if self.total > self.limit {
            let what = format!(
                "more than {} instructions had to be executed in KVM's place",
                self.limit
            );
            return Ok(Emulated::Ended(Happening::UnknownInstruction {
                bytes: Vec::new(),
                what,
            }));
        }
        self.count(vcpu, &before);
        self.load(&before, &xsave, sregs.cr8);
        self.cpu.begin_write_epoch(&self.ram);
        let start = self.cpu.now();
        let exit = self.cpu.run(&mut self.ram, bus, start.saturating_add(1));
        if let Some(end) = ended(exit) {
            return Ok(Emulated::Ended(end));
        }
        let after = self.cpu.registers();
        put_xmm(&after, &mut xsave);
        let registers = registers_out(&after);
        vcpu.set_regs(&state::regs(&registers.gpr, registers.rip, registers.rflags))
            .map_err(Refused::at("KVM_SET_REGS"))?;
        #[allow(unsafe_code)]
        // SAFETY: the structure came from KVM_GET_XSAVE of this vCPU, which has no dynamically enabled XSTATE features, so its 4096 bytes
        // are all that KVM reads.
        unsafe { vcpu.set_xsave(&xsave) }.map_err(Refused::at("KVM_SET_XSAVE"))?;
        if special(&registers) != special(&before) {
            state::put_special(&registers, &mut sregs);
            vcpu.set_sregs(&sregs).map_err(Refused::at("KVM_SET_SREGS"))?;
        }
        let at = |write: &softcpu::WriteRecord| CpuWrite {
            time: now,
            ..write_out(*write)
        };
        Ok(Emulated::Done(self.cpu.epoch_writes().iter().map(at).collect()))
    }

    /// Counts the instruction, and makes softcpu decode it anew.
    fn count(&mut self, vcpu: &VcpuFd, registers: &Registers) {
        let (bytes, pages) = fetch(vcpu, &self.owner, registers.rip);
        // Others may have written the code since it was last executed here.
        for page in pages {
            self.cpu.memory_written(&self.ram, page, PAGE_SIZE);
        }
        let mut decoder = Decoder::with_ip(64, &bytes, registers.rip, DecoderOptions::NONE);
        let mnemonic = format!("{:?}", decoder.decode().mnemonic()).to_lowercase();
        *self.counts.entry(mnemonic).or_default() += 1;
    }

    fn load(&mut self, registers: &Registers, xsave: &kvm_xsave, cr8: u64) {
        let mut state = registers_in(registers, softcpu::Registers::default());
        let word = |index: usize| u128::from(xsave.region[index]);
        let wide = |at: usize| word(at) | word(at + 1) << 32 | word(at + 2) << 64 | word(at + 3) << 96;
        for (index, register) in state.xmm.iter_mut().enumerate() {
            *register = wide(XMM + 4 * index);
        }
        state.mxcsr = xsave.region[MXCSR];
        let [control, status] = halves(xsave.region[0]);
        let [tags, opcode] = halves(xsave.region[1]);
        let top = usize::from(status >> 11 & 7);
        let mut registers = [0; 8];
        for index in 0..8 {
            registers[(top + index) % 8] = wide(X87_REGISTERS + 4 * index) & ((1 << 80) - 1);
        }
        state.fpu = X87 {
            registers,
            control,
            status,
            full: (tags & 0xff) as u8,
            opcode: opcode & 0x7ff,
            ..X87::default()
        };
        state.cr8 = cr8;
        // With that softcpu forgets its translations.
        self.cpu.set_registers(&state);
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

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

#[allow(clippy::cast_possible_truncation)] // words of a wider number
fn put_xmm(state: &softcpu::Registers, xsave: &mut kvm_xsave) {
    let mut put = |at: usize, value: u128| {
        for part in 0..4 {
            xsave.region[at + part] = (value >> (32 * part)) as u32;
        }
    };
    for (index, register) in state.xmm.iter().enumerate() {
        put(XMM + 4 * index, *register);
    }
    let fpu = &state.fpu;
    let top = usize::from(fpu.status >> 11 & 7);
    for index in 0..8 {
        put(X87_REGISTERS + 4 * index, fpu.registers[(top + index) % 8]);
    }
    xsave.region[0] = u32::from(fpu.control) | u32::from(fpu.status) << 16;
    xsave.region[1] = u32::from(fpu.full) | u32::from(fpu.opcode) << 16;
    xsave.region[MXCSR] = state.mxcsr;
    xsave.region[XSTATE_BV] |= LEGACY_STATE;
}

/// What KVM_SET_SREGS would have to be told.
fn special(registers: &Registers) -> Registers {
    Registers {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        ..registers.clone()
    }
}

/// What ends the run; `None` when the instruction was executed.
fn ended(exit: Exit) -> Option<Happening> {
    match exit {
        Exit::Shutdown(shutdown) => Some(Happening::TripleFault {
            reason: format!(
                "exceptions {:?} from {:#x} on, CR2 {:#x}, in an instruction that softcpu executed for KVM",
                shutdown.vectors, shutdown.rip, shutdown.cr2
            ),
        }),
        Exit::Unknown(unknown) => Some(Happening::UnknownInstruction {
            what: format!("neither KVM nor softcpu executes it: {unknown}"),
            bytes: unknown.bytes,
        }),
        _ => None,
    }
}
