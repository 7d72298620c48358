//! A guest, its runs, and the comparison of two runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::code::{
    Asm, CODE, Code, ENTRY, GDT, GDT_OPERAND, IDT, IDT_OPERAND, INTERRUPT_STACK, TSS, UPPER, UPPER_ENTRY,
};
use super::config::{bz_image, machine_config};
use super::hosts;
use softcpu::registers::{DS, ES, FS, GS};
use vmm::boot::layout::{PD, PD_COUNT, PDPT, PML4};
use vmm::machine::{Event, Machine, MachineConfig};
use vmm::memory::{GuestRam, PAGE_BYTES, PAGE_SIZE};
use vmm::phase::{Phase, Stamp};
use vmm::processors::Backend;
use vmm::vcpu::Registers;

/// Most bytes of code that a guest can have.
const ROOM: usize = 0x1_0000;
/// Page table entries with present, writable, accessed and dirty set; a leaf maps 2 MiB or 1 GiB.
pub const TABLE: u64 = 0x63;
pub const LEAF: u64 = 0xe3;
/// RFLAGS.RF: it depends on how the processor came to an instruction, so it is not compared.
const RESUME: u64 = 1 << 16;
/// The present bit of a segment's attributes.
const PRESENT: u16 = 1 << 7;

/// Code, and what else is in RAM.
pub struct Guest {
    pub config: MachineConfig,
    /// Progress limit in guest nanoseconds; `None` takes [`hosts::patience`].
    pub patience: Option<u64>,
    pub memory: Vec<(u64, Vec<u8>)>,
    /// Page frames whose content may differ: a device writes them in real time.
    pub moving: BTreeSet<u64>,
    /// The guest has user code. KVM may then count its reads as writes even on a host that emulates guest kernels: see
    /// [`hosts::reads_may_count`].
    pub reads_natively: bool,
    /// The run ends at any point of a loop, so registers are not compared.
    pub adrift: bool,
}

/// A run and its results.
pub struct Run {
    /// Name of the backend.
    pub backend: &'static str,
    pub machine: Machine,
    /// Every event, the last one final.
    pub events: Vec<Event>,
    /// What is compared.
    pub evidence: Evidence,
}

/// What must be equal on all backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub events: Vec<String>,
    pub console: String,
    /// Page frames that processors wrote in each phase.
    pub pages: Vec<(Stamp, BTreeSet<u64>)>,
    /// Page frames that anything wrote, without the boot page tables.
    pub touched: BTreeSet<u64>,
    /// Addresses that devices wrote.
    pub ledger: BTreeSet<u64>,
    pub registers: Registers,
}

impl Run {
    /// Whether this was on a KVM that emulates guest kernels.
    pub fn is_emulated(&self) -> bool {
        self.backend == "kvm" && hosts::emulates()
    }
}

impl Guest {
    /// A guest that executes the code that `write` assembles, in the upper half.
    pub fn new(write: impl FnOnce(&mut Code) -> Asm) -> Self {
        let assembled = Code::assemble(UPPER + CODE, write);
        assert!(
            assembled.bytes.len() <= ROOM - 0x210,
            "{} bytes of code",
            assembled.bytes.len()
        );
        let jump = Code::assemble(ENTRY, |code| {
            code.mov(iced_x86::code_asm::rax, UPPER + CODE)?;
            code.jmp(iced_x86::code_asm::rax)
        });
        let kernel = bz_image(&[(0x200, &jump.bytes), (0x210, &assembled.bytes)]);
        Self {
            config: machine_config(kernel),
            patience: None,
            memory: tables(&assembled.gates),
            moving: BTreeSet::new(),
            reads_natively: false,
            adrift: false,
        }
    }

    /// Runs on this backend. `drive` runs the machine and returns its events.
    pub fn run_on(&self, backend: &dyn Backend, drive: &dyn Fn(&mut Machine) -> Vec<Event>) -> Run {
        let config = MachineConfig {
            progress_limit_ns: self.patience.unwrap_or_else(|| hosts::patience(backend)),
            ..self.config.clone()
        };
        let mut machine = Machine::new(&config, backend).unwrap();
        set_up(machine.ram(), &self.memory);
        let events = drive(&mut machine);
        machine.finish().unwrap();
        let mut evidence = Evidence::of(&machine, &events);
        if self.adrift {
            evidence.registers = Registers::default();
        }
        Run {
            backend: backend.name(),
            machine,
            events,
            evidence,
        }
    }

    /// Runs on every backend of this host and compares the runs.
    pub fn compare(&self, drive: impl Fn(&mut Machine) -> Vec<Event>) -> Vec<Run> {
        let run = |backend| self.run_on(backend, &drive);
        self.check(hosts::backends().into_iter().map(run).collect())
    }

    /// Compares all runs with the first one, which is on softcpu.
    pub fn check(&self, mut runs: Vec<Run>) -> Vec<Run> {
        let (soft, others) = runs.split_at_mut(1);
        let soft = &soft[0];
        for other in others {
            if self.reads_natively || hosts::reads_may_count() {
                other.evidence.forgive_reads(&soft.evidence, other.machine.ram());
            }
            if other.evidence.registers.were_reset() {
                // Lost at a shutdown on an AMD processor: there is nothing to compare.
                other.evidence.registers = soft.evidence.registers.clone();
            }
            if other.is_emulated() {
                other.evidence.forgive_kept_segments(&soft.evidence);
            }
            assert_eq!(
                other.evidence, soft.evidence,
                "{} (left) and {} (right)\n{:?}",
                other.backend, soft.backend, other.events
            );
            let (one, two) = (soft.machine.ram(), other.machine.ram());
            let differing: Vec<String> = differing_pages(one, two)
                .difference(&self.moving)
                .map(|pfn| first_difference(one, two, *pfn))
                .collect();
            assert!(differing.is_empty(), "{}", differing.join("\n"));
        }
        runs
    }

    /// [`Guest::compare`] with [`to_the_end`].
    pub fn runs(&self) -> Vec<Run> {
        self.compare(to_the_end)
    }

    /// [`Guest::runs`], and checks that power off was the only event.
    pub fn completed(&self) -> Vec<Run> {
        let runs = self.runs();
        for run in &runs {
            assert_eq!(
                run.evidence.events,
                ["power off"],
                "{}: {:?}",
                run.backend,
                run.events
            );
        }
        runs
    }
}

/// Runs to a final event and answers every message with "ok".
pub fn to_the_end(machine: &mut Machine) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let event = machine.run().unwrap();
        if let Event::Message(_) = event {
            machine.reply(b"ok").unwrap();
        }
        let last = event.is_final();
        events.push(event);
        if last {
            return events;
        }
    }
}

impl Evidence {
    fn of(machine: &Machine, events: &[Event]) -> Self {
        let pages = machine.provenance().phases().iter();
        let ledger = machine.ledger().entries().iter();
        let mut registers = machine.registers();
        registers.rflags &= !RESUME;
        // Processors differ in the hidden part of a segment that is not present. Of a null one the base is hidden, too.
        for segment in &mut registers.segments {
            if segment.attributes & PRESENT == 0 {
                (segment.limit, segment.attributes) = (0, 0);
                if segment.selector & !3 == 0 {
                    segment.base = 0;
                }
            }
        }
        Self {
            events: events.iter().map(name).collect(),
            console: String::from_utf8_lossy(&machine.console().text()).into_owned(),
            pages: pages
                .map(|phase| {
                    (
                        phase.stamp,
                        phase.writes.iter().map(|write| write.pfn()).collect(),
                    )
                })
                .collect(),
            touched: machine
                .ram()
                .touched_pages()
                .into_iter()
                .filter(|pfn| !boot_tables().contains(pfn))
                .collect(),
            ledger: ledger.map(|entry| entry.address).collect(),
            registers,
        }
    }

    /// Removes pages that this run, on KVM, may have only read: those that are not all zero and that `exact`, a run on
    /// softcpu, did not write.
    fn forgive_reads(&mut self, exact: &Self, ram: &GuestRam) {
        for ((_, pages), (_, written)) in self.pages.iter_mut().zip(&exact.pages) {
            pages.retain(|pfn| written.contains(pfn) || !is_not_zero(ram, *pfn));
        }
        self.touched
            .retain(|pfn| exact.touched.contains(pfn) || !is_not_zero(ram, *pfn));
    }

    /// Takes data segments for null that this run still has and `exact`, a run on softcpu, has not: KVM's emulator does not
    /// null them when IRETQ goes to user mode, as a processor does (SDM volume 2, IRET).
    fn forgive_kept_segments(&mut self, exact: &Self) {
        for index in [ES, DS, FS, GS] {
            let (ours, exact) = (
                &mut self.registers.segments[index],
                exact.registers.segments[index],
            );
            let privilege = ours.attributes >> 5 & 3;
            if exact.selector == 0 && privilege < 3 {
                *ours = exact;
            }
        }
    }

    /// Page frames that processors wrote in this phase of generation 0.
    pub fn pages_in(&self, phase: Phase) -> BTreeSet<u64> {
        let in_phase = self.pages.iter().filter(|(stamp, _)| stamp.phase == phase);
        in_phase.flat_map(|(_, pages)| pages.iter().copied()).collect()
    }
}

/// An event without its times.
fn name(event: &Event) -> String {
    match event {
        Event::Message(message) => format!("message {}", String::from_utf8_lossy(message)),
        Event::MessageTooLong { length, .. } => format!("message too long: {length}"),
        Event::Jump { .. } => "jump".into(),
        Event::KernelEntry {
            boot_params,
            generation,
            ..
        } => format!("entry of {generation}, boot_params {boot_params:#x}"),
        Event::PowerOff { .. } => "power off".into(),
        Event::Reset { .. } => "reset".into(),
        Event::TripleFault { .. } => "triple fault".into(),
        Event::DeadHalt { interruptible, .. } => format!("dead halt, interruptible {interruptible}"),
        Event::NoProgress { .. } => "no progress".into(),
        Event::LedgerFull { .. } => "ledger full".into(),
        Event::AwaitedAddress { at } => format!("awaited instruction at {:#x}", at.rip.unwrap_or(0)),
        Event::Reached { at } => format!("reached {:#x}", at.rip.unwrap_or(0)),
        Event::InjectionAsks { number, .. } => format!("injection {number} asks"),
        Event::UnknownInstruction { bytes, .. } => format!("unknown instruction {bytes:02x?}"),
    }
}

/// Descriptor tables for RAM: kernel code and data at 0x10 and 0x18, user data and code at 0x28 and 0x30, task state at
/// 0x38.
fn tables(gates: &[(u8, u64)]) -> Vec<(u64, Vec<u8>)> {
    let mut idt = vec![0_u8; PAGE_BYTES];
    for (vector, handler) in gates {
        // An interrupt gate. Privilege level 3 may use those of INT3 and INT 0x80.
        let dpl = u64::from(matches!(vector, 3 | 0x80)) * 3;
        let low = handler & 0xffff | 0x10 << 16 | (0x8e | dpl << 5) << 40 | (handler >> 16 & 0xffff) << 48;
        let at = usize::from(*vector) * 16;
        idt[at..at + 8].copy_from_slice(&low.to_le_bytes());
        idt[at + 8..at + 16].copy_from_slice(&(handler >> 32).to_le_bytes());
    }
    let tss = UPPER + TSS;
    let task = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    let gdt = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task,
        tss >> 32,
    ];
    let bytes = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut state = vec![0; 0x68];
    state[4..12].copy_from_slice(&(UPPER + INTERRUPT_STACK).to_le_bytes());
    state[0x66..].copy_from_slice(&0x68_u16.to_le_bytes());
    let operand = |limit: u16, base: u64| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    vec![
        (IDT, idt),
        (GDT, bytes(&gdt)),
        (TSS, state),
        (IDT_OPERAND, operand(0xfff, UPPER + IDT)),
        (GDT_OPERAND, operand(9 * 8 - 1, UPPER + GDT)),
    ]
}

/// Maps the upper half and marks all entries of the boot page tables accessed and dirty, so that page walks do not
/// write them.
fn set_up(ram: &GuestRam, memory: &[(u64, Vec<u8>)]) {
    let pdpt = ram.read_u64(PML4).unwrap() | 0x20;
    ram.write(PML4, &pdpt.to_le_bytes()).unwrap();
    ram.write(PML4 + UPPER_ENTRY, &pdpt.to_le_bytes()).unwrap();
    for table in [PDPT]
        .into_iter()
        .chain((0..PD_COUNT).map(|number| PD + number * PAGE_SIZE))
    {
        for at in (table..table + PAGE_SIZE).step_by(8) {
            let entry = ram.read_u64(at).unwrap();
            if entry & 1 == 1 {
                ram.write(at, &(entry | 0x60).to_le_bytes()).unwrap();
            }
        }
    }
    for (address, bytes) in memory {
        ram.write(*address, bytes).unwrap();
    }
}

/// Page frames whose content differs. The boot page tables are left out, because they use 1 GiB pages only if the
/// processor has them.
fn differing_pages(one: &GuestRam, other: &GuestRam) -> BTreeSet<u64> {
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut differing = BTreeMap::new();
    for start in (0..one.bytes()).step_by(left.len()) {
        one.read(start, &mut left).unwrap();
        other.read(start, &mut right).unwrap();
        if left == right {
            continue;
        }
        for (index, (a, b)) in left.chunks(PAGE_BYTES).zip(right.chunks(PAGE_BYTES)).enumerate() {
            differing.insert(start / PAGE_SIZE + index as u64, a != b);
        }
    }
    differing.retain(|pfn, differ| *differ && !boot_tables().contains(pfn));
    differing.into_keys().collect()
}

/// The first byte of the page frame that differs, with what follows it on both sides.
fn first_difference(one: &GuestRam, other: &GuestRam, pfn: u64) -> String {
    let (mut left, mut right) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    one.read(pfn * PAGE_SIZE, &mut left).unwrap();
    other.read(pfn * PAGE_SIZE, &mut right).unwrap();
    let at = left.iter().zip(&right).position(|(a, b)| a != b).unwrap_or(0);
    let end = (at + 16).min(PAGE_BYTES);
    let address = pfn * PAGE_SIZE + at as u64;
    format!(
        "memory at {address:#x}: {:02x?} on soft, {:02x?} on kvm",
        &left[at..end],
        &right[at..end]
    )
}

fn is_not_zero(ram: &GuestRam, pfn: u64) -> bool {
    let mut page = [0; PAGE_BYTES];
    ram.read(pfn * PAGE_SIZE, &mut page).unwrap();
    page.iter().any(|byte| *byte != 0)
}

fn boot_tables() -> Range<u64> {
    PDPT / PAGE_SIZE..PD / PAGE_SIZE + PD_COUNT
}
