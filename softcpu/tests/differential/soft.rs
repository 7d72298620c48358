//! Runs one instruction on softcpu, in user mode, with every exception led to a handler that names its vector.

use softcpu::registers::{
    CR4_FSGSBASE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, Segment,
    TableRegister,
};
use softcpu::{Cpu, CpuModel, Exit, NoBus, Ram, Registers, Translation, X87};

use crate::generate::Case;
use crate::state::{
    CODE, DATA, DATA_LEN, DATA_PAGES, Fault, Outcome, PAGE, PAGE_LEN, State, fx, read_only_page,
};

// Guest physical layout.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PT_LOW: u64 = 0x4000;
const PD_HIGH: u64 = 0x5000;
const PT_HIGH: u64 = 0x6000;
const SYSTEM_PHYSICAL: u64 = 0x10000;
const CODE_PHYSICAL: u64 = 0x20000;
const DATA_PHYSICAL: u64 = 0x30000;
const RAM_BYTES: u64 = 0x40000;

// Supervisor pages, linear.
const SYSTEM: u64 = 0x4000_0000;
const IDT: u64 = SYSTEM;
const GDT: u64 = SYSTEM + PAGE;
const TSS: u64 = GDT + 0x100;
const HANDLERS: u64 = SYSTEM + 2 * PAGE;
const STACK_TOP: u64 = SYSTEM + 4 * PAGE;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;

/// The descriptors that Linux has, at Linux's places: a selector means the same on both sides.
const DESCRIPTORS: [u64; 8] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
];
/// Selectors that Linux gives a 64-bit process.
const USER_CODE: u16 = 0x33;
const USER_DATA: u16 = 0x2b;

/// Vectors whose exceptions push an error code.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// softcpu with its small address space.
pub struct Soft {
    cpu: Cpu,
    ram: Ram,
    translated: bool,
}

/// What the processor made of an instruction.
pub enum Ran {
    /// It executed it or raised an exception.
    Done(Box<Outcome>),
    /// It said that it has not this instruction, or left the test's ground.
    Odd(String),
}

impl Soft {
    /// Builds page tables, descriptor tables and handlers.
    pub fn new() -> Self {
        let mut soft = Self {
            cpu: Cpu::new(CpuModel::default()),
            ram: Ram::new_owned(RAM_BYTES),
            translated: false,
        };
        let table = PRESENT | WRITE | USER;
        soft.put_u64(PML4, PDPT | table);
        soft.put_u64(PDPT, PD_LOW | table);
        soft.put_u64(PDPT + 8, PD_HIGH | table);
        soft.put_u64(PD_LOW + 8 * (CODE >> 21 & 511), PT_LOW | table);
        soft.put_u64(PD_HIGH, PT_HIGH | table);
        let leaf = |address: u64| PT_LOW + 8 * (address >> 12 & 511);
        soft.put_u64(leaf(CODE), CODE_PHYSICAL | table);
        for page in 0..DATA_PAGES {
            soft.put_u64(leaf(DATA + page * PAGE), (DATA_PHYSICAL + page * PAGE) | table);
        }
        let read_only = DATA_PHYSICAL + DATA_PAGES * PAGE;
        soft.put_u64(leaf(DATA + DATA_PAGES * PAGE), read_only | PRESENT | USER);
        assert!(soft.ram.write(read_only, &read_only_page()));
        for page in 0..4 {
            soft.put_u64(
                PT_HIGH + 8 * page,
                (SYSTEM_PHYSICAL + page * PAGE) | PRESENT | WRITE,
            );
        }
        for vector in 0..256 {
            let handler = HANDLERS + 16 * vector;
            // Interrupt gate; INT3 may be called from user mode.
            let dpl = if vector == 3 { 3 } else { 0 };
            let kind = 0x8e00 | dpl << 13;
            let low = handler & 0xffff | 0x10 << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48;
            let gate = SYSTEM_PHYSICAL + 16 * vector;
            soft.put_u64(gate, low);
            soft.put_u64(gate + 8, handler >> 32);
        }
        for (index, descriptor) in (0u64..).zip(DESCRIPTORS) {
            soft.put_u64(SYSTEM_PHYSICAL + PAGE + 8 * index, descriptor);
        }
        // RSP0.
        soft.put_u64(SYSTEM_PHYSICAL + (TSS - SYSTEM) + 4, STACK_TOP);
        assert!(soft.ram.write(SYSTEM_PHYSICAL + 2 * PAGE, &[0xf4; PAGE_LEN]));
        soft.cpu.translate(Translation::Off);
        soft
    }

    /// The same, with every instruction that can be translated as a block of its own.
    pub fn translated() -> Self {
        let mut soft = Self::new();
        soft.cpu.translate(Translation::Single);
        soft.translated = true;
        soft
    }

    /// Instructions that translated code has executed.
    pub fn in_translation(&self) -> u64 {
        self.cpu.translated()
    }

    fn put_u64(&mut self, gpa: u64, value: u64) {
        assert!(
            self.ram.write(gpa, &value.to_le_bytes()),
            "{gpa:#x} is outside RAM"
        );
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case) -> Ran {
        let at = CODE_PHYSICAL + (case.state.rip - CODE);
        assert!(self.ram.write(at, &case.bytes) && self.ram.write(DATA_PHYSICAL, &case.data[..]));
        self.cpu.memory_written(&self.ram, at, case.bytes.len() as u64);
        if self.translated {
            // Translated code reaches only pages whose translations are at hand.
            self.cpu.load_registers(&registers(case));
        } else {
            self.cpu.set_registers(&registers(case));
        }
        let mut bus = NoBus;
        // A repeated string instruction takes a tick for each piece.
        for _ in 0..5000 {
            let exit = self.cpu.run(&mut self.ram, &mut bus, self.cpu.now() + 1);
            if exit != Exit::Deadline {
                return Ran::Odd(format!("{exit:?}"));
            }
            if self.cpu.registers().rip != case.state.rip {
                return self.outcome();
            }
        }
        Ran::Odd("does not get past the instruction".to_owned())
    }

    fn outcome(&self) -> Ran {
        let registers = self.cpu.registers();
        let mut state = State {
            gpr: registers.gpr,
            rflags: registers.rflags,
            rip: registers.rip,
            fx: image(&registers),
        };
        let mut fault = None;
        if (HANDLERS..HANDLERS + PAGE).contains(&registers.rip) {
            let vector = u8::try_from((registers.rip - HANDLERS) / 16).expect("256 handlers");
            let mut frame = registers.gpr[4] - SYSTEM + SYSTEM_PHYSICAL;
            let mut pop = || {
                let mut bytes = [0; 8];
                assert!(self.ram.read(frame, &mut bytes), "the stack is in RAM");
                frame += 8;
                u64::from_le_bytes(bytes)
            };
            let error = if has_error_code(vector) { pop() } else { 0 };
            state.rip = pop();
            let _selector = pop();
            state.rflags = pop();
            state.gpr[4] = pop();
            fault = Some(Fault {
                vector,
                error,
                address: if vector == 14 { registers.cr2 } else { 0 },
            });
        }
        let mut data = Box::new([0; DATA_LEN]);
        assert!(
            self.ram.read(DATA_PHYSICAL, &mut data[..]),
            "scratch memory is in RAM"
        );
        Ran::Done(Box::new(Outcome { state, fault, data }))
    }
}

/// The whole processor state that a case begins with.
fn registers(case: &Case) -> Registers {
    let flat = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    };
    let with_base = |base| Segment {
        selector: 0,
        base,
        limit: u32::MAX,
        attributes: 0xc0f3,
    };
    let mut fpu = X87 {
        control: u16::from_le_bytes([case.state.fx[0], case.state.fx[1]]),
        status: u16::from_le_bytes([case.state.fx[2], case.state.fx[3]]),
        full: case.state.fx[4],
        ..X87::default()
    };
    for i in 0..8u8 {
        let at = fx::ST + 16 * usize::from(i);
        fpu.set_st(
            i,
            u128::from_le_bytes(case.state.fx[at..at + 16].try_into().expect("16 bytes")),
        );
    }
    let null = Segment::default();
    Registers {
        gpr: case.state.gpr,
        rip: case.state.rip,
        rflags: case.state.rflags,
        segments: [
            null,
            flat(USER_CODE, 0xa0fb),
            flat(USER_DATA, 0xc0f3),
            null,
            with_base(case.segment_bases[0]),
            with_base(case.segment_bases[1]),
        ],
        tr: Segment {
            selector: 0x40,
            base: TSS,
            limit: 0x67,
            attributes: 0x008b,
        },
        gdtr: TableRegister {
            base: GDT,
            limit: 0x7f,
        },
        idtr: TableRegister {
            base: IDT,
            limit: 0xfff,
        },
        cr3: PML4,
        cr4: CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_FSGSBASE,
        efer: EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE,
        xmm: std::array::from_fn(|i| case.state.xmm(i)),
        mxcsr: case.state.mxcsr(),
        fpu,
        ..Registers::default()
    }
}

/// What FXSAVE64 would store.
fn image(registers: &Registers) -> [u8; 512] {
    let mut state = State::ZERO;
    let fpu = &registers.fpu;
    state.fx[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    state.fx[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    state.fx[4] = fpu.full;
    state.set_mxcsr(registers.mxcsr);
    for i in 0..8u8 {
        let at = fx::ST + 16 * usize::from(i);
        state.fx[at..at + 16].copy_from_slice(&fpu.st(i).to_le_bytes());
    }
    for (i, value) in registers.xmm.iter().enumerate() {
        state.set_xmm(i, *value);
    }
    state.fx
}
