//! Firmware in which processors beyond the first wait until a kernel wakes them through the ACPI multiprocessor wakeup
//! mailbox (ACPI 6.6, section 5.2.12.19, version 1).
//!
//! softcpu has no real mode, in which INIT and start-up interrupts start a processor. Its processors therefore begin in
//! long mode in this firmware. Each polls the mailbox for its own local APIC identity, and then jumps to the address in
//! the mailbox. A kernel returns a processor by a jump to the reset vector (Linux does so in `stop_this_cpu` before a
//! kexec, and when a processor goes offline). The next kernel then finds it waiting again.
//!
//! ```text
//! WAKEUP + 0x0000  mailbox: u16 command, u16, u32 local APIC identity, u64 wakeup vector; room for system and firmware
//!        + 0x1000  code from the reset vector on; at its end the operands of LGDT, LIDT, JMP, and the GDT
//!        + 0x2000  top-level page table
//!        + 0x3000  page-directory-pointer table: identity mapping of 512 GiB in 1 GiB pages
//! ```

use super::layout::WAKEUP;
use super::load::{GDT_BYTES, entry_registers, write_gdt, write_gigabyte_tables};
use crate::memory::{GuestRam, MemoryError};
use crate::vcpu::Registers;

/// Guest physical address of the mailbox, a page.
pub const MAILBOX: u64 = WAKEUP;
/// First instruction of the code. To be entered in 64-bit mode, with its page identity-mapped and interrupts disabled.
pub const RESET_VECTOR: u64 = WAKEUP + 0x1000;

const MAILBOX_IDENTITY: u64 = MAILBOX + 4;
const MAILBOX_VECTOR: u64 = MAILBOX + 8;
const PML4: u64 = WAKEUP + 0x2000;
const PDPT: u64 = WAKEUP + 0x3000;
const GDT_OPERAND: u64 = RESET_VECTOR + 0xf00;
const IDT_OPERAND: u64 = RESET_VECTOR + 0xf10;
const JUMP_OPERAND: u64 = RESET_VECTOR + 0xf20;
const GDT: u64 = RESET_VECTOR + 0xf40;
const CODE_SELECTOR: u16 = 0x10;
/// Target of the far jump that loads CS.
const AFTER_JUMP: u64 = RESET_VECTOR + 0x31;
/// The instruction after the loop's PAUSE.
const AFTER_PAUSE: u64 = RESET_VECTOR + 0x5c;

/// Whether a processor waits in the firmware, if it has just executed PAUSE and its next instruction is at `rip`.
#[must_use]
pub fn is_waiting_at(rip: u64) -> bool {
    rip == AFTER_PAUSE
}

/// Whether the mailbox holds a command for the processor with this local APIC identity. Until then a waiting processor
/// only polls, and its turn may be skipped.
#[must_use]
pub fn is_called(ram: &GuestRam, identity: u8) -> bool {
    let mut head = [0; 8];
    if ram.read(MAILBOX, &mut head).is_err() {
        return false;
    }
    let [a, b, _, _, id @ ..] = head;
    [a, b] != [0, 0] && u32::from_le_bytes(id) == u32::from(identity)
}

/// The registers of a waiting processor at power-on.
#[must_use]
pub fn registers() -> Registers {
    Registers {
        rip: RESET_VECTOR,
        ..entry_registers(GDT, PML4)
    }
}

/// Writes the firmware.
pub fn write(ram: &GuestRam) -> Result<(), MemoryError> {
    write_gigabyte_tables(ram, PML4, PDPT)?;
    write_gdt(ram, GDT)?;
    let mut gdt_operand = (GDT_BYTES - 1).to_le_bytes().to_vec();
    gdt_operand.extend(GDT.to_le_bytes());
    ram.write(GDT_OPERAND, &gdt_operand)?;
    let mut jump_operand = low(AFTER_JUMP).to_vec();
    jump_operand.extend(CODE_SELECTOR.to_le_bytes());
    ram.write(JUMP_OPERAND, &jump_operand)?;
    ram.write(RESET_VECTOR, &code())
}

/// The lower half of an address in the firmware area.
fn low(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}

/// The code. Of the state that a kernel leaves it relies on nothing but the mapping of its own page.
fn code() -> Vec<u8> {
    // An instruction whose last operand is an absolute address.
    let at = |opcode: &[u8], address: u64| [opcode, &low(address)].concat();
    // The same with an immediate operand behind.
    let with = |opcode: &[u8], address: u64, immediate: &[u8]| [opcode, &low(address), immediate].concat();
    let head = [
        vec![0xfa],                                 // cli
        vec![0xfc],                                 // cld
        at(&[0xb8], PML4),                          // mov eax, PML4
        vec![0x0f, 0x22, 0xd8],                     // mov cr3, rax
        vec![0xb8, 0x20, 0, 0, 0],                  // mov eax, PAE
        vec![0x0f, 0x22, 0xe0],                     // mov cr4, rax
        vec![0xb8, 0x33, 0, 0, 0x80],               // mov eax, PG | NE | ET | MP | PE
        vec![0x0f, 0x22, 0xc0],                     // mov cr0, rax
        at(&[0x0f, 0x01, 0x14, 0x25], GDT_OPERAND), // lgdt [GDT_OPERAND]
        at(&[0x0f, 0x01, 0x1c, 0x25], IDT_OPERAND), // lidt [IDT_OPERAND]: limit 0, so that any fault is a shutdown
        at(&[0xff, 0x2c, 0x25], JUMP_OPERAND),      // jmp far [JUMP_OPERAND]: loads CS, goes on below
        vec![0xb8, 0x18, 0, 0, 0],                  // mov eax, data selector
        vec![0x8e, 0xd8],                           // mov ds, eax
        vec![0x8e, 0xc0],                           // mov es, eax
        vec![0x8e, 0xd0],                           // mov ss, eax
        vec![0x8e, 0xe0],                           // mov fs, eax
        vec![0x8e, 0xe8],                           // mov gs, eax
        vec![0xb9, 0x80, 0, 0, 0xc0],               // mov ecx, IA32_EFER
        vec![0x31, 0xd2],                           // xor edx, edx
        vec![0xb8, 0, 0x0d, 0, 0], // mov eax, NXE | LMA | LME: kernels map with NX before they look at EFER
        vec![0x0f, 0x30],          // wrmsr
        vec![0xb8, 1, 0, 0, 0],    // mov eax, 1
        vec![0x31, 0xc9],          // xor ecx, ecx
        vec![0x0f, 0xa2],          // cpuid
        vec![0xc1, 0xeb, 24],      // shr ebx, 24: the local APIC identity
    ];
    let wait = [
        vec![0xf3, 0x90],                                  // wait: pause
        with(&[0x66, 0x83, 0x3c, 0x25], MAILBOX, &[0]),    // cmp word [command], 0
        vec![0x74, 0xf3],                                  // je wait
        at(&[0x39, 0x1c, 0x25], MAILBOX_IDENTITY),         // cmp [identity], ebx
        vec![0x75, 0xea],                                  // jne wait
        with(&[0x66, 0x83, 0x3c, 0x25], MAILBOX, &[1]),    // cmp word [command], wakeup
        vec![0x75, 0x14],                                  // jne other
        at(&[0x48, 0x8b, 0x04, 0x25], MAILBOX_VECTOR),     // mov rax, [vector]
        with(&[0x66, 0xc7, 0x04, 0x25], MAILBOX, &[0, 0]), // mov word [command], 0: acknowledged
        vec![0xff, 0xe0],                                  // jmp rax
        with(&[0x66, 0x83, 0x3c, 0x25], MAILBOX, &[2]),    // other: cmp word [command], test
        vec![0x75, 0xc0],                                  // jne wait
        with(&[0x66, 0xc7, 0x04, 0x25], MAILBOX, &[0, 0]), // mov word [command], 0: this processor is here
        vec![0xeb, 0xb4],                                  // jmp wait
    ];
    [head.concat(), wait.concat()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;

    #[test]
    fn the_code_is_where_the_constants_say() {
        let code = code();
        let at = |address: u64| usize::try_from(address - RESET_VECTOR).unwrap();
        assert_eq!(code[at(AFTER_JUMP)..][..5], [0xb8, 0x18, 0, 0, 0]);
        assert_eq!(code[at(AFTER_PAUSE) - 2..][..2], [0xf3, 0x90]);
        assert!(code.len() < at(GDT_OPERAND));
        // Each short jump back arrives at the PAUSE.
        let jumps: Vec<usize> = (at(AFTER_PAUSE)..code.len() - 1)
            .filter(|&at| matches!(code[at], 0x74 | 0x75 | 0xeb) && code[at + 1] >= 0x80)
            .collect();
        assert_eq!(jumps.len(), 4);
        for jump in jumps {
            let back = usize::from(code[jump + 1].wrapping_neg());
            assert_eq!(jump + 2 - back, at(AFTER_PAUSE) - 2, "jump at {jump:#x}");
        }
    }

    #[test]
    fn a_command_calls_one_processor() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        write(&ram).unwrap();
        assert!(!is_called(&ram, 0), "no command");
        ram.write(MAILBOX, &[1, 0, 0, 0, 3, 0, 0, 0]).unwrap();
        assert!(is_called(&ram, 3) && !is_called(&ram, 1));
        ram.write(MAILBOX, &[1, 0, 0, 0, 3, 1, 0, 0]).unwrap();
        assert!(!is_called(&ram, 3), "an identity has 32 bits");
    }
}
