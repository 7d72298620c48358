//! One software processor: softcpu on the machine's RAM.

use std::sync::Arc;

use softcpu::memory::{Ram, RamRegion};
use softcpu::{Cpu, CpuModel};

use crate::devices::bus::CRYSTAL_HZ;
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::vcpu::{
    BackendError, Bus, CodeChange, CpuState, CpuWrite, Exit, LentCode, Look, Registers, Shutdown,
    Translation, Vcpu, WarmCode,
};

/// One software processor. `ram` points into `_owner` and so is declared, and dropped, before it.
pub(super) struct SoftVcpu {
    cpu: Cpu,
    ram: Ram,
    _owner: Arc<GuestRam>,
}

impl SoftVcpu {
    /// A processor after power-on, with this local APIC identity, in a machine with `count` processors.
    pub fn new(
        ram: Arc<GuestRam>,
        apic_id: u8,
        count: u8,
        translation: Translation,
    ) -> Result<Self, BackendError> {
        let view = own_view(&ram)?;
        let model = CpuModel {
            apic_id: apic_id.into(),
            processors: count.into(),
            crystal_hz: CRYSTAL_HZ,
            ..CpuModel::default()
        };
        let mut cpu = Cpu::new(model);
        cpu.translate(translation);
        Ok(Self {
            cpu,
            ram: view,
            _owner: ram,
        })
    }

    /// A processor restored from `state`.
    pub fn from_state(ram: Arc<GuestRam>, state: &CpuState) -> Result<Self, BackendError> {
        let view = own_view(&ram)?;
        let cpu = Cpu::from_state(state, &view).map_err(|error| BackendError {
            backend: "soft",
            reason: error.to_string(),
        })?;
        Ok(Self {
            cpu,
            ram: view,
            _owner: ram,
        })
    }
}

/// The view for a [`SoftVcpu`], whose `_owner` is `ram`.
#[allow(unsafe_code)]
fn own_view(ram: &Arc<GuestRam>) -> Result<Ram, BackendError> {
    // SAFETY: SoftVcpu's `_owner` keeps the mappings for as long as the view. The machine runs processors and devices
    // in turn on one thread. A device accesses guest memory in SystemBus::advance, or in an access that the processor
    // makes through the bus.
    unsafe { ram_view(ram) }
}

/// softcpu's view of guest RAM.
///
/// # Safety
/// The caller keeps `ram` for as long as the view. While a method of softcpu runs that is given the view, nothing else
/// may access guest RAM: no other thread of this process, and no vCPU of KVM. Excepted is the bus that the method is
/// given.
#[allow(unsafe_code)]
pub(crate) unsafe fn ram_view(ram: &Arc<GuestRam>) -> Result<Ram, BackendError> {
    let regions: Vec<RamRegion> = ram
        .host_regions()
        .map(|(guest_physical, host, len)| RamRegion {
            guest_physical,
            host,
            len,
        })
        .collect();
    // SAFETY: the regions are the mappings that `ram` owns, and the caller keeps it and excludes other accesses. Nobody
    // holds Rust references into them, because vm-memory accesses guest memory through volatile copies only.
    let view = unsafe { Ram::from_raw(&regions) };
    view.map_err(|error| BackendError {
        backend: "soft",
        reason: error.to_string(),
    })
}

impl Vcpu for SoftVcpu {
    fn registers(&self) -> Registers {
        Registers::from(&self.cpu.registers())
    }

    fn take_code(&mut self) -> Option<WarmCode> {
        Some(self.cpu.take_code(&self.ram))
    }

    fn give_code(&mut self, code: WarmCode) {
        self.cpu.give_code(code);
    }

    fn translate(&mut self, which: Translation) {
        self.cpu.translate(which);
    }

    fn look(&mut self) -> Option<Look> {
        Some(Look {
            registers: self.cpu.registers(),
            block: self.cpu.block_length(),
        })
    }

    fn syscall_entry(&self) -> u64 {
        self.cpu.syscall_entry()
    }

    fn set_registers(&mut self, registers: &Registers) {
        let mut state = self.cpu.registers();
        registers.copy_to(&mut state);
        self.cpu.set_registers(&state);
    }

    fn run(&mut self, bus: &mut dyn Bus, until: u64) -> Exit {
        self.cpu.run(&mut self.ram, bus, until)
    }

    fn now(&self) -> u64 {
        self.cpu.now()
    }

    fn skip_to(&mut self, time: u64) {
        self.cpu.skip_to(time);
    }

    fn shift_tsc(&mut self, by: i64) {
        self.cpu.shift_tsc(by);
    }

    fn retired(&self) -> u64 {
        self.cpu.retired()
    }

    fn task_priority(&self) -> u8 {
        (self.cpu.registers().cr8 & 0xf) as u8
    }

    fn can_take_interrupt(&self) -> bool {
        self.cpu.can_take_interrupt()
    }

    fn inject_interrupt(&mut self, bus: &mut dyn Bus, vector: u8) -> Result<(), Shutdown> {
        self.cpu.inject_interrupt(&mut self.ram, bus, vector)
    }

    fn request_interrupt_window(&mut self, wanted: bool) {
        self.cpu.request_interrupt_window(wanted);
    }

    fn stop_on_pause(&mut self, wanted: bool) {
        self.cpu.stop_on_pause(wanted);
    }

    fn can_take_nmi(&self) -> bool {
        self.cpu.can_take_nmi()
    }

    fn inject_nmi(&mut self, bus: &mut dyn Bus) -> Result<(), Shutdown> {
        self.cpu.inject_nmi(&mut self.ram, bus)
    }

    fn share_code(&mut self) {
        self.cpu.share_code();
    }

    fn lend_code(&mut self) -> LentCode {
        self.cpu.lend_code()
    }

    fn receive_code(&mut self, code: LentCode) {
        self.cpu.receive_code(code);
    }

    fn take_code_changes(&mut self) -> Vec<CodeChange> {
        self.cpu.take_code_changes()
    }

    fn follow_code(&mut self, changes: &[CodeChange]) {
        self.cpu.follow(&self.ram, changes);
    }

    fn memory_written(&mut self, address: u64, length: u64) {
        self.cpu.memory_written(&self.ram, address, length);
    }

    fn stop_on_low_supervisor_fetch(&mut self, wanted: bool) {
        self.cpu.stop_on_low_supervisor_fetch(wanted);
    }

    fn await_addresses(&mut self, addresses: &[u64], mask: u64) {
        self.cpu.await_addresses(addresses, mask);
    }

    fn watch_writes(&mut self, pfn: u64, on: bool) {
        self.cpu.watch_writes(&self.ram, pfn * PAGE_SIZE, on);
    }

    fn last_write(&self, address: u64) -> Option<CpuWrite> {
        self.cpu.last_write(&self.ram, address)
    }

    fn watch_first_access(&mut self, pfn: u64) {
        self.cpu.watch_first_access(&self.ram, pfn * PAGE_SIZE);
    }

    fn first_access(&self, pfn: u64) -> Option<u64> {
        self.cpu.first_access(&self.ram, pfn * PAGE_SIZE)
    }

    fn epoch_writes(&self, each: &mut dyn FnMut(CpuWrite)) {
        self.cpu.epoch_writes().iter().for_each(|write| each(*write));
    }

    fn begin_write_epoch(&mut self) {
        self.cpu.begin_write_epoch(&self.ram);
    }

    fn left_user_at(&self) -> Option<u64> {
        self.cpu.left_user_at()
    }

    fn entered_user_at(&self) -> Option<u64> {
        self.cpu.entered_user_at()
    }

    fn reset_user_marks(&mut self) {
        self.cpu.reset_user_marks();
    }

    fn state(&self) -> CpuState {
        self.cpu.state(&self.ram)
    }
}
