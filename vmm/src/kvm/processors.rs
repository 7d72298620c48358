//! The processors of a machine on KVM. Each has a thread during a run, and so have the devices; between runs there are
//! no threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::clock::GuestClock;
use super::devices;
use super::dirty::DirtyLog;
use super::error::KvmError;
use super::exclusive::GuestAccess;
use super::kexec::{self, ExpectedKexec};
use super::kick::{Kick, immediate_exit_of};
use super::msi::MsiRoutes;
use super::registers;
use super::sandbox::Sandbox;
use super::shared::{Ending, LivenessCheck, Recorded, Shared, first_and_rest, lock};
use super::vcpu::KvmVcpu;
use super::workarounds::deadline::DeadlineTimer;
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Processors, ProcessorsState, StopReason};
use crate::vcpu::{BackendError, CpuWrite, Registers};

/// All vCPUs of a machine. The fields are dropped in this order: guest RAM outlives the virtual machine.
pub(super) struct KvmProcessors {
    pub vcpus: Vec<KvmVcpu>,
    pub vm: VmFd,
    pub dirty: DirtyLog,
    pub msi_routes: MsiRoutes,
    pub sandbox: Sandbox,
    /// One per vCPU.
    pub timers: Vec<Mutex<DeadlineTimer>>,
    pub clock: GuestClock,
    pub wake: EventFd,
    pub recorded: Recorded,
    /// Index of the vCPU that the last run ended at.
    pub last: usize,
    /// A vCPU is at this entry point of the next kernel. The jump has been returned, and the next run returns the
    /// entry.
    pub at_entry: Option<u64>,
    /// Reasons to end a run that came at the same time as the last one. The next runs return them at once.
    pub pending: VecDeque<Ending>,
    pub _ram: Arc<GuestRam>,
}

impl KvmProcessors {
    /// Starts the threads and waits until they have ended. `limit` is a guest time. With `vcpus_run` false only the
    /// devices run.
    fn run_threads(
        &mut self,
        platform: &mut Platform,
        limit: u64,
        vcpus_run: bool,
    ) -> Result<StopReason, KvmError> {
        self.clock.start();
        let kicks = self.vcpus.iter_mut().map(|vcpu| {
            let immediate_exit = immediate_exit_of(&mut vcpu.fd);
            // SAFETY: the vCPU is one of `self`, which outlives the handle.
            #[allow(unsafe_code)]
            unsafe {
                Kick::new(immediate_exit)
            }
        });
        let kicks: Vec<Kick<'_>> = kicks.collect();
        let liveness = self.vcpus.iter().map(|_| LivenessCheck::default()).collect();
        for timer in &mut self.timers {
            timer
                .get_mut()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .restart();
        }
        let shared = Shared {
            platform: Mutex::new(platform),
            guest_access: GuestAccess::default(),
            msi_routes: Mutex::new(&mut self.msi_routes),
            dirty: Mutex::new(&mut self.dirty),
            recorded: Mutex::new(&mut self.recorded),
            timers: &self.timers,
            endings: Mutex::default(),
            stopping: AtomicBool::new(false),
            kicks,
            liveness,
            wake: &self.wake,
            devices_sleep_until: AtomicU64::new(0),
            vm: &self.vm,
            sandbox: &self.sandbox,
            clock: self.clock,
            limit,
        };
        let vcpus: &mut [KvmVcpu] = if vcpus_run { &mut self.vcpus } else { &mut [] };
        let threads = join_threads(&shared, vcpus);
        // The devices do all that is due by now, so that RAM and ledger agree with the time that the machine shows
        // between runs.
        let now = shared.clock.now();
        let settled = {
            let mut platform = lock(&shared.platform);
            shared.advance(&mut platform, now)
        };
        let endings = std::mem::take(&mut *lock(&shared.endings));
        drop(shared);
        self.clock.stop_at(now);
        threads.and(settled)?;
        let (first, rest) = first_and_rest(endings);
        self.pending.extend(rest);
        let first = first.ok_or_else(|| KvmError::new("run", "the threads ended without a reason"))?;
        self.conclude(first)
    }

    fn conclude(&mut self, ending: Ending) -> Result<StopReason, KvmError> {
        self.last = ending.vcpu.unwrap_or(self.last);
        ending.result
    }
}

/// Starts a thread for each of these vCPUs and one for the devices, and waits until all have ended.
fn join_threads(shared: &Shared<'_>, vcpus: &mut [KvmVcpu]) -> Result<(), KvmError> {
    let vcpus_run = !vcpus.is_empty();
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    thread::scope(|scope| {
        let mut spawned = Vec::new();
        for vcpu in vcpus {
            let name = format!("vcpu{}", vcpu.index);
            spawned.push(named(&name).spawn_scoped(scope, move || vcpu.run(shared)));
        }
        spawned.push(named("devices").spawn_scoped(scope, move || devices::run(shared, vcpus_run)));
        let (threads, failures): (Vec<_>, Vec<_>) = spawned.into_iter().partition(Result::is_ok);
        for error in failures.into_iter().filter_map(Result::err) {
            shared.finish(None, Err(KvmError::new("thread", error)));
        }
        let panicked = threads
            .into_iter()
            .flatten()
            .map(thread::ScopedJoinHandle::join)
            .filter(Result::is_err)
            .count()
            > 0;
        if panicked {
            return Err(KvmError::new("thread", "one of the machine's threads panicked"));
        }
        Ok(())
    })
}

impl Processors for KvmProcessors {
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<StopReason, BackendError> {
        if let Some(rip) = self.at_entry.take() {
            self.vcpus[self.last].debug.step_past();
            return Ok(StopReason::LowSupervisorFetch {
                rip,
                not_before: None,
            });
        }
        let reason = match self.pending.pop_front() {
            Some(ending) => self.conclude(ending)?,
            None => self.run_threads(platform, limit, true)?,
        };
        if let StopReason::LowSupervisorFetch { rip, not_before } = reason {
            if not_before.is_some() {
                // Only the entry was seen. This run returns the jump, the next one the entry.
                self.at_entry = Some(rip);
                self.vcpus.iter_mut().for_each(|vcpu| vcpu.debug.set_jumped());
            } else {
                self.vcpus[self.last].debug.step_past();
            }
        }
        Ok(reason)
    }

    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError> {
        self.run_threads(platform, until, false)?;
        Ok(())
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }

    fn retired(&self) -> Option<u64> {
        None
    }

    fn instructions_at(&self, _: u64) -> Option<u64> {
        None
    }

    fn registers(&self) -> Registers {
        self.vcpus[self.last].registers()
    }

    fn all_registers(&self) -> Vec<Registers> {
        self.vcpus.iter().map(|vcpu| vcpu.registers()).collect()
    }

    fn syscall_entries(&self) -> Vec<u64> {
        const LSTAR: u32 = 0xc000_0082;
        let entries = self.vcpus.iter().map(|vcpu| registers::msrs(&vcpu.fd, [LSTAR]));
        entries.filter_map(|entry| Some(entry.ok()?[0])).collect()
    }

    fn watch_for_kexec(&mut self, wanted: bool) {
        if !wanted {
            self.vcpus.iter_mut().for_each(|vcpu| vcpu.debug.expect(None));
        }
    }

    fn sees_unannounced_kexec(&self) -> bool {
        false
    }

    fn expect_kexec(&mut self, ram: &GuestRam, machine_kexec: &dyn Fn() -> Option<u64>) {
        let expected = ExpectedKexec {
            machine_kexec: machine_kexec(),
            entries: kexec::find_entries(ram),
        };
        for vcpu in &mut self.vcpus {
            vcpu.debug.expect(Some(expected.clone()));
        }
    }

    // KVM's dirty log knows pages and no writers, so there is nothing to watch and no last write.
    fn watch_writes(&mut self, _: u64, _: bool) {}

    fn last_write(&self, _: u64) -> Option<CpuWrite> {
        None
    }

    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError> {
        Ok(self.dirty.writes(&self.vm, each)?)
    }

    fn device_lateness(&self) -> u64 {
        self.recorded.lateness
    }

    fn emulated(&self) -> Vec<(String, u64)> {
        let mut sum = BTreeMap::new();
        for (mnemonic, count) in self.vcpus.iter().flat_map(|vcpu| vcpu.emulator.counts()) {
            *sum.entry(mnemonic.clone()).or_default() += count;
        }
        sum.into_iter().collect()
    }

    fn begin_write_epoch(&mut self) -> Result<(), BackendError> {
        Ok(self.dirty.begin_epoch(&self.vm, self.clock.now())?)
    }

    fn left_user_at(&self) -> Option<u64> {
        self.recorded.last_user_access
    }

    fn entered_user_at(&self) -> Option<u64> {
        self.recorded.first_user_access
    }

    fn reset_user_marks(&mut self) {
        self.recorded.first_user_access = None;
    }

    /// General and special registers: enough to tell two states apart.
    fn state(&self) -> ProcessorsState {
        let registers = |vcpu: &KvmVcpu| format!("{:?}", vcpu.registers());
        ProcessorsState::Kvm(self.vcpus.iter().map(registers).collect())
    }
}
