//! The machine around a processor that follows a script.

use std::collections::VecDeque;
use std::sync::Mutex;

use guest_agent::device::mailbox as map;

use super::config::tests::config;
use super::*;
use crate::devices::{lapic, pci, power, uart};
use crate::phase::Phase;
use crate::soft::stepped::Stepped;
use crate::vcpu::{BackendError, Bus, CpuState, CpuWrite, Exit, Shutdown, Vcpu};

type Action = Box<dyn FnMut(&mut dyn Bus, &GuestRam, u64) + Send>;

/// One stretch of execution: how long, what it does at its end, and why it stops.
struct Step {
    ticks: u64,
    action: Action,
    stop: Exit,
}

fn step(ticks: u64, stop: Exit, action: impl FnMut(&mut dyn Bus, &GuestRam, u64) + Send + 'static) -> Step {
    Step {
        ticks,
        action: Box::new(action),
        stop,
    }
}

fn quiet(ticks: u64, stop: Exit) -> Step {
    step(ticks, stop, |_, _, _| {})
}

struct Script(Mutex<Option<Vec<Step>>>);

impl Backend for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn gigabyte_pages(&self) -> bool {
        true
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    fn power_on(
        &self,
        ram: Arc<GuestRam>,
        _: &mut Platform,
        request: &PowerOn,
    ) -> Result<Box<dyn Processors>, BackendError> {
        let steps = self.0.lock().unwrap().take().unwrap_or_default().into();
        let registers = request.registers.clone();
        Ok(Box::new(Stepped::new(vec![Box::new(Player {
            ram,
            steps,
            registers,
            now: 0,
            skipped: 0,
            writes: Vec::new(),
            entered: None,
            taken: 0,
        })])))
    }
}

struct Player {
    ram: Arc<GuestRam>,
    steps: VecDeque<Step>,
    registers: Registers,
    now: u64,
    skipped: u64,
    writes: Vec<CpuWrite>,
    entered: Option<u64>,
    taken: u8,
}

impl Vcpu for Player {
    fn registers(&self) -> Registers {
        self.registers.clone()
    }
    fn syscall_entry(&self) -> u64 {
        0
    }
    fn set_registers(&mut self, registers: &Registers) {
        self.registers = registers.clone();
    }
    fn run(&mut self, bus: &mut dyn Bus, until: u64) -> Exit {
        let Some(step) = self.steps.front_mut() else {
            self.now = until;
            return Exit::Deadline;
        };
        let ticks = step.ticks.min(until - self.now);
        self.now += ticks;
        step.ticks -= ticks;
        if step.ticks > 0 {
            return Exit::Deadline;
        }
        let mut step = self.steps.pop_front().unwrap();
        (step.action)(bus, &self.ram, self.now);
        self.writes.push(CpuWrite {
            gpa: 0x5008,
            len: 8,
            rip: 0x77,
            time: self.now,
            user: false,
        });
        if let Exit::LowSupervisorFetch { rip } = step.stop {
            self.registers.rip = rip;
            self.entered = Some(self.now + 50);
        }
        step.stop
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn skip_to(&mut self, time: u64) {
        self.skipped += time - self.now;
        self.now = time;
    }
    fn shift_tsc(&mut self, _: i64) {}
    fn retired(&self) -> u64 {
        self.now - self.skipped
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn can_take_interrupt(&self) -> bool {
        true
    }
    fn inject_interrupt(&mut self, _: &mut dyn Bus, vector: u8) -> Result<(), Shutdown> {
        self.taken = vector;
        Ok(())
    }
    fn request_interrupt_window(&mut self, _: bool) {}
    fn stop_on_pause(&mut self, _: bool) {}
    fn can_take_nmi(&self) -> bool {
        true
    }
    fn inject_nmi(&mut self, _: &mut dyn Bus) -> Result<(), Shutdown> {
        self.taken = 2;
        Ok(())
    }
    fn memory_written(&mut self, _: u64, _: u64) {}
    fn stop_on_low_supervisor_fetch(&mut self, _: bool) {}
    fn watch_writes(&mut self, _: u64, _: bool) {}
    fn last_write(&self, address: u64) -> Option<CpuWrite> {
        self.writes
            .iter()
            .rev()
            .find(|write| write.gpa == address)
            .copied()
    }
    fn epoch_writes(&self, each: &mut dyn FnMut(CpuWrite)) {
        self.writes.last().into_iter().for_each(|write| each(*write));
    }
    fn begin_write_epoch(&mut self) {}
    fn left_user_at(&self) -> Option<u64> {
        Some(self.now - 10)
    }
    fn entered_user_at(&self) -> Option<u64> {
        self.entered
    }
    fn reset_user_marks(&mut self) {
        self.entered = None;
    }
    fn state(&self) -> CpuState {
        let ram = softcpu::Ram::new_owned(4096);
        let mut cpu = softcpu::Cpu::new(softcpu::CpuModel::default());
        let mut registers = cpu.registers();
        registers.gpr[0] = self.taken.into();
        cpu.set_registers(&registers);
        cpu.state(&ram)
    }
}

fn machine(steps: Vec<Step>) -> Machine {
    let kernel = crate::boot::bzimage::tests::image(4096);
    Machine::new(&config(kernel), &Script(Mutex::new(Some(steps)))).unwrap()
}

const MAILBOX: u64 = pci::WINDOW_START as u64;

fn greet(bus: &mut dyn Bus, _: &GuestRam, now: u64) {
    bus.mmio_write(now, MAILBOX + map::WINDOW, 4, 0x6f6c_6c65);
    bus.mmio_write(now, MAILBOX + map::DOORBELL, 4, 4);
}

#[test]
fn a_message_stands_until_it_is_answered() {
    let mut machine = machine(vec![
        step(100, Exit::Bus, greet),
        step(50, Exit::Bus, |bus, _, now| {
            assert_eq!(bus.mmio_read(now, MAILBOX + map::REPLY_LENGTH, 4), 3);
            bus.port_write(now, power::SLEEP_CONTROL, 1, 0x34);
        }),
    ]);
    assert_eq!(machine.run().unwrap(), Event::Message(b"ello".to_vec()));
    assert!(matches!(machine.run(), Err(MachineError::ReplyOwed)));
    assert!(matches!(
        machine.reply(&vec![0; 1 << 20]),
        Err(MachineError::ReplyTooLong { .. })
    ));
    machine.reply(b"yes").unwrap();
    assert!(matches!(
        machine.reply(b"yes"),
        Err(MachineError::NothingAsked { length: 3 })
    ));
    let off = machine.run().unwrap();
    assert!(
        matches!(off, Event::PowerOff { at, by: None } if at.time == 150),
        "{off}"
    );
    assert_eq!(machine.run().unwrap(), off, "a final event stays");
}

#[test]
fn a_kexec_is_told_by_where_it_executes() {
    const NEW: u64 = 0x20_0000;
    let fetch = |rip| Exit::LowSupervisorFetch { rip };
    let mut machine = machine(vec![
        quiet(10, fetch(0x1000)), // a booting kernel may be there
        step(100, Exit::Bus, greet),
        quiet(100, fetch(0x7000)),
        quiet(20, fetch(0x8000)),       // relocate_kernel's next page
        quiet(20, fetch(NEW + 0x1200)), // purgatory with boot parameters in RSI
        quiet(20, fetch(NEW + ENTRY)),
        step(1000, Exit::Bus, greet),
    ]);
    const ENTRY: u64 = 0x200;
    assert!(matches!(machine.run().unwrap(), Event::Message(_)));
    machine.reply(&[]).unwrap();
    machine.enter_phase(Phase::Handover).unwrap();
    assert_eq!(machine.run().unwrap(), Event::Jump { time: 210 });
    assert_eq!(
        machine.moment().stamp,
        Stamp {
            generation: 0,
            phase: Phase::Jump
        }
    );
    let entry = Event::KernelEntry {
        time: 270,
        boot_params: 0x7000,
        generation: 1,
    };
    assert_eq!(machine.run().unwrap(), entry);
    assert!(matches!(machine.run().unwrap(), Event::Message(_)));
    machine.finish().unwrap();

    let phases = machine.phases();
    let names: Vec<_> = phases
        .iter()
        .map(|phase| (phase.stamp.generation, phase.stamp.phase, phase.start_ns))
        .collect();
    assert_eq!(
        names,
        [
            (0, Phase::BootOld, 0),
            (0, Phase::Handover, 110),
            (0, Phase::Jump, 210),
            (1, Phase::BootNew, 270)
        ]
    );
    assert_eq!(machine.blackouts()[0].left_user_at, Some(200));
    assert_eq!(machine.blackouts()[0].nanoseconds(), Some(120));
    let provenance = machine.provenance().phases();
    assert_eq!(provenance.len(), 4);
    assert!(provenance.iter().all(|phase| phase.writes[0].pfn() == 5));
    let (last, stamp) = machine.last_write(0x5008).unwrap();
    assert_eq!(
        (last.time, stamp),
        (
            1270,
            Stamp {
                generation: 1,
                phase: Phase::BootNew
            }
        )
    );
}

#[test]
fn a_guest_that_sleeps_without_a_timer_waits_for_input_if_some_may_come() {
    let sleeping = || machine(vec![quiet(5, Exit::Halted { interruptible: true })]);
    let mut waiting = sleeping();
    waiting.expect_input(true);
    assert_eq!(waiting.run_until(1000).unwrap(), None);
    assert_eq!(waiting.moment().time, 1000);
    waiting.expect_input(false);
    assert!(matches!(
        waiting.run_until(2000).unwrap(),
        Some(Event::DeadHalt { .. })
    ));
    let mut dead = machine(vec![quiet(5, Exit::Halted { interruptible: false })]);
    dead.expect_input(true);
    assert!(matches!(
        dead.run_until(1000).unwrap(),
        Some(Event::DeadHalt {
            interruptible: false,
            ..
        })
    ));
}

#[test]
fn a_kexec_is_seen_without_a_greeting_once_it_is_watched_for() {
    const ENTRY: u64 = 0x20_0200;
    let fetch = |rip| Exit::LowSupervisorFetch { rip };
    let jumps = || {
        vec![
            quiet(100, fetch(0x7000)),
            quiet(20, fetch(ENTRY)),
            quiet(20, fetch(0x8000)),
        ]
    };
    let mut watched = machine(jumps());
    assert!(!watched.user_code_ran());
    assert!(watched.may_watch_for_kexec());
    watched.watch_for_kexec();
    assert!(!watched.may_watch_for_kexec());
    assert_eq!(watched.run_until(1000).unwrap(), Some(Event::Jump { time: 100 }));
    let entry = watched.run_until(1000).unwrap();
    assert!(
        matches!(entry, Some(Event::KernelEntry { generation: 1, .. })),
        "{entry:?}"
    );
    assert_eq!(
        watched.run_until(1000).unwrap(),
        None,
        "the new kernel may execute there"
    );
    let mut unwatched = machine(jumps());
    assert_eq!(unwatched.run_until(1000).unwrap(), None);
    assert_eq!(unwatched.moment().stamp.generation, 0);
}

#[test]
fn a_jump_that_returns_is_no_kexec_and_the_one_after_it_is() {
    const ENTRY: u64 = 0x20_0200;
    let fetch = |rip| Exit::LowSupervisorFetch { rip };
    let jumps = [0x8000, 0x9000, ENTRY].map(|rip| quiet(20, fetch(rip)));
    let mut machine = machine(jumps.into());
    machine.watch_for_kexec();
    machine.expect_return();
    // It is over with the agent's next message, which begins to watch as its greeting did.
    assert_eq!(machine.run_until(30).unwrap(), None);
    machine.watch_for_kexec();
    assert_eq!(machine.run_until(1000).unwrap(), Some(Event::Jump { time: 40 }));
    // Amid a jump there is nothing to return to.
    machine.expect_return();
    let entry = machine.run_until(1000).unwrap();
    assert!(
        matches!(entry, Some(Event::KernelEntry { generation: 1, .. })),
        "{entry:?}"
    );
}

#[test]
fn each_way_to_die_is_told_apart() {
    let end = |steps| machine(steps).run().unwrap();
    let halted = |interruptible| vec![quiet(5, Exit::Halted { interruptible })];
    assert!(matches!(
        end(halted(false)),
        Event::DeadHalt {
            interruptible: false,
            ..
        }
    ));
    assert!(matches!(
        end(halted(true)),
        Event::DeadHalt {
            interruptible: true,
            ..
        }
    ));
    let shutdown = vec![quiet(
        5,
        Exit::Shutdown(Shutdown {
            vectors: [14, 14, 14],
            rip: 1,
            cr2: 0,
        }),
    )];
    assert!(matches!(end(shutdown), Event::TripleFault { at, .. } if at.time == 5));
    let reset = vec![step(5, Exit::Bus, |bus, _, now| bus.port_write(now, 0xcf9, 1, 6))];
    assert!(matches!(end(reset), Event::Reset { .. }));
    let long = vec![step(5, Exit::Bus, |bus, _, now| {
        bus.mmio_write(now, MAILBOX + map::DOORBELL, 4, 1 << 20)
    })];
    assert!(matches!(
        end(long),
        Event::MessageTooLong {
            length: 0x10_0000,
            ..
        }
    ));
    let unknown = Exit::Unknown(softcpu::UnknownInstruction {
        rip: 1,
        bytes: vec![0x0f, 0xff],
        what: "ud0".into(),
    });
    assert!(
        matches!(end(vec![quiet(5, unknown)]), Event::UnknownInstruction { what, .. } if what.starts_with("ud0"))
    );
}

#[test]
fn printing_is_progress_and_spinning_is_not() {
    let print = || {
        step(900_000, Exit::Bus, |bus, _, now| {
            bus.port_write(now, uart::PORT, 1, 0x2e)
        })
    };
    let mut machine = machine(vec![print(), print(), print()]);
    let Event::NoProgress { at, since, limit } = machine.run().unwrap() else {
        panic!()
    };
    assert_eq!((at.time, since, limit), (3_700_000, 2_700_000, 1_000_000));
    assert_eq!(machine.console().text(), b"...");
}

#[test]
fn a_halt_lasts_to_the_timer_and_costs_no_instructions() {
    let mut machine = machine(vec![
        step(10, Exit::Bus, |bus, _, now| {
            bus.mmio_write(now, lapic::BASE + 0xf0, 4, 0x1ff);
            bus.mmio_write(now, lapic::BASE + 0x320, 4, 2 << 17 | 0xec);
            assert!(bus.msr_write(now, lapic::MSR_TSC_DEADLINE, 500_000));
        }),
        quiet(5, Exit::Halted { interruptible: true }),
        quiet(7, Exit::Halted { interruptible: false }),
    ]);
    let Event::DeadHalt { at, .. } = machine.run().unwrap() else {
        panic!()
    };
    assert_eq!((at.time, at.retired), (500_007, Some(22)));
}

#[test]
fn the_trace_holds_what_passed_in_order() {
    use crate::trace::Kind;
    let mut machine = machine(vec![
        step(100, Exit::Bus, greet),
        step(50, Exit::Bus, |bus, _, now| {
            bus.port_read(now, uart::PORT + 5, 1);
            assert_eq!(bus.msr_read(now, 0x10), None);
            assert!(!bus.msr_write(now, 0x10, 7));
            bus.mmio_write(now, lapic::BASE + 0xf0, 4, 0x1ff);
            bus.mmio_write(now, lapic::BASE + 0x320, 4, 2 << 17 | 0xec);
            assert!(bus.msr_write(now, lapic::MSR_TSC_DEADLINE, 500_000));
        }),
        quiet(5, Exit::Halted { interruptible: true }),
        quiet(7, Exit::Halted { interruptible: false }),
    ]);
    assert!(matches!(machine.run().unwrap(), Event::Message(_)));
    machine.pass(30).unwrap();
    machine.enter_phase(Phase::Prepare).unwrap();
    machine.reply(b"yes").unwrap();
    machine.run().unwrap();
    let trace = machine.trace();
    let told: Vec<_> = (0..)
        .zip(&trace.records)
        .map(|(index, record)| {
            let instructions = trace.instructions(index).unwrap();
            (
                record.time,
                instructions,
                record.kind,
                record.address,
                record.value,
            )
        })
        .collect();
    let digest = xxhash_rust::xxh3::xxh3_64;
    let apic = lapic::BASE;
    assert_eq!(
        told,
        [
            (100, 100, Kind::MmioWrite, MAILBOX + map::WINDOW, 0x6f6c_6c65),
            (100, 100, Kind::MmioWrite, MAILBOX + map::DOORBELL, 4),
            (100, 100, Kind::Message, 4, digest(b"ello")),
            (130, 100, Kind::Phase, 0, Phase::Prepare as u64),
            (130, 100, Kind::Answer, 3, digest(b"yes")),
            (180, 150, Kind::PortRead, 0x3fd, 0x60),
            (180, 150, Kind::MsrReadFault, 0x10, 0),
            (180, 150, Kind::MsrWriteFault, 0x10, 7),
            (180, 150, Kind::MmioWrite, apic + 0xf0, 0x1ff),
            (180, 150, Kind::MmioWrite, apic + 0x320, 2 << 17 | 0xec),
            (180, 150, Kind::MsrWrite, lapic::MSR_TSC_DEADLINE.into(), 500_000),
            (500_000, 155, Kind::Interrupt, 0, 0xec),
        ]
    );
    assert_eq!(trace.dropped, 0);
}

#[test]
fn running_for_a_while_comes_back_in_time() {
    let mut machine = machine(vec![quiet(1000, Exit::Halted { interruptible: false })]);
    assert_eq!(machine.run_until(400).unwrap(), None);
    assert_eq!(machine.moment().time, 400);
    assert!(matches!(machine.run_until(5000).unwrap(), Some(Event::DeadHalt { at, .. }) if at.time == 1000));
}

#[test]
fn the_state_hash_is_a_function_of_content() {
    let hash = |change: &dyn Fn(&GuestRam)| {
        let mut machine = machine(Vec::new());
        change(machine.ram());
        machine.state_hash().unwrap()
    };
    let plain = hash(&|_| {});
    assert_eq!(
        plain,
        hash(&|ram| ram.write(0x80_0000, &[0; 4096]).unwrap()),
        "zeroes are not content"
    );
    assert_ne!(plain, hash(&|ram| ram.write(0x80_0000, &[1]).unwrap()));
    assert_ne!(
        hash(&|ram| ram.write(0x80_0000, &[1]).unwrap()),
        hash(&|ram| ram.write(0x80_1000, &[1]).unwrap())
    );
}
