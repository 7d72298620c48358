//! One vCPU and its thread: KVM_RUN, and how each exit is handled.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::emulate::Emulator;
use super::error::KvmError;
use super::guest_debug::{DebugExit, GuestDebug};
use super::sandbox::{Role, violation};
use super::shared::{Liveness, Shared, StopOnDrop, lock};
use super::workarounds::{Workarounds, syscall};
use super::{io, registers};
use crate::devices::ioapic;
use crate::devices::lapic::{MSR_TSC_DEADLINE, TIMER_INITIAL};
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{DeviceEvent, StopReason};
use crate::vcpu::{Bus, Registers};

/// A vCPU of a machine, and what the backend keeps for it.
pub(super) struct KvmVcpu {
    pub index: usize,
    pub fd: VcpuFd,
    pub debug: GuestDebug,
    pub emulator: Emulator,
    pub workarounds: Workarounds,
    pub ram: Arc<GuestRam>,
}

/// What a device access caused.
struct Access {
    /// The engine events that it added, as indices into the ledger's list.
    events: Range<usize>,
    /// What a device has to tell the host.
    event: Option<DeviceEvent>,
}

impl KvmVcpu {
    /// Runs the vCPU until the run is over. This is the thread's body.
    pub fn run(&mut self, shared: &Shared<'_>) {
        let guard = StopOnDrop(shared);
        shared.kicks[self.index].attach_thread();
        if let Err(error) = shared.sandbox.enter(Role::Vcpu) {
            shared.finish(Some(self.index), Err(error));
        }
        while !shared.is_over() {
            match violation().and_then(|()| self.run_once(shared)) {
                Ok(None) => {}
                Ok(Some(reason)) => shared.finish(Some(self.index), Ok(reason)),
                Err(error) => shared.finish(Some(self.index), Err(error)),
            }
        }
        // KVM finishes the instruction of the last exit only in the next KVM_RUN. After that the registers are up to
        // date.
        if let Err(error) = self.complete(shared) {
            shared.finish(Some(self.index), Err(error));
        }
        shared.kicks[self.index].detach_thread();
        drop(guard);
    }

    /// Calls KVM_RUN once and handles the exit. Returns what ends the run; `None` if the vCPU can go on.
    fn run_once(&mut self, shared: &Shared<'_>) -> Result<Option<StopReason>, KvmError> {
        self.debug.apply(&self.fd)?;
        let in_guest = shared.guest_access.enter_guest();
        let result = self.fd.run();
        drop(in_guest);
        shared.liveness[self.index].exits.fetch_add(1, Ordering::Relaxed);
        let exit = match result {
            Ok(exit) => exit,
            Err(error) if is_interruption(error) => return self.interrupted(shared),
            Err(error) => return Err(KvmError::ioctl("KVM_RUN")(error)),
        };
        let access = match exit {
            VcpuExit::IoOut(port, data) => {
                access(shared, &mut |bus, now| io::write_port(bus, now, port, data))
            }
            VcpuExit::IoIn(port, data) => access(shared, &mut |bus, now| io::read_port(bus, now, port, data)),
            VcpuExit::MmioWrite(address, data) => {
                access(shared, &mut |bus, now| io::write_memory(bus, now, address, data))
            }
            VcpuExit::MmioRead(address, data) => {
                access(shared, &mut |bus, now| io::read_memory(bus, now, address, data))
            }
            VcpuExit::IoapicEoi(vector) => access(shared, &mut |bus, now| {
                bus.mmio_write(now, ioapic::BASE + ioapic::EOI, 4, vector.into());
            }),
            VcpuExit::X86Wrmsr(write) => {
                if write.index == MSR_TSC_DEADLINE {
                    let deadline = write.data;
                    return self.deadline_written(shared, deadline);
                }
                *write.error = 1;
                return Ok(None);
            }
            VcpuExit::X86Rdmsr(read) => {
                *read.error = 1;
                return Ok(None);
            }
            VcpuExit::Debug(arch) => return self.debug_exit(shared, arch.pc),
            VcpuExit::Intr => return self.interrupted(shared),
            VcpuExit::Shutdown => return Ok(Some(self.shutdown())),
            VcpuExit::InternalError => return self.internal_error(shared),
            VcpuExit::FailEntry(reason, _) => {
                let reason = format!("the processor refused the guest's state, reason {reason:#x}");
                return Err(KvmError::new("KVM_RUN", reason));
            }
            other => return Err(KvmError::new("KVM_RUN", format!("unexpected exit {other:?}"))),
        };
        self.accessed(shared, access?)
    }

    /// KVM_EXIT_INTERNAL_ERROR: softcpu executes the instruction if KVM's emulator could not.
    #[allow(unsafe_code)]
    fn internal_error(&mut self, shared: &Shared<'_>) -> Result<Option<StopReason>, KvmError> {
        // SAFETY: KVM_EXIT_INTERNAL_ERROR says that this member of the union is the valid one; any bytes are valid for
        // it.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION {
            return self.emulate(shared);
        }
        let rip = self.registers().rip;
        let reason = format!("internal error, suberror {}, at {rip:#x}", error.suberror);
        Err(KvmError::new("KVM_RUN", reason))
    }

    fn shutdown(&self) -> StopReason {
        let registers = self.registers();
        let reason = if registers.were_reset() {
            "KVM reports a shutdown, at which an AMD processor loses its registers".into()
        } else {
            format!(
                "KVM reports a shutdown at {:#x}, CR2 {:#x}, IDT at {:#x} of limit {:#x}",
                registers.rip, registers.cr2, registers.idtr.base, registers.idtr.limit
            )
        };
        StopReason::TripleFault { reason }
    }

    /// Records a device access.
    fn accessed(&mut self, shared: &Shared<'_>, access: Access) -> Result<Option<StopReason>, KvmError> {
        let (mut recorded, now) = (lock(&shared.recorded), shared.clock.now());
        recorded.last_access = Some(now);
        if self.fd.sync_regs().sregs.cs.dpl == 3 {
            recorded.last_user_access = Some(now);
            recorded.first_user_access.get_or_insert(now);
        }
        drop(recorded);
        if !access.events.is_empty() {
            self.complete(shared)?;
            let registers = self.registers();
            lock(&shared.platform).note_causes(access.events, None, || registers);
        }
        if self.workarounds.fix_syscall {
            let handler = syscall::page_fault_handler(&self.fd, &self.ram)?;
            self.debug.watch_page_faults(handler);
        }
        Ok(access.event.map(StopReason::DeviceEvent))
    }

    fn deadline_written(
        &mut self,
        shared: &Shared<'_>,
        deadline: u64,
    ) -> Result<Option<StopReason>, KvmError> {
        lock(&shared.timers[self.index]).write(&self.fd, deadline)?;
        shared.wake_devices();
        Ok(None)
    }

    /// KVM_EXIT_DEBUG at `pc`.
    fn debug_exit(&mut self, shared: &Shared<'_>, pc: u64) -> Result<Option<StopReason>, KvmError> {
        let kernel_mode = self.fd.sync_regs().sregs.cs.dpl == 0;
        Ok(match self.debug.stopped_at(pc, kernel_mode) {
            DebugExit::Resume => None,
            DebugExit::PageFaultHandler => {
                if !syscall::finish(&self.fd, &self.ram)? {
                    self.debug.step_past();
                }
                None
            }
            DebugExit::LowHalf { jump_seen } => Some(StopReason::LowSupervisorFetch {
                rip: pc,
                // The old kernel was running when it accessed a device last.
                not_before: (!jump_seen).then(|| lock(&shared.recorded).last_access.unwrap_or(0)),
            }),
        })
    }

    /// Executes one instruction on softcpu while all other vCPUs are kept out of the guest.
    fn emulate(&mut self, shared: &Shared<'_>) -> Result<Option<StopReason>, KvmError> {
        // The instruction may access a device.
        let (mut guard, now) = shared.platform_now()?;
        let platform: &mut Platform = &mut guard;
        let before = platform.engine_events();
        let exclusive = shared
            .guest_access
            .start_exclusive(|| shared.kick_others(self.index));
        let end = self.emulator.step(&self.fd, &exclusive, &mut platform.bus)?;
        drop(exclusive);
        let events = before..platform.engine_events();
        platform.note_causes(events, None, || self.registers());
        platform.note_output(now);
        let event = platform.take_event(now);
        shared.after_access(platform)?;
        drop(guard);
        if end.is_some() {
            return Ok(end);
        }
        let mut dirty = lock(&shared.dirty);
        self.emulator.writes(now).for_each(|write| dirty.add(write));
        Ok(event.map(StopReason::DeviceEvent))
    }

    /// KVM_RUN was interrupted: by a kick, or by a signal that is not ours.
    fn interrupted(&mut self, shared: &Shared<'_>) -> Result<Option<StopReason>, KvmError> {
        shared.kicks[self.index].take();
        let check = &shared.liveness[self.index];
        if check.requested.swap(false, Ordering::AcqRel) {
            let timer_armed = lock(&shared.timers[self.index]).is_armed();
            check.set(self.liveness(timer_armed)?);
            shared.wake_devices();
        }
        Ok(None)
    }

    fn liveness(&self, timer_armed: bool) -> Result<Liveness, KvmError> {
        let mp_state = self
            .fd
            .get_mp_state()
            .map_err(KvmError::ioctl("KVM_GET_MP_STATE"))?
            .mp_state;
        if mp_state == KVM_MP_STATE_UNINITIALIZED {
            return Ok(Liveness::NotStarted);
        }
        if mp_state != KVM_MP_STATE_HALTED {
            return Ok(Liveness::Alive);
        }
        let regs = self.fd.get_regs().map_err(KvmError::ioctl("KVM_GET_REGS"))?;
        if regs.rflags & softcpu::flags::IF == 0 {
            return Ok(Liveness::Halted);
        }
        let lapic = self.fd.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
        let counting = registers::lapic_register(&lapic, TIMER_INITIAL) != 0;
        let [deadline] = registers::msrs(&self.fd, [MSR_TSC_DEADLINE])?;
        Ok(if counting || deadline != 0 || timer_armed {
            Liveness::Alive
        } else {
            Liveness::WaitsForDevice
        })
    }

    /// Lets KVM complete the instruction whose exit was handled last, without executing another one.
    fn complete(&mut self, shared: &Shared<'_>) -> Result<(), KvmError> {
        let _in_guest = shared.guest_access.enter_guest();
        let result = shared.kicks[self.index].without_entering_guest(|| self.fd.run().map(drop));
        match result {
            Err(error) if !is_interruption(error) => Err(KvmError::ioctl("KVM_RUN")(error)),
            _ => Ok(()),
        }
    }

    /// The registers. KVM refuses them only for a vCPU that is not in order; they then read as zeroes.
    pub fn registers(&self) -> Registers {
        registers::from_kvm(
            &self.fd.get_regs().unwrap_or_default(),
            &self.fd.get_sregs().unwrap_or_default(),
        )
    }
}

/// Makes an access to a device, under the platform's lock.
fn access(shared: &Shared<'_>, act: &mut dyn FnMut(&mut dyn Bus, u64)) -> Result<Access, KvmError> {
    let (mut guard, now) = shared.platform_now()?;
    let platform: &mut Platform = &mut guard;
    let before = platform.engine_events();
    act(&mut platform.bus, now);
    let events = before..platform.engine_events();
    platform.note_output(now);
    let event = platform.take_event(now);
    shared.after_access(platform)?;
    Ok(Access { events, event })
}

/// Whether KVM_RUN returned because of a signal or `immediate_exit`.
fn is_interruption(error: kvm_ioctls::Error) -> bool {
    [libc::EINTR, libc::EAGAIN].contains(&error.errno())
}
