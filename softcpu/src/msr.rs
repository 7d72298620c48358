//! Model-specific registers that the processor core itself has.

use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::core::{Core, Ctx, Faulted, stop};
use crate::mmu;
use crate::op::{FS_BASE, GS_BASE};
use crate::registers::{CR0_PG, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE};

const TSC: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const BIOS_SIGN_ID: u32 = 0x8b;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const MISC_ENABLE: u32 = 0x1a0;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const FS_BASE_MSR: u32 = 0xc000_0100;
const GS_BASE_MSR: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// PAT after reset: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Fast strings on; branch trace storage and PEBS unavailable.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;

/// Model-specific registers. EFER and the bases of FS and GS are in [`crate::Registers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// IA32_STAR: selectors of SYSCALL and SYSRET.
    pub star: u64,
    /// IA32_LSTAR: where SYSCALL goes.
    pub lstar: u64,
    /// IA32_CSTAR: where SYSCALL from 32-bit code would go.
    pub cstar: u64,
    /// IA32_FMASK: flags that SYSCALL clears.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE: what SWAPGS exchanges the base of GS with.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX: what RDTSCP gives in ECX.
    pub tsc_aux: u64,
    /// What the TSC reads beyond guest time.
    pub tsc_offset: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_SYSENTER_CS, _ESP and _EIP.
    pub sysenter: [u64; 3],
    /// IA32_BIOS_SIGN_ID.
    pub bios_sign: u64,
}

impl Default for Msrs {
    /// As after a reset.
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            tsc_offset: 0,
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_RESET,
            sysenter: [0; 3],
            bios_sign: 0,
        }
    }
}

impl Core {
    /// Time stamp counter at the current instruction.
    pub fn tsc(&self) -> u64 {
        self.tick().wrapping_add(self.msrs.tsc_offset)
    }

    pub fn read_msr(&mut self, bus: &mut dyn Bus, index: u32) -> Result<u64, Faulted> {
        Ok(match index {
            TSC => self.tsc(),
            PLATFORM_ID => 0,
            BIOS_SIGN_ID => self.msrs.bios_sign,
            SYSENTER_CS => self.msrs.sysenter[0],
            SYSENTER_ESP => self.msrs.sysenter[1],
            SYSENTER_EIP => self.msrs.sysenter[2],
            MISC_ENABLE => self.msrs.misc_enable,
            PAT => self.msrs.pat,
            EFER => self.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            CSTAR => self.msrs.cstar,
            FMASK => self.msrs.fmask,
            FS_BASE_MSR => self.regs[usize::from(FS_BASE)],
            GS_BASE_MSR => self.regs[usize::from(GS_BASE)],
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            TSC_AUX => self.msrs.tsc_aux,
            _ => {
                let value = bus.msr_read(self.tick(), index);
                self.cut(stop::BUS);
                return value.ok_or_else(|| self.protection());
            }
        })
    }

    pub fn write_msr(&mut self, cx: &mut Ctx<'_>, index: u32, value: u64) -> Result<(), Faulted> {
        match index {
            TSC => {
                self.msrs.tsc_offset = value.wrapping_sub(self.tick());
                cx.bus.tsc_written(self.tick(), self.msrs.tsc_offset);
                self.cut(stop::BUS);
            }
            // Loading microcode: there is none, and none takes effect.
            BIOS_SIGN_ID => self.msrs.bios_sign = value,
            SYSENTER_CS => self.msrs.sysenter[0] = value,
            SYSENTER_ESP => self.msrs.sysenter[1] = self.canonical_msr(value)?,
            SYSENTER_EIP => self.msrs.sysenter[2] = self.canonical_msr(value)?,
            MISC_ENABLE => self.msrs.misc_enable = value,
            PAT => {
                // Each byte is a memory type: 0, 1, 4, 5, 6 or 7.
                if value.to_le_bytes().iter().any(|t| !matches!(t, 0 | 1 | 4..=7)) {
                    return Err(self.protection());
                }
                self.msrs.pat = value;
            }
            EFER => {
                let known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
                let leaves_long_mode = self.cr0 & CR0_PG != 0 && value & EFER_LME == 0;
                if value & !known != 0 || leaves_long_mode {
                    return Err(self.protection());
                }
                self.efer = (value & !EFER_LMA) | (self.efer & EFER_LMA);
                self.flush_tlb();
                self.cut(stop::MODE);
            }
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = self.canonical_msr(value)?,
            CSTAR => self.msrs.cstar = self.canonical_msr(value)?,
            FMASK => self.msrs.fmask = value & 0xffff_ffff,
            FS_BASE_MSR => self.regs[usize::from(FS_BASE)] = self.canonical_msr(value)?,
            GS_BASE_MSR => self.regs[usize::from(GS_BASE)] = self.canonical_msr(value)?,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = self.canonical_msr(value)?,
            TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            _ => {
                let taken = cx.bus.msr_write(self.tick(), index, value);
                self.cut(stop::BUS);
                return if taken { Ok(()) } else { Err(self.protection()) };
            }
        }
        Ok(())
    }

    fn canonical_msr(&mut self, value: u64) -> Result<u64, Faulted> {
        if mmu::canonical(value) {
            Ok(value)
        } else {
            Err(self.protection())
        }
    }
}
