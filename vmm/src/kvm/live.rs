//! The processors of a machine on KVM: a thread for each while the machine runs, none while it stands.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::clock::Clock;
use super::cpu::Cpu;
use super::dirty::Dirty;
use super::emulating::tick::Tick;
use super::interrupts::Interrupts;
use super::kexec::{self, Expected};
use super::kick::{Kick, flag_of};
use super::sandbox::Sandbox;
use super::shared::{End, Glance, Marks, Shared, first_and_rest, lock};
use super::{Refused, devices};
use crate::memory::GuestRam;
use crate::platform::Platform;
use crate::processors::{Happening, Processors, ProcessorsState};
use crate::vcpu::{BackendError, CpuWrite, Registers};

/// The processors. The order of the fields is the order in which they are dropped: guest RAM outlives the virtual machine.
pub(super) struct Live {
    pub cpus: Vec<Cpu>,
    pub vm: VmFd,
    pub dirty: Dirty,
    pub interrupts: Interrupts,
    pub sandbox: Sandbox,
    pub ticks: Vec<Mutex<Tick>>,
    pub clock: Clock,
    pub wake: EventFd,
    pub marks: Marks,
    /// The vCPU that had to do with what happened last.
    pub last: usize,
    /// The entry point at which a vCPU stands, when its jump was reported but not the entry itself.
    pub at_entry: Option<u64>,
    /// What happened beside that, and has not been told.
    pub untold: VecDeque<End>,
    pub _ram: Arc<GuestRam>,
}

impl Live {
    /// Runs everything until it ends.
    fn together(
        &mut self,
        platform: &mut Platform,
        limit: u64,
        vcpus_run: bool,
    ) -> Result<Happening, Refused> {
        self.clock.start();
        let kicks = self.cpus.iter_mut().map(|cpu| {
            let flag = flag_of(&mut cpu.fd);
            // SAFETY: the flag is that of a vCPU of `self`, which is borrowed for as long as the handle lives.
            #[allow(unsafe_code)]
            unsafe {
                Kick::new(flag)
            }
        });
        let kicks: Vec<Kick<'_>> = kicks.collect();
        let glances = self.cpus.iter().map(|_| Glance::default()).collect();
        for tick in &mut self.ticks {
            tick.get_mut()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .restart();
        }
        let shared = Shared {
            platform: Mutex::new(platform),
            interrupts: Mutex::new(&mut self.interrupts),
            dirty: Mutex::new(&mut self.dirty),
            marks: Mutex::new(&mut self.marks),
            ticks: &self.ticks,
            ends: Mutex::default(),
            stopping: AtomicBool::new(false),
            kicks,
            glances,
            wake: &self.wake,
            sleeping_to: AtomicU64::new(0),
            vm: &self.vm,
            sandbox: &self.sandbox,
            clock: self.clock,
            limit,
        };
        let cpus: &mut [Cpu] = if vcpus_run { &mut self.cpus } else { &mut [] };
        let threads = in_threads(&shared, cpus);
        // The ledger is complete up to now: what is looked at while the machine stands is what the devices have done.
        let now = shared.clock.now();
        let settled = {
            let mut platform = lock(&shared.platform);
            platform.advance(now);
            shared.send_interrupts(&mut platform)
        };
        let ends = std::mem::take(&mut *lock(&shared.ends));
        drop(shared);
        self.clock.stop_at(now);
        threads.and(settled)?;
        let (first, rest) = first_and_rest(ends);
        self.untold.extend(rest);
        let first = first.ok_or_else(|| Refused::text("run", "its threads ended without a reason"))?;
        self.tell(first)
    }

    fn tell(&mut self, end: End) -> Result<Happening, Refused> {
        self.last = end.vcpu.unwrap_or(self.last);
        end.happening
    }
}

/// Runs each vCPU and the devices on a thread of its own, until all have ended.
fn in_threads(shared: &Shared<'_>, cpus: &mut [Cpu]) -> Result<(), Refused> {
    let vcpus_run = !cpus.is_empty();
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    thread::scope(|scope| {
        let mut spawned = Vec::new();
        for cpu in cpus {
            let name = format!("vcpu{}", cpu.index);
            spawned.push(named(&name).spawn_scoped(scope, move || cpu.run(shared)));
        }
        spawned.push(named("devices").spawn_scoped(scope, move || devices::run(shared, vcpus_run)));
        let (threads, failures): (Vec<_>, Vec<_>) = spawned.into_iter().partition(Result::is_ok);
        for error in failures.into_iter().filter_map(Result::err) {
            shared.finish(None, Err(Refused::io("thread", &error)));
        }
        let panicked = threads
            .into_iter()
            .flatten()
            .map(thread::ScopedJoinHandle::join)
            .filter(Result::is_err)
            .count()
            > 0;
        if panicked {
            return Err(Refused::text("thread", "one of the machine's threads panicked"));
        }
        Ok(())
    })
}

impl Processors for Live {
    fn run(&mut self, platform: &mut Platform, limit: u64) -> Result<Happening, BackendError> {
        if let Some(rip) = self.at_entry.take() {
            self.cpus[self.last].debug.step_past();
            return Ok(Happening::LowSupervisorFetch {
                rip,
                not_before: None,
            });
        }
        let happening = match self.untold.pop_front() {
            Some(end) => self.tell(end)?,
            None => self.together(platform, limit, true)?,
        };
        Ok(match happening {
            Happening::LowSupervisorFetch {
                rip,
                not_before: Some(_),
            } => {
                // The entry stands for the jump first, and then for itself.
                self.at_entry = Some(rip);
                self.cpus.iter_mut().for_each(|cpu| cpu.debug.set_jumped());
                Happening::LowSupervisorFetch {
                    rip,
                    not_before: Some(self.marks.last_access.unwrap_or(0)),
                }
            }
            Happening::LowSupervisorFetch { .. } => {
                self.cpus[self.last].debug.step_past();
                happening
            }
            other => other,
        })
    }

    fn stand(&mut self, platform: &mut Platform, until: u64) -> Result<(), BackendError> {
        self.together(platform, until, false)?;
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
        self.cpus[self.last].registers()
    }

    fn watch_for_kexec(&mut self, wanted: bool) {
        if !wanted {
            self.cpus.iter_mut().for_each(|cpu| cpu.debug.expect(None));
        }
    }

    fn expect_kexec(&mut self, ram: &GuestRam, machine_kexec: &dyn Fn() -> Option<u64>) {
        let expected = Expected {
            machine_kexec: machine_kexec(),
            entries: kexec::entries(ram),
        };
        for cpu in &mut self.cpus {
            cpu.debug.expect(Some(expected.clone()));
        }
    }

    // The dirty log knows pages, not bytes: a machine on KVM has no last writer to tell.
    fn watch_writes(&mut self, _: u64, _: bool) {}

    fn last_write(&self, _: u64) -> Option<CpuWrite> {
        None
    }

    fn epoch_writes(&mut self, each: &mut dyn FnMut(CpuWrite)) -> Result<(), BackendError> {
        Ok(self.dirty.writes(&self.vm, each)?)
    }

    fn device_lateness(&self) -> u64 {
        self.marks.lateness
    }

    fn emulated(&self) -> Vec<(String, u64)> {
        let mut sum = BTreeMap::new();
        for (mnemonic, count) in self.cpus.iter().flat_map(|cpu| cpu.emulator.counts()) {
            *sum.entry(mnemonic.clone()).or_default() += count;
        }
        sum.into_iter().collect()
    }

    fn writes_are_exact(&self) -> bool {
        false
    }

    fn begin_write_epoch(&mut self) -> Result<(), BackendError> {
        Ok(self.dirty.begin_epoch(&self.vm, self.clock.now())?)
    }

    fn left_user_at(&self) -> Option<u64> {
        self.marks.last
    }

    fn entered_user_at(&self) -> Option<u64> {
        self.marks.first
    }

    fn reset_user_marks(&mut self) {
        self.marks.first = None;
    }

    /// General and special registers. On KVM a run is no function of its inputs, so that this tells two states apart, and no
    /// more.
    fn state(&self) -> ProcessorsState {
        let registers = |cpu: &Cpu| format!("{:?}", cpu.registers());
        ProcessorsState::Kvm(self.cpus.iter().map(registers).collect())
    }
}
