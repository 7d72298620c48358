//! One software processor: softcpu on the machine's RAM.

use std::sync::Arc;

use softcpu::memory::{Ram, RamRegion};
use softcpu::registers as soft;
use softcpu::{Cpu, CpuModel};

use crate::devices::bus::CRYSTAL_HZ;
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::vcpu::{
    BackendError, Bus, CpuState, CpuWrite, DescriptorTable, Exit, Registers, Segment, Shutdown, Vcpu,
};

/// One software processor. `ram` points into `_owner` and so is declared, and dropped, before it.
pub(super) struct SoftVcpu {
    cpu: Cpu,
    ram: Ram,
    _owner: Arc<GuestRam>,
}

impl SoftVcpu {
    /// A processor with this local APIC identity, of `count`.
    pub fn new(ram: Arc<GuestRam>, apic_id: u8, count: u8) -> Result<Self, BackendError> {
        let view = own_view(&ram)?;
        let model = CpuModel {
            apic_id: apic_id.into(),
            processors: count.into(),
            crystal_hz: CRYSTAL_HZ,
            ..CpuModel::default()
        };
        let mut cpu = Cpu::new(model);
        if count > 1 {
            cpu.share_code();
        }
        Ok(Self {
            cpu,
            ram: view,
            _owner: ram,
        })
    }

    /// A processor in this state.
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

/// The view of a [`SoftVcpu`], which keeps `ram`.
#[allow(unsafe_code)]
fn own_view(ram: &Arc<GuestRam>) -> Result<Ram, BackendError> {
    // SAFETY: SoftVcpu's `_owner` keeps the mappings for as long as the view. The machine runs processors and devices in
    // turn on one thread. A device accesses guest memory in SystemBus::advance only, never in an access that the processor
    // makes.
    unsafe { ram_view(ram) }
}

/// softcpu's view of guest RAM.
///
/// # Safety
/// The caller keeps `ram` for as long as the view. While a method of softcpu runs that is given the view, nothing else
/// may access guest RAM: no other thread of this process, and no vCPU of KVM.
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
        registers_out(&self.cpu.registers())
    }

    fn set_registers(&mut self, registers: &Registers) {
        let state = registers_in(registers, self.cpu.registers());
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

    fn take_new_code(&mut self) -> Vec<u64> {
        let mut pages = self.cpu.take_new_code(&self.ram);
        pages.iter_mut().for_each(|page| *page /= PAGE_SIZE);
        pages
    }

    fn has_code(&self, pfn: u64) -> bool {
        self.cpu.has_code(&self.ram, pfn * PAGE_SIZE)
    }

    fn guard(&mut self, pfn: u64, on: bool) {
        self.cpu.guard(&self.ram, pfn * PAGE_SIZE, on);
    }

    fn take_guarded_writes(&mut self) -> Vec<(u64, u64)> {
        self.cpu.take_guarded_writes(&self.ram)
    }

    fn memory_written(&mut self, address: u64, length: u64) {
        self.cpu.memory_written(&self.ram, address, length);
    }

    fn stop_on_low_supervisor_fetch(&mut self, wanted: bool) {
        self.cpu.stop_on_low_supervisor_fetch(wanted);
    }

    fn watch_writes(&mut self, pfn: u64, on: bool) {
        self.cpu.watch_writes(&self.ram, pfn * PAGE_SIZE, on);
    }

    fn last_write(&self, address: u64) -> Option<CpuWrite> {
        self.cpu.last_write(&self.ram, address).map(write_out)
    }

    fn epoch_writes(&self, each: &mut dyn FnMut(CpuWrite)) {
        for record in self.cpu.epoch_writes() {
            each(write_out(*record));
        }
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

/// Our registers from softcpu's.
pub(crate) fn registers_out(state: &soft::Registers) -> Registers {
    Registers {
        gpr: state.gpr,
        rip: state.rip,
        rflags: state.rflags,
        segments: state.segments.map(segment_out),
        tr: segment_out(state.tr),
        gdtr: DescriptorTable {
            base: state.gdtr.base,
            limit: state.gdtr.limit,
        },
        idtr: DescriptorTable {
            base: state.idtr.base,
            limit: state.idtr.limit,
        },
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
    }
}

/// softcpu's registers from ours; what ours do not have stays as in `rest`.
pub(crate) fn registers_in(registers: &Registers, rest: soft::Registers) -> soft::Registers {
    soft::Registers {
        gpr: registers.gpr,
        rip: registers.rip,
        rflags: registers.rflags,
        segments: registers.segments.map(segment_in),
        tr: segment_in(registers.tr),
        gdtr: soft::TableRegister {
            base: registers.gdtr.base,
            limit: registers.gdtr.limit,
        },
        idtr: soft::TableRegister {
            base: registers.idtr.base,
            limit: registers.idtr.limit,
        },
        cr0: registers.cr0,
        cr2: registers.cr2,
        cr3: registers.cr3,
        cr4: registers.cr4,
        efer: registers.efer,
        ..rest
    }
}

fn segment_out(segment: soft::Segment) -> Segment {
    let soft::Segment {
        selector,
        base,
        limit,
        attributes,
    } = segment;
    Segment {
        selector,
        base,
        limit,
        attributes,
    }
}

fn segment_in(segment: Segment) -> soft::Segment {
    let Segment {
        selector,
        base,
        limit,
        attributes,
    } = segment;
    soft::Segment {
        selector,
        base,
        limit,
        attributes,
    }
}

pub(crate) fn write_out(record: softcpu::WriteRecord) -> CpuWrite {
    CpuWrite {
        address: record.gpa,
        length: record.len.into(),
        rip: record.rip,
        time: record.time,
        privilege: if record.user { 3 } else { 0 },
    }
}
