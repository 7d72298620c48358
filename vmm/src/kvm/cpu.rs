//! One vCPU and its thread: KVM_RUN, and what to do when it comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::debug::{Debug, Sight};
use super::emulate::{Emulated, Emulator};
use super::emulating::{Workarounds, syscall};
use super::sandbox::{Role, violation};
use super::shared::{EndsRun, Shared, glance, lock};
use super::{Refused, state};
use crate::devices::lapic::MSR_TSC_DEADLINE;
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Happening, News};
use crate::vcpu::{Bus, Registers};

/// Offsets of the local APIC's timer registers.
const TIMER_INITIAL: usize = 0x380;

/// One vCPU.
pub(super) struct Cpu {
    pub index: usize,
    pub fd: VcpuFd,
    pub debug: Debug,
    pub emulator: Emulator,
    pub workarounds: Workarounds,
    pub ram: Arc<GuestRam>,
}

/// What is left to do after an exit, once KVM's own structures are let go.
enum After {
    Nothing,
    /// The guest accessed a device. The engine events that this caused, and what a device has to say.
    Access(std::ops::Range<usize>, Option<News>),
    /// IA32_TSC_DEADLINE was written.
    Deadline(u64),
    Debug(u64),
    Emulate,
    /// KVM_RUN was interrupted.
    Interrupted,
    End(Happening),
}

impl Cpu {
    /// Runs the vCPU until the run is over. This is the thread's body.
    pub fn run(&mut self, shared: &Shared<'_>) {
        let guard = EndsRun(shared);
        shared.kicks[self.index].enter();
        if let Err(refused) = shared.sandbox.enter(Role::Vcpu) {
            shared.finish(Some(self.index), Err(refused));
        }
        while !shared.is_over() {
            match violation().and_then(|()| self.turn(shared)) {
                Ok(None) => {}
                Ok(Some(happening)) => shared.finish(Some(self.index), Ok(happening)),
                Err(refused) => shared.finish(Some(self.index), Err(refused)),
            }
        }
        // An instruction whose exit was answered is completed, so that registers are those behind it.
        if let Err(refused) = self.complete() {
            shared.finish(Some(self.index), Err(refused));
        }
        shared.kicks[self.index].leave();
        drop(guard);
    }

    /// One KVM_RUN and its consequences.
    fn turn(&mut self, shared: &Shared<'_>) -> Result<Option<Happening>, Refused> {
        self.debug.apply(&self.fd)?;
        let after = self.enter(shared)?;
        shared.glances[self.index].exits.fetch_add(1, Ordering::Relaxed);
        match after {
            After::Nothing => Ok(None),
            After::Access(events, news) => self.accessed(shared, events, news),
            After::Deadline(deadline) => {
                lock(&shared.ticks[self.index]).write(&self.fd, deadline)?;
                shared.wake_devices();
                Ok(None)
            }
            After::Debug(pc) => self.debugged(pc),
            After::Emulate => self.emulate(shared),
            After::Interrupted => {
                self.interrupted(shared)?;
                Ok(None)
            }
            After::End(happening) => Ok(Some(happening)),
        }
    }

    fn enter(&mut self, shared: &Shared<'_>) -> Result<After, Refused> {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                return Ok(After::Interrupted);
            }
            Err(error) => return Err(Refused::at("KVM_RUN")(error)),
        };
        let access = |act: &mut dyn FnMut(&mut dyn Bus, u64)| access(shared, act);
        match exit {
            VcpuExit::IoOut(port, data) => access(&mut |bus, now| write_port(bus, now, port, data)),
            VcpuExit::IoIn(port, data) => access(&mut |bus, now| read_port(bus, now, port, data)),
            VcpuExit::MmioWrite(address, data) => access(&mut |bus, now| {
                let (value, size) = number(data);
                bus.mmio_write(now, address, size, value);
            }),
            VcpuExit::MmioRead(address, data) => access(&mut |bus, now| {
                let size = data.len();
                let value = bus.mmio_read(now, address, number(data).1).to_le_bytes();
                data.copy_from_slice(&value[..size.min(8)]);
            }),
            VcpuExit::IoapicEoi(vector) => access(&mut |bus, now| {
                // The I/O APIC's EOI register does just that.
                bus.mmio_write(now, crate::devices::ioapic::BASE + 0x40, 4, vector.into());
            }),
            VcpuExit::X86Wrmsr(write) => {
                if write.index == MSR_TSC_DEADLINE {
                    return Ok(After::Deadline(write.data));
                }
                *write.error = 1;
                Ok(After::Nothing)
            }
            VcpuExit::X86Rdmsr(read) => {
                *read.error = 1;
                Ok(After::Nothing)
            }
            VcpuExit::Debug(arch) => Ok(After::Debug(arch.pc)),
            VcpuExit::Intr => Ok(After::Interrupted),
            VcpuExit::Shutdown => Ok(After::End(self.shutdown())),
            VcpuExit::InternalError => self.internal_error(),
            VcpuExit::FailEntry(reason, _) => Err(Refused::text(
                "KVM_RUN",
                &format!("the guest's state was refused by the processor, reason {reason:#x}"),
            )),
            other => Err(Refused::text("KVM_RUN", &format!("unexpected exit {other:?}"))),
        }
    }

    #[allow(unsafe_code)]
    fn internal_error(&mut self) -> Result<After, Refused> {
        // SAFETY: KVM_EXIT_INTERNAL_ERROR says that this member of the union is the valid one; any bytes are valid for it.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION {
            return Ok(After::Emulate);
        }
        let registers = self.registers();
        Err(Refused::text(
            "KVM_RUN",
            &format!(
                "internal error, suberror {}, at {:#x}",
                error.suberror, registers.rip
            ),
        ))
    }

    fn shutdown(&self) -> Happening {
        let registers = self.registers();
        Happening::TripleFault {
            reason: format!(
                "KVM reports a shutdown at {:#x}, CR2 {:#x}, IDT at {:#x} of limit {:#x}",
                registers.rip, registers.cr2, registers.idtr.base, registers.idtr.limit
            ),
        }
    }

    /// After an access to a device.
    fn accessed(
        &mut self,
        shared: &Shared<'_>,
        events: std::ops::Range<usize>,
        news: Option<News>,
    ) -> Result<Option<Happening>, Refused> {
        let (mut marks, now) = (lock(&shared.marks), shared.clock.now());
        marks.last_access = Some(now);
        if self.fd.sync_regs().sregs.cs.dpl == 3 {
            marks.last = Some(now);
            marks.first.get_or_insert(now);
        }
        drop(marks);
        if !events.is_empty() {
            self.complete()?;
            let registers = self.registers();
            lock(&shared.platform).note_causes(events, None, || registers);
        }
        if self.workarounds.fix_syscall {
            let handler = syscall::page_fault_handler(&self.fd, &self.ram)?;
            self.debug.watch_page_faults(handler);
        }
        Ok(news.map(Happening::News))
    }

    fn debugged(&mut self, pc: u64) -> Result<Option<Happening>, Refused> {
        let kernel_mode = self.fd.sync_regs().sregs.cs.dpl == 0;
        Ok(match self.debug.stopped_at(pc, kernel_mode) {
            Sight::Nothing => None,
            Sight::PageFault => {
                if !syscall::finish(&self.fd, &self.ram)? {
                    self.debug.step_past();
                }
                None
            }
            Sight::Jump | Sight::Entry { jump_seen: true } => Some(Happening::LowSupervisorFetch {
                rip: pc,
                not_before: None,
            }),
            // Where the old kernel ran last is filled in by whoever knows it.
            Sight::Entry { jump_seen: false } => Some(Happening::LowSupervisorFetch {
                rip: pc,
                not_before: Some(0),
            }),
        })
    }

    fn emulate(&mut self, shared: &Shared<'_>) -> Result<Option<Happening>, Refused> {
        let mut guard = lock(&shared.platform);
        let platform: &mut Platform = &mut guard;
        let now = shared.clock.now();
        let before = platform.engine_events();
        let emulated = self.emulator.step(&self.fd, &mut platform.bus, now)?;
        let events = before..platform.engine_events();
        platform.note_causes(events, None, || self.registers());
        platform.note_output(now);
        let news = platform.take_news(now);
        shared.settle(platform)?;
        drop(guard);
        Ok(match emulated {
            Emulated::Done(writes) => {
                let mut dirty = lock(&shared.dirty);
                writes.into_iter().for_each(|write| dirty.add(write));
                news.map(Happening::News)
            }
            Emulated::Ended(happening) => Some(happening),
        })
    }

    fn interrupted(&mut self, shared: &Shared<'_>) -> Result<(), Refused> {
        if !shared.is_over() {
            shared.kicks[self.index].clear();
        }
        let look = &shared.glances[self.index];
        if look.wanted.swap(false, Ordering::AcqRel) {
            let armed = lock(&shared.ticks[self.index]).is_armed();
            look.dead.store(self.look(armed)?, Ordering::Release);
            shared.wake_devices();
        }
        Ok(())
    }

    /// Whether the vCPU is halted with no timer to wake it, in the codes of [`glance`].
    fn look(&self, tick_armed: bool) -> Result<u64, Refused> {
        let mp_state = self
            .fd
            .get_mp_state()
            .map_err(Refused::at("KVM_GET_MP_STATE"))?
            .mp_state;
        if mp_state == KVM_MP_STATE_UNINITIALIZED {
            return Ok(glance::OFF);
        }
        if mp_state != KVM_MP_STATE_HALTED {
            return Ok(glance::ALIVE);
        }
        let regs = self.fd.get_regs().map_err(Refused::at("KVM_GET_REGS"))?;
        if regs.rflags & state::IF == 0 {
            return Ok(glance::HALTED);
        }
        let lapic = self.fd.get_lapic().map_err(Refused::at("KVM_GET_LAPIC"))?;
        let counting = lapic.regs[TIMER_INITIAL..TIMER_INITIAL + 4]
            .iter()
            .any(|byte| *byte != 0);
        let [deadline] = state::msrs(&self.fd, [MSR_TSC_DEADLINE])?;
        Ok(if counting || deadline != 0 || tick_armed {
            glance::ALIVE
        } else {
            glance::WAITING
        })
    }

    /// Lets KVM complete the instruction whose exit was answered last, without executing another one.
    pub fn complete(&mut self) -> Result<(), Refused> {
        self.fd.set_kvm_immediate_exit(1);
        let result = self.fd.run().map(drop);
        self.fd.set_kvm_immediate_exit(0);
        match result {
            Err(error) if ![libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                Err(Refused::at("KVM_RUN")(error))
            }
            _ => Ok(()),
        }
    }

    /// The registers. KVM refuses them for no vCPU that is in order; what it did refuse reads as zeroes.
    pub fn registers(&self) -> Registers {
        state::out(
            &self.fd.get_regs().unwrap_or_default(),
            &self.fd.get_sregs().unwrap_or_default(),
        )
    }
}

/// An access to a device, under the platform's lock.
fn access(shared: &Shared<'_>, act: &mut dyn FnMut(&mut dyn Bus, u64)) -> Result<After, Refused> {
    let mut guard = lock(&shared.platform);
    let platform: &mut Platform = &mut guard;
    let now = shared.clock.now();
    let before = platform.engine_events();
    act(&mut platform.bus, now);
    let events = before..platform.engine_events();
    platform.note_output(now);
    let news = platform.take_news(now);
    shared.settle(platform)?;
    Ok(After::Access(events, news))
}

/// A little-endian number of up to 8 bytes, and its size.
fn number(data: &[u8]) -> (u64, u8) {
    let (mut bytes, mut size) = ([0; 8], 0);
    for (byte, given) in bytes.iter_mut().zip(data) {
        *byte = *given;
        size += 1;
    }
    (u64::from_le_bytes(bytes), size)
}

/// Sizes of one port access; a string instruction's longer data are taken byte by byte, as only byte devices are driven so.
fn port_accesses(data: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let size = if matches!(data.len(), 1 | 2 | 4) {
        data.len()
    } else {
        1
    };
    data.chunks_mut(size)
}

fn write_port(bus: &mut dyn Bus, now: u64, port: u16, data: &[u8]) {
    let mut data = data.to_vec();
    for part in port_accesses(&mut data) {
        let (value, size) = number(part);
        bus.port_write(now, port, size, (value & 0xffff_ffff) as u32);
    }
}

fn read_port(bus: &mut dyn Bus, now: u64, port: u16, data: &mut [u8]) {
    for part in port_accesses(data) {
        let value = bus.port_read(now, port, number(part).1).to_le_bytes();
        let size = part.len();
        part.copy_from_slice(&value[..size]);
    }
}
