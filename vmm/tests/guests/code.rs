//! An assembler for guests: iced's, with what all guests need.

use std::ops::{Deref, DerefMut};

use guest_agent::device::{dma, mailbox};
use iced_x86::code_asm::{CodeAssembler, CodeLabel, al, dx, eax, edx, qword_ptr, rax, rcx, rdx};
use iced_x86::{BlockEncoderOptions, IcedError};

use vmm::devices::pci::{ADDRESS_PORT, DATA_PORT, WINDOW_START};
use vmm::devices::power::SLEEP_CONTROL;
use vmm::devices::{ioapic, lapic, uart};

/// Virtual address at which all physical memory is mapped in the upper half, the same as in Linux. It cannot be the
/// start of the upper half: on a KVM that emulates guest kernels, page faults of user code lack their present bit
/// there.
pub const UPPER: u64 = 0xffff_8880_0000_0000;
/// Offset of the top-level page table's entry for it.
pub const UPPER_ENTRY: u64 = (UPPER >> 39 & 0x1ff) * 8;
/// Physical address of the first instruction: the entry point of the image.
pub const ENTRY: u64 = 0x100_0200;
/// Physical address of the guest's own code, behind the jump to the upper half.
pub const CODE: u64 = ENTRY + 0x10;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x30_0000;
/// Global descriptor table.
pub const GDT: u64 = 0x30_1000;
/// Task-state segment.
pub const TSS: u64 = 0x30_2000;
/// Operands of LIDT and LGDT.
pub const IDT_OPERAND: u64 = 0x30_3000;
pub const GDT_OPERAND: u64 = 0x30_3010;
/// Top of the stack.
pub const STACK: u64 = 0x41_0000;
/// Top of the stack that an interrupt at privilege level 3 changes to.
pub const INTERRUPT_STACK: u64 = 0x42_0000;
/// Where guests write what the test reads; several pages.
pub const DATA: u64 = 0x50_0000;

/// Addresses of the BARs, as firmware would have set them.
pub const MAILBOX: u64 = WINDOW_START as u64;
pub const DMA: u64 = MAILBOX + mailbox::BAR0_SIZE;
pub const MSIX: u64 = DMA + dma::BAR0_SIZE;
/// Value for [`SLEEP_CONTROL`] that switches the machine off.
const S5: u32 = 0x34;

/// Result of writing an instruction.
pub type Asm = Result<(), IcedError>;

/// An assembler.
pub struct Code {
    asm: CodeAssembler,
    gates: Vec<(u8, CodeLabel)>,
}

impl Deref for Code {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Code {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

/// Machine code, and the interrupt gates (vector, address) that point into it.
pub struct Assembled {
    pub bytes: Vec<u8>,
    pub gates: Vec<(u8, u64)>,
}

impl Code {
    /// Assembles what `write` writes, for execution at `address`.
    pub fn assemble(address: u64, write: impl FnOnce(&mut Self) -> Asm) -> Assembled {
        let mut code = Self {
            asm: CodeAssembler::new(64).unwrap(),
            gates: Vec::new(),
        };
        write(&mut code).unwrap();
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = code.asm.assemble_options(address, options).unwrap();
        let gates = code
            .gates
            .iter()
            .map(|(vector, label)| (*vector, result.label_ip(label).unwrap()));
        Assembled {
            gates: gates.collect(),
            bytes: result.inner.code_buffer,
        }
    }

    /// Makes the gate of this vector point to the next instruction.
    pub fn handler(&mut self, vector: u8) -> Asm {
        let mut label = self.asm.create_label();
        self.asm.set_label(&mut label)?;
        self.gates.push((vector, label));
        Ok(())
    }

    /// Loads the guest's own descriptor tables and task register, and a stack. Clobbers RAX.
    pub fn tables(&mut self) -> Asm {
        self.mov(rax, UPPER + GDT_OPERAND)?;
        self.lgdt(qword_ptr(rax))?;
        self.mov(rax, UPPER + IDT_OPERAND)?;
        self.lidt(qword_ptr(rax))?;
        self.mov(eax, 0x38)?;
        self.ltr(eax)?;
        self.stack()
    }

    /// Loads the stack pointer.
    pub fn stack(&mut self) -> Asm {
        self.mov(iced_x86::code_asm::rsp, UPPER + STACK)
    }

    /// Writes a byte to a port. Clobbers RAX and RDX.
    pub fn out8(&mut self, port: u16, value: u32) -> Asm {
        self.mov(edx, u32::from(port))?;
        self.mov(eax, value)?;
        self.out(dx, al)
    }

    /// Writes 32 bits to device memory or RAM at a physical address. Clobbers RAX and RDX.
    pub fn store32(&mut self, address: u64, value: u32) -> Asm {
        self.mov(rax, UPPER + address)?;
        self.mov(edx, value)?;
        self.mov(iced_x86::code_asm::dword_ptr(rax), edx)
    }

    /// The same with 64 bits.
    pub fn store64(&mut self, address: u64, value: u64) -> Asm {
        self.mov(rax, UPPER + address)?;
        self.mov(rdx, value)?;
        self.mov(qword_ptr(rax), rdx)
    }

    /// Stores RCX at a physical address. Clobbers RAX.
    pub fn keep_rcx(&mut self, address: u64) -> Asm {
        self.mov(rax, UPPER + address)?;
        self.mov(qword_ptr(rax), rcx)
    }

    /// Increments the 64-bit counter at a physical address. Clobbers RAX.
    pub fn count(&mut self, address: u64) -> Asm {
        self.mov(rax, UPPER + address)?;
        self.inc(qword_ptr(rax))
    }

    /// Waits, without HLT, until the 64-bit counter at a physical address is at least `value`. Clobbers RAX.
    pub fn wait_for(&mut self, address: u64, value: i32) -> Asm {
        let mut again = self.create_label();
        self.mov(rax, UPPER + address)?;
        self.set_label(&mut again)?;
        self.pause()?;
        self.cmp(qword_ptr(rax), value)?;
        self.jb(again)
    }

    /// Rings the doorbell with a message of `length` bytes. Clobbers RAX and RDX.
    pub fn ring(&mut self, length: u32) -> Asm {
        self.store32(MAILBOX + mailbox::DOORBELL, length)
    }

    /// Switches the machine off. Clobbers RAX, RDX and the flags. The flags are set to fixed values first, because they
    /// may depend on timing.
    pub fn power_off(&mut self) -> Asm {
        self.cmp(eax, eax)?;
        self.out8(SLEEP_CONTROL, S5)
    }

    /// Prints a character. Clobbers RAX and RDX.
    pub fn print(&mut self, character: u8) -> Asm {
        self.out8(uart::PORT, character.into())
    }

    /// Enables the local APIC. Clobbers RAX and RDX.
    pub fn enable_apic(&mut self) -> Asm {
        self.apic(0xf0, 0x1ff)
    }

    /// Writes a register of the local APIC. Clobbers RAX and RDX.
    pub fn apic(&mut self, register: u64, value: u32) -> Asm {
        self.store32(lapic::BASE + register, value)
    }

    /// Ends the interrupt at the local APIC. Clobbers RAX and RDX.
    pub fn end_of_interrupt(&mut self) -> Asm {
        self.apic(0xb0, 0)
    }

    /// An interrupt handler: counts at `address`, ends the interrupt, and returns.
    pub fn counting_handler(&mut self, vector: u8, address: u64) -> Asm {
        self.handler(vector)?;
        self.push(rax)?;
        self.push(rdx)?;
        self.count(address)?;
        self.end_of_interrupt()?;
        self.pop(rdx)?;
        self.pop(rax)?;
        self.iretq()
    }

    /// Points the I/O APIC's pin at a vector of the first processor; `flags` are the lower half's other bits. Clobbers
    /// RAX and RDX.
    pub fn io_apic(&mut self, pin: u8, vector: u8, flags: u32) -> Asm {
        let register = 0x10 + 2 * u32::from(pin);
        self.store32(ioapic::BASE, register + 1)?;
        self.store32(ioapic::BASE + 0x10, 0)?;
        self.store32(ioapic::BASE, register)?;
        self.store32(ioapic::BASE + 0x10, flags | u32::from(vector))
    }

    /// Writes 32 bits of the configuration space of a device on bus 0. Clobbers RAX and RDX.
    pub fn config(&mut self, slot: u8, offset: u32, value: u32) -> Asm {
        for (port, value) in [
            (ADDRESS_PORT, 0x8000_0000 | u32::from(slot) << 11 | offset),
            (DATA_PORT, value),
        ] {
            self.mov(edx, u32::from(port))?;
            self.mov(eax, value)?;
            self.out(dx, eax)?;
        }
        Ok(())
    }

    /// Writes a model-specific register. Clobbers RAX, RCX, RDX.
    pub fn write_msr(&mut self, index: u32, value: u64) -> Asm {
        self.mov(iced_x86::code_asm::ecx, index)?;
        self.mov(eax, u32::try_from(value & 0xffff_ffff).unwrap())?;
        self.mov(edx, u32::try_from(value >> 32).unwrap())?;
        self.wrmsr()
    }
}
