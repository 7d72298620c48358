//! Measures this host's KVM: how fast guest kernel code runs, and whether SYSCALL works.
//!
//! It runs two guests of a few instructions: a loop at privilege level 0, and user code that executes SYSCALL.

use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::error::KvmError;
use super::vm;
use super::workarounds::Workarounds;
use super::x86::{EFER_SCE, IA32_LSTAR, IA32_STAR};
use crate::boot::layout::{PD, PDPT};
use crate::boot::load::entry_state;
use crate::memory::{GuestRam, MIN_RAM};

/// Guest physical addresses of the guests' code.
const CODE: u64 = 0x3_0000;
const KERNEL_ENTRY: u64 = 0x3_1000;
const STACK: u64 = 0x3_8000;
/// A port without a device: the guest ends by writing to it.
const PORT: u8 = 0xe0;
/// Iterations of the loop, two instructions each. On hardware they take microseconds, on an emulating host a few
/// milliseconds.
const ITERATIONS: u32 = 2000;
/// Descriptors of flat data and 64-bit code at privilege level 3.
const USER_DESCRIPTORS: [u64; 2] = [0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
/// RFLAGS with interrupts off.
const RFLAGS: u64 = softcpu::flags::FIXED;

/// How this host's KVM behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Instructions per second at privilege level 0.
    pub kernel_speed: f64,
    /// Whether SYSCALL at privilege level 3 arrives at privilege level 0.
    pub syscall_works: bool,
}

/// Runs both guests.
pub(super) fn measure(kvm: &Kvm, supported: &CpuId) -> Result<Measured, KvmError> {
    Ok(Measured {
        kernel_speed: kernel_speed(kvm, supported)?,
        syscall_works: syscall_works(kvm, supported)?,
    })
}

/// A guest with one vCPU at privilege level 0. The fields are dropped in this order: the RAM outlives the virtual
/// machine.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _ram: std::sync::Arc<GuestRam>,
}

fn guest(kvm: &Kvm, supported: &CpuId, code: &[(u64, &[u8])]) -> Result<Guest, KvmError> {
    let memory = |error: crate::memory::MemoryError| KvmError::new("guest RAM", error);
    let ram = GuestRam::new(MIN_RAM).map_err(memory)?;
    for (address, bytes) in code {
        ram.write(*address, bytes).map_err(memory)?;
    }
    let mut registers = entry_state(&ram).map_err(memory)?;
    let tables = USER_DESCRIPTORS.iter().flat_map(|word| word.to_le_bytes());
    let at = registers.gdtr.base + u64::from(registers.gdtr.limit) + 1;
    ram.write(at, &tables.collect::<Vec<u8>>()).map_err(memory)?;
    registers.gdtr.limit += 16;
    // The first 2 MiB, for user code too: present, writable, user; the leaf of page size 2 MiB.
    for (table, entry) in [
        (registers.cr3, PDPT | 0b111),
        (PDPT, PD | 0b111),
        (PD, 0b1000_0111),
    ] {
        ram.write(table, &entry.to_le_bytes()).map_err(memory)?;
    }
    registers.rip = CODE;
    registers.gpr[4] = STACK;
    registers.rflags = RFLAGS;
    let vm = vm::create(kvm, &Workarounds::default())?;
    vm::add_memory(&vm, &ram)?;
    let vcpu = vm::add_vcpu(supported, &vm, 0, 1, Some(&registers), &Workarounds::default())?;
    Ok(Guest {
        vcpu,
        _vm: vm,
        _ram: ram,
    })
}

fn kernel_speed(kvm: &Kvm, supported: &CpuId) -> Result<f64, KvmError> {
    let [a, b, c, d] = ITERATIONS.to_le_bytes();
    // mov ecx, ITERATIONS; 1: dec ecx; jnz 1b; out PORT, al
    let code = [0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0xe6, PORT];
    let mut guest = guest(kvm, supported, &[(CODE, &code)])?;
    let start = Instant::now();
    match guest.vcpu.run().map_err(KvmError::ioctl("KVM_RUN"))? {
        VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {}
        other => {
            return Err(KvmError::new(
                "KVM_RUN",
                format!("a loop of kernel code ended with {other:?}"),
            ));
        }
    }
    let seconds = start.elapsed().max(Duration::from_nanos(1)).as_secs_f64();
    Ok(f64::from(2 * ITERATIONS) / seconds)
}

/// The guest goes to privilege level 3 by IRETQ and executes SYSCALL there. Its page tables map everything for user
/// code too, so that a SYSCALL that leaves the level at 3 can still run the code at LSTAR, which outputs the level from
/// CS.
fn syscall_works(kvm: &Kvm, supported: &CpuId) -> Result<bool, KvmError> {
    const USER_SS: u16 = 0x23;
    const USER_CS: u16 = 0x2b;
    const USER: u64 = CODE + 0x800;
    // push SS; push RSP; push RFLAGS; push CS; push RIP; iretq
    let mut kernel = Vec::new();
    for value in [
        u64::from(USER_SS),
        STACK - 0x1000,
        RFLAGS,
        u64::from(USER_CS),
        USER,
    ] {
        // mov rax, value; push rax
        kernel.extend([0x48, 0xb8]);
        kernel.extend(value.to_le_bytes());
        kernel.push(0x50);
    }
    kernel.extend([0x48, 0xcf]);
    let user = [0x0f, 0x05];
    // mov eax, cs; out PORT, al. At level 3 the OUT faults, which without a handler is a shutdown.
    let entry = [0x8c, 0xc8, 0xe6, PORT];
    let mut guest = guest(
        kvm,
        supported,
        &[(CODE, &kernel), (USER, &user), (KERNEL_ENTRY, &entry)],
    )?;
    // By STAR, SYSCALL loads 0x10 to CS.
    let entries = [(IA32_STAR, 0x10 << 32), (IA32_LSTAR, KERNEL_ENTRY)].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs =
        Msrs::from_entries(&entries).map_err(|error| KvmError::new("MSR list", format!("{error:?}")))?;
    guest
        .vcpu
        .set_msrs(&msrs)
        .map_err(KvmError::ioctl("KVM_SET_MSRS"))?;
    let mut sregs = guest.vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
    sregs.efer |= EFER_SCE;
    guest
        .vcpu
        .set_sregs(&sregs)
        .map_err(KvmError::ioctl("KVM_SET_SREGS"))?;
    Ok(match guest.vcpu.run().map_err(KvmError::ioctl("KVM_RUN"))? {
        VcpuExit::IoOut(port, data) if port == u16::from(PORT) => data[0] & 3 == 0,
        _ => false,
    })
}
