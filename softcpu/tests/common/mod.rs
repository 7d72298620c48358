//! A bare guest for the tests: identity-mapped memory, a GDT, a TSS, an IDT whose handlers are told apart by address.

#![allow(dead_code)] // not every test uses every helper

pub mod busy;

use iced_x86::code_asm::CodeAssembler;
use softcpu::registers::{
    CODE64, CS, DATA, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, SS, Segment, TableRegister,
};
use softcpu::{Cpu, CpuModel, Ram, Registers};

/// Where the program begins (virtual = physical).
pub const CODE: u64 = 0x8000;
/// Top of the kernel's stack.
pub const STACK: u64 = 0x7000;
/// Top of the stack that the TSS names for entries from user mode.
pub const RSP0: u64 = 0x6000;
/// Top of interrupt stack 1.
pub const IST1: u64 = 0x5800;
/// Page tables.
pub const PML4: u64 = 0x1000;
/// The page table of the first 2 MiB.
pub const PT: u64 = 0x4000;
/// Handler of vector v: one HLT at HANDLERS + 16 v.
pub const HANDLERS: u64 = 0x2_0000;
/// A page that user mode may not touch.
pub const KERNEL_ONLY: u64 = 0x3_0000;

const GDT: u64 = 0x1_0000;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x1_1000;
const TSS: u64 = 0x1_2000;

/// Selectors of the GDT.
pub const KERNEL_CS: u16 = 0x10;
pub const KERNEL_SS: u16 = 0x18;
pub const USER_SS: u16 = 0x2b;
pub const USER_CS: u16 = 0x33;
pub const TSS_SELECTOR: u16 = 0x40;

/// A guest and its memory.
pub struct Guest {
    pub cpu: Cpu,
    pub ram: Ram,
}

impl Guest {
    /// A guest whose program `write` assembles at [`CODE`].
    pub fn new(write: impl FnOnce(&mut CodeAssembler)) -> Self {
        let mut assembler = CodeAssembler::new(64).unwrap();
        write(&mut assembler);
        Self::with_code(&assembler.assemble(CODE).unwrap())
    }

    /// A guest with these bytes at [`CODE`].
    pub fn with_code(code: &[u8]) -> Self {
        let mut ram = Ram::new_owned(2 << 20);
        let mut put = |at: u64, value: u64| assert!(ram.write(at, &value.to_le_bytes()));
        put(PML4, 0x2007);
        put(0x2000, 0x3007);
        put(0x3000, PT | 7);
        for page in 0..512 {
            let user = if page * 0x1000 == KERNEL_ONLY { 3 } else { 7 };
            put(PT + page * 8, (page * 0x1000) | user);
        }
        for (selector, descriptor) in [
            (KERNEL_CS, 0x00af_9b00_0000_ffff_u64),
            (KERNEL_SS, 0x00cf_9300_0000_ffff),
            (USER_SS & !3, 0x00cf_f300_0000_ffff),
            (USER_CS & !3, 0x00af_fb00_0000_ffff),
            (TSS_SELECTOR, 0x0000_8900_0000_0067 | TSS << 16),
        ] {
            put(GDT + u64::from(selector), descriptor);
        }
        put(TSS + 4, RSP0);
        put(TSS + 0x24, IST1);
        for vector in 0..256 {
            let handler = HANDLERS + 16 * vector;
            // Interrupt gates of DPL 0, but for the breakpoint's; double faults on interrupt stack 1.
            let dpl = if vector == 3 { 3u64 } else { 0 };
            let ist = u64::from(vector == 8);
            let low = (handler & 0xffff)
                | u64::from(KERNEL_CS) << 16
                | ist << 32
                | (0x8e | dpl << 5) << 40
                | (handler & 0xffff_0000) << 32;
            put(IDT + 16 * vector, low);
            put(IDT + 16 * vector + 8, handler >> 32);
            put(handler, 0xf4);
        }
        assert!(ram.write(CODE, code));
        let mut guest = Self {
            cpu: Cpu::new(CpuModel::default()),
            ram,
        };
        let mut state = Registers {
            cr3: PML4,
            rip: CODE,
            gdtr: TableRegister {
                base: GDT,
                limit: 0x4f,
            },
            idtr: TableRegister {
                base: IDT,
                limit: 0xfff,
            },
            tr: Segment {
                selector: TSS_SELECTOR,
                base: TSS,
                limit: 0x67,
                attributes: 0x8b,
            },
            efer: EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE,
            ..Registers::default()
        };
        state.cr0 |= softcpu::registers::CR0_WP;
        state.gpr[4] = STACK;
        guest.cpu.set_registers(&state);
        guest
    }

    /// Continues at `rip` in user mode.
    pub fn enter_user(&mut self) {
        let mut state = self.cpu.registers();
        state.segments[CS] = Segment {
            selector: USER_CS,
            base: 0,
            limit: u32::MAX,
            attributes: CODE64 | 0x60,
        };
        state.segments[SS] = Segment {
            selector: USER_SS,
            base: 0,
            limit: u32::MAX,
            attributes: DATA | 0x60,
        };
        self.cpu.set_registers(&state);
    }

    /// Changes registers.
    pub fn set(&mut self, change: impl FnOnce(&mut Registers)) {
        let mut state = self.cpu.registers();
        change(&mut state);
        self.cpu.set_registers(&state);
    }

    /// Reads a 64-bit word of RAM.
    pub fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.ram.read(gpa, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    /// Writes a 64-bit word of RAM as the host would.
    pub fn put(&mut self, gpa: u64, value: u64) {
        assert!(self.ram.write(gpa, &value.to_le_bytes()));
        self.cpu.memory_written(&self.ram, gpa, 8);
    }

    /// The vector whose handler has just halted.
    pub fn halted_in(&self) -> Option<u64> {
        let rip = self.cpu.registers().rip - 1;
        (HANDLERS..HANDLERS + 0x1000)
            .contains(&rip)
            .then(|| (rip - HANDLERS) / 16)
    }
}
