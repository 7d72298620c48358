//! The processor's state while it runs, and how instructions reach registers. Memory is in [`crate::access`].

use crate::bus::Bus;
use crate::flags::{self, Lazy};
use crate::hooks::Hooks;
use crate::memory::{PAGE_SIZE, Ram};
use crate::mmu::{Filled, TLB_ENTRIES, Tag, TlbEntry, USER_TAG};
use crate::model::CpuModel;
use crate::msr::Msrs;
use crate::op::{FS_BASE, GS_BASE, HIGH_BYTE, Op, PAGE, REGS, SCRATCH, ZERO};
use crate::registers::{CR0_EM, CR0_TS, CR4_OSFXSR, CS, FS, GS, Registers, Segment, TableRegister};
use crate::translate;
use crate::word::Word;
use crate::x87::X87;

/// A fault has been recorded in [`Core::fault`]; the instruction must not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Faulted;

/// An exception on its way to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub error: Option<u32>,
    /// An instruction that the CPU should know and does not: not an exception of the guest's at all.
    pub unknown: bool,
}

/// What an instruction may reach outside the processor.
pub(crate) struct Ctx<'a> {
    pub ram: &'a mut Ram,
    pub bus: &'a mut dyn Bus,
}

/// Reasons to leave the instruction loop before its budget is spent.
pub(crate) mod stop {
    /// The bus was accessed: the machine looks at its devices.
    pub const BUS: u32 = 1 << 0;
    /// Decoded code was written to.
    pub const CODE: u32 = 1 << 1;
    /// HLT.
    pub const HALT: u32 = 1 << 2;
    /// An interrupt can be taken now, and somebody waits for that.
    pub const WINDOW: u32 = 1 << 3;
    /// Privilege, paging mode or trap flag changed.
    pub const MODE: u32 = 1 << 4;
    /// PAUSE, and somebody wants to know.
    pub const PAUSE: u32 = 1 << 5;
}

/// Entries of the code TLB; a power of two.
pub(crate) const CODE_TLB: usize = 512;

/// A cached translation of a virtual page for fetches, and the decoded code there. Translated code reads it: 32 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct CodeEntry {
    /// As in a [`TlbEntry`]; withheld when `page` is not known or somebody wants to stop there.
    pub tag: Tag,
    /// Where the page lies in RAM.
    pub offset: u64,
    /// Address of the table of the page's translated code (see [`crate::translate`]).
    pub entries: u64,
    /// Number of the page's decoded code, [`NO_PAGE`] where there is none.
    pub page: u32,
    /// A stop at low supervisor code was reported for this translation: go on from now on.
    pub passed: bool,
}

/// A number that no page of decoded code has.
pub(crate) const NO_PAGE: u32 = u32::MAX;

const _: () = assert!(size_of::<CodeEntry>() == 32);

impl CodeEntry {
    pub fn empty(slot: usize) -> Self {
        Self {
            tag: Tag::absent(slot),
            offset: 0,
            entries: translate::no_entries(),
            page: NO_PAGE,
            passed: false,
        }
    }

    /// Drops what is known of the code in the page.
    pub fn detach(&mut self, slot: usize) {
        self.tag = self.tag.withheld(slot);
        self.page = NO_PAGE;
        self.entries = translate::no_entries();
    }
}

pub(crate) struct Core {
    /// General registers, then the interpreter's own (see [`crate::op`]).
    pub regs: [u64; REGS],
    pub lazy: Lazy,
    /// Instructions that may still be executed before the loop looks up.
    pub budget: u64,
    /// [`USER_TAG`] in user mode, else 0.
    pub mode_tag: u64,
    /// Instruction pointer; only up to date between instructions that leave straight-line code.
    pub rip: u64,
    /// RFLAGS without the arithmetic flags and without RF.
    pub flags: u64,
    /// Page offset of the last instruction that could write to memory.
    pub writer: u16,
    pub tlb: [TlbEntry; TLB_ENTRIES],
    pub code_tlb: [CodeEntry; CODE_TLB],
    pub filled: Filled,
    pub filled_code: Filled,
    /// Which 2 MiB regions (hashed) have pieces of large pages in the TLB: INVLPG of one byte drops all pieces.
    pub large_regions: [u64; 64],
    /// The same, of pages that are global.
    pub large_global_regions: [u64; 64],
    /// Time at which `budget` would be spent.
    pub until: u64,
    /// Budget put aside by [`Core::cut`].
    pub saved: u64,
    pub stops: u32,
    pub fault: Exception,
    /// Until this time, interrupts are held off by the instruction before (STI, MOV SS).
    pub shadow_until: u64,
    /// Until this time, a single-step trap is held off by the instruction before (MOV SS, POP SS).
    pub traps_held_until: u64,
    /// An instruction that began with the trap flag set has cleared it by loading RFLAGS: its trap is still due.
    pub trap_due: bool,
    /// Until this time RF is set: to the end of the instruction after the one that set it.
    pub resume_until: u64,
    pub window_wanted: bool,
    /// PAUSE leaves the loop.
    pub pause_wanted: bool,
    /// A non-maskable interrupt was taken and no IRET has been executed since.
    pub nmi_blocked: bool,
    /// Guest time that passed in HLT, not in instructions.
    pub skipped: u64,
    pub segments: [Segment; 6],
    pub tr: Segment,
    pub ldtr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub dr: [u64; 8],
    pub msrs: Msrs,
    pub xmm: [u128; 16],
    pub mxcsr: u32,
    pub fpu: X87,
    pub hooks: Hooks,
    pub model: CpuModel,
    /// What translated code keeps here.
    pub native: translate::Native,
    /// How often control comes to a block before it is translated; 0 if never.
    pub translate_after: u8,
    /// RAM offsets of pages whose decoded code was written to.
    pub stale_code: Vec<u64>,
    /// What is missing, while [`Core::fault`] is an instruction that the CPU should know.
    pub unknown: Option<String>,
}

impl Core {
    pub fn new(model: CpuModel) -> Self {
        let mut core = Self {
            regs: [0; REGS],
            lazy: Lazy::default(),
            budget: 0,
            mode_tag: 0,
            rip: 0,
            flags: flags::FIXED,
            writer: 0,
            large_regions: [0; 64],
            large_global_regions: [0; 64],
            tlb: std::array::from_fn(TlbEntry::empty),
            code_tlb: std::array::from_fn(CodeEntry::empty),
            filled: Filled::new(TLB_ENTRIES),
            filled_code: Filled::new(CODE_TLB),
            until: 0,
            saved: 0,
            stops: 0,
            fault: Exception::default(),
            shadow_until: 0,
            traps_held_until: 0,
            trap_due: false,
            resume_until: 0,
            window_wanted: false,
            pause_wanted: false,
            nmi_blocked: false,
            skipped: 0,
            segments: [Segment::default(); 6],
            tr: Segment::default(),
            ldtr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            msrs: Msrs::default(),
            xmm: [0; 16],
            mxcsr: 0x1f80,
            fpu: X87::default(),
            hooks: Hooks::default(),
            model,
            native: translate::Native::default(),
            translate_after: translate::Translation::default().after(),
            stale_code: Vec::new(),
            unknown: None,
        };
        core.set_registers(&Registers::default());
        core
    }

    pub fn registers(&self) -> Registers {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        let mut segments = self.segments;
        segments[FS].base = self.regs[usize::from(FS_BASE)];
        segments[GS].base = self.regs[usize::from(GS_BASE)];
        Registers {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segments,
            tr: self.tr,
            ldtr: self.ldtr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            efer: self.efer,
            xmm: self.xmm,
            mxcsr: self.mxcsr,
            fpu: self.fpu.clone(),
        }
    }

    pub fn set_registers(&mut self, state: &Registers) {
        self.put_registers(state);
        self.flush_tlb();
    }

    /// The same, with what the TLBs hold.
    pub fn put_registers(&mut self, state: &Registers) {
        self.regs[..16].copy_from_slice(&state.gpr);
        self.regs[usize::from(ZERO)] = 0;
        self.segments = state.segments;
        self.regs[usize::from(FS_BASE)] = state.segments[FS].base;
        self.regs[usize::from(GS_BASE)] = state.segments[GS].base;
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        self.tr = state.tr;
        self.ldtr = state.ldtr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.cr8 = state.cr8;
        self.efer = state.efer;
        self.xmm = state.xmm;
        self.mxcsr = state.mxcsr;
        self.fpu = state.fpu.clone();
        self.fpu.normalise();
        self.mode_tag = if self.cpl() == 3 { USER_TAG } else { 0 };
        self.shadow_until = 0;
        self.traps_held_until = 0;
        self.trap_due = false;
    }

    /// Current privilege level. The architecture keeps it in SS; CS's selector always agrees, but for the middle of a
    /// transfer of control, and is the one that says so here.
    #[inline(always)]
    pub fn cpl(&self) -> u8 {
        u8::try_from(self.segments[CS].selector & 3).unwrap_or(0)
    }

    pub fn rflags(&self) -> u64 {
        let resume = if self.now() < self.resume_until {
            flags::RF
        } else {
            0
        };
        self.flags | self.lazy.image() | resume
    }

    pub fn set_rflags(&mut self, image: u64) {
        self.lazy = Lazy::from_image(image);
        self.flags = (image & !flags::ARITHMETIC & !flags::RF) | flags::FIXED;
        self.set_resume_flag(image & flags::RF != 0);
    }

    /// Sets RF, which the next instruction clears when it completes, or clears it at once.
    pub fn set_resume_flag(&mut self, set: bool) {
        self.resume_until = if set { self.now().saturating_add(1) } else { 0 };
    }

    /// Sets the six arithmetic flags from an RFLAGS image.
    pub fn set_flags_explicit(&mut self, image: u64) {
        self.lazy = Lazy::from_image(image);
    }

    /// Guest time at the start of the instruction that is being executed, in ticks.
    pub fn tick(&self) -> u64 {
        self.now().saturating_sub(1)
    }

    /// Guest time after the instruction that is being executed, or now between instructions.
    pub fn now(&self) -> u64 {
        let left = if self.stops != 0 { self.saved } else { self.budget };
        self.until - left
    }

    /// Leaves the loop after the current instruction.
    pub fn cut(&mut self, why: u32) {
        if self.stops == 0 {
            self.saved = self.budget;
            self.budget = 0;
        }
        self.stops |= why;
    }

    /// Records an exception.
    #[cold]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Faulted {
        self.fault = Exception {
            vector,
            error,
            unknown: false,
        };
        Faulted
    }

    /// #GP(0).
    #[cold]
    pub fn protection(&mut self) -> Faulted {
        self.raise(13, Some(0))
    }

    /// #UD.
    #[cold]
    pub fn undefined(&mut self) -> Faulted {
        self.raise(6, None)
    }

    /// Says that the instruction at `rip` is the one that writes to memory from now on.
    pub fn set_writer(&mut self, rip: u64) {
        self.regs[usize::from(PAGE)] = rip & !(PAGE_SIZE - 1);
        self.writer = u16::cut(rip % PAGE_SIZE);
    }

    /// An instruction that cannot be executed although the processor should be able to.
    #[cold]
    pub fn unknown(&mut self, what: impl Into<String>) -> Faulted {
        self.unknown = Some(what.into());
        self.fault = Exception {
            vector: 6,
            error: None,
            unknown: true,
        };
        Faulted
    }

    /// #UD or #NM as the control registers have it for SSE instructions.
    pub fn sse_available(&mut self) -> Result<(), Faulted> {
        if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 {
            return Err(self.undefined());
        }
        if self.cr0 & CR0_TS != 0 {
            Err(self.raise(7, None))
        } else {
            Ok(())
        }
    }

    /// #NM as the control registers have it for x87 instructions.
    pub fn x87_available(&mut self) -> Result<(), Faulted> {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            Err(self.raise(7, None))
        } else {
            Ok(())
        }
    }

    // Registers.

    #[inline(always)]
    pub fn get<T: Word>(&self, register: u8) -> T {
        let value = self.regs[usize::from(register) & (REGS - 1)];
        if T::BITS == 8 {
            // Register numbers with HIGH_BYTE name AH to BH.
            return T::cut(value >> ((register & HIGH_BYTE) >> 2));
        }
        T::cut(value)
    }

    #[inline(always)]
    pub fn set<T: Word>(&mut self, register: u8, value: T) {
        let place = &mut self.regs[usize::from(register) & (REGS - 1)];
        match T::BITS {
            8 => {
                let shift = (register & HIGH_BYTE) >> 2;
                *place = (*place & !(0xff << shift)) | (value.zx() << shift);
            }
            16 => *place = (*place & !0xffff) | value.zx(),
            _ => *place = value.zx(),
        }
    }

    #[inline(always)]
    pub fn ea(&self, op: &Op) -> u64 {
        let reg = |r: u8| self.regs[usize::from(r) & (REGS - 1)];
        reg(op.base)
            .wrapping_add(reg(op.index) << (op.scale & 63))
            .wrapping_add(i64::from(op.disp).cast_unsigned())
            .wrapping_add(reg(op.seg))
    }

    /// Virtual address of an instruction.
    #[inline(always)]
    pub fn rip_of(&self, op: &Op) -> u64 {
        self.regs[usize::from(PAGE)].wrapping_add(u64::from(op.off))
    }

    /// Virtual address of the instruction after.
    #[inline(always)]
    pub fn next_rip(&self, op: &Op) -> u64 {
        self.rip_of(op).wrapping_add(u64::from(op.len))
    }

    pub fn set_scratch(&mut self, value: u64) {
        self.regs[usize::from(SCRATCH)] = value;
    }
}
