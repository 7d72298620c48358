//! Control registers, debug registers and the system flags.

use crate::core::{Core, Faulted, stop};
use crate::flags::{AC, DF, ID, IF, IOPL, NT, RF, TF};
use crate::registers::{CR0_CD, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_WP, CR4_KNOWN, CR4_PAE, SS};

/// The system flags that exist, which PUSHF stores and POPF can change. VM, VIF and VIP do not exist here.
const FLAGS_KNOWN: u64 = TF | IF | DF | IOPL | NT | RF | AC | ID;

/// The value of control register `number`; #UD if there is no such register.
pub(super) fn read_cr(core: &mut Core, number: u8) -> Result<u64, Faulted> {
    match number {
        0 => Ok(core.cr0),
        2 => Ok(core.cr2),
        3 => Ok(core.cr3),
        4 => Ok(core.cr4),
        8 => Ok(core.cr8),
        _ => Err(core.undefined()),
    }
}

/// Loads control register `number`; #UD if there is no such register, #GP(0) if the value is not allowed.
pub(super) fn write_cr(core: &mut Core, number: u8, value: u64) -> Result<(), Faulted> {
    match number {
        0 => {
            if value & CR0_PG == 0 || value & CR0_PE == 0 {
                return Err(core.unknown("leaving long mode by CR0"));
            }
            if value >> 32 != 0 || value & (CR0_NW | CR0_CD) == CR0_NW {
                return Err(core.protection());
            }
            let changed = core.cr0 ^ value;
            core.cr0 = value | CR0_ET;
            if changed & (CR0_WP | CR0_PG) != 0 {
                core.flush_tlb();
                core.cut(stop::MODE);
            }
        }
        2 => core.cr2 = value,
        3 => {
            core.cr3 = value & 0x000f_ffff_ffff_ffff;
            core.flush_address_space();
            core.cut(stop::MODE);
        }
        4 => {
            if value & !CR4_KNOWN != 0 {
                return Err(core.protection());
            }
            if value & CR4_PAE == 0 {
                return Err(core.protection());
            }
            core.cr4 = value;
            core.flush_tlb();
            core.cut(stop::MODE);
        }
        8 => {
            if value > 15 {
                return Err(core.protection());
            }
            core.cr8 = value;
            core.cut(stop::BUS);
        }
        _ => return Err(core.undefined()),
    }
    Ok(())
}

/// The value of debug register `number`.
pub(super) fn read_dr(core: &Core, number: u8) -> u64 {
    core.dr[usize::from(debug_register(number))]
}

/// Loads debug register `number`; #GP(0) if the upper half of DR6 or DR7 is not zero.
pub(super) fn write_dr(core: &mut Core, number: u8, value: u64) -> Result<(), Faulted> {
    if value >> 32 != 0 && number >= 4 {
        return Err(core.protection());
    }
    let number = debug_register(number);
    // Hardware breakpoints are not implemented. If they were only stored, they would silently never fire.
    if number == 7 && value & 0xff != 0 {
        return Err(core.unknown("enabling a hardware breakpoint"));
    }
    core.dr[usize::from(number)] = match number {
        6 => (value & 0xe00f) | 0xffff_0ff0,
        7 => (value & 0xffff_2fff) | 0x400,
        _ => value,
    };
    Ok(())
}

/// DR4 and DR5 are aliases of DR6 and DR7. (With CR4.DE set they would raise #UD, on which no kernel relies.)
fn debug_register(number: u8) -> u8 {
    match number {
        4 => 6,
        5 => 7,
        n => n & 7,
    }
}

/// CLI, STI and port I/O need a CPL of at most IOPL.
pub(super) fn check_iopl(core: &mut Core) -> Result<(), Faulted> {
    if u64::from(core.cpl()) > (core.flags & IOPL) >> 12 {
        Err(core.protection())
    } else {
        Ok(())
    }
}

/// Loads RFLAGS as POPF and IRET do: IOPL changes only at CPL 0, IF only if CPL is at most IOPL.
pub(super) fn load_flags(core: &mut Core, image: u64, keep: u64) {
    let cpl = u64::from(core.cpl());
    let mut change = FLAGS_KNOWN & !keep;
    if cpl != 0 {
        change &= !IOPL;
    }
    if cpl > (core.flags & IOPL) >> 12 {
        change &= !IF;
    }
    let before = core.flags;
    core.set_rflags((image & crate::flags::ARITHMETIC) | (before & !change) | (image & change));
    core.flags_loaded(before);
}

impl Core {
    /// Ends the run of the loop if new flags change how it continues: the caller waits for an interrupt window and one
    /// opens now or after one more instruction, or the trap flag changed.
    pub fn flags_loaded(&mut self, before: u64) {
        if self.window_wanted && self.flags & IF & !before != 0 {
            self.cut(stop::WINDOW);
        }
        if (self.flags ^ before) & TF != 0 {
            self.cut(stop::MODE);
        }
        self.trap_due |= before & !self.flags & TF != 0;
    }
}

/// Keeps the stack segment's privilege level equal to that of CS, for code that reads the registers.
pub(super) fn null_stack_segment(core: &mut Core, cpl: u16) {
    core.segments[SS].selector = cpl;
    core.segments[SS].attributes = 0;
}
