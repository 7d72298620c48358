//! Measures this host's KVM: how fast guest kernel code runs, and whether SYSCALL works.
//!
//! It runs three small guests: a loop at privilege level 0, code at privilege level 0 that is executed a few times, and
//! user code that executes SYSCALL.

use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::error::KvmError;
use super::vm;
use super::workarounds::{EMULATED_BELOW, Workarounds};
use super::x86::{EFER_SCE, IA32_LSTAR, IA32_STAR};
use crate::boot::layout::{PD, PDPT};
use crate::boot::load::entry_state;
use crate::memory::{GuestRam, MIN_RAM, PAGE_SIZE};

/// Guest physical addresses of the guests' code.
const CODE: u64 = 0x3_0000;
const KERNEL_ENTRY: u64 = 0x3_1000;
const STACK: u64 = 0x3_8000;
/// The loop reads its number of iterations here, on a page without code.
const ITERATIONS: u64 = 0x3_2000;
/// Code that is executed a few times only.
const COLD_CODE: u64 = 0x10_0000;
/// A port without a device: a guest writes to it when it has finished a round.
const PORT: u8 = 0xe0;
/// Iterations of the loop's first rounds, two instructions each.
const FIRST_ITERATIONS: u32 = 2000;
/// A round this long is long enough: page faults, the exit itself and a busy host hardly count.
const LONG_ENOUGH: Duration = Duration::from_millis(10);
/// Rounds in a row that have to be long enough. The fastest of them counts, so that a busy host is not taken for a slow
/// one.
const LONG_ROUNDS: u32 = 4;
/// Rounds of cold code, of which the fastest counts, too. They are many and short, because a busy host interrupts a
/// round for longer than it takes.
const COLD_ROUNDS: u64 = 16;
/// How often a round executes its code: about as often as the average instruction of a kernel's boot.
const COLD_REPEATS: u64 = 16;
/// Bytes of cold code in a round.
const COLD_BYTES: u64 = 0x8000;
/// A basic block of cold code: add rax, rbx; mov [rsp-8], rax; xor rbx, [rsp-8]; jnz +0; nop.
const COLD_BLOCK: [u8; 16] = [
    0x48, 0x01, 0xd8, 0x48, 0x89, 0x44, 0x24, 0xf8, 0x48, 0x33, 0x5c, 0x24, 0xf8, 0x75, 0x00, 0x90,
];
/// Instructions in [`COLD_BLOCK`].
const COLD_BLOCK_INSTRUCTIONS: u64 = 5;
/// Descriptors of flat data and 64-bit code at privilege level 3.
const USER_DESCRIPTORS: [u64; 2] = [0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
/// RFLAGS with interrupts off.
const RFLAGS: u64 = softcpu::flags::FIXED;

/// How this host's KVM behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Instructions per second at privilege level 0, in a loop.
    pub kernel_speed: f64,
    /// Instructions per second at privilege level 0, in code that is executed a few times only. Hardware hardly cares.
    /// A processor that is itself translated by software, as QEMU's TCG does, is many times slower here.
    pub cold_speed: f64,
    /// Whether SYSCALL at privilege level 3 arrives at privilege level 0.
    pub syscall_works: bool,
}

/// Runs the guests.
pub(super) fn measure(kvm: &Kvm, supported: &CpuId) -> Result<Measured, KvmError> {
    let kernel_speed = kernel_speed(kvm, supported)?;
    let cold_speed = if kernel_speed < EMULATED_BELOW {
        // No code is executed natively, and this would take a second.
        kernel_speed
    } else {
        cold_speed(kvm, supported)?
    };
    Ok(Measured {
        kernel_speed,
        cold_speed,
        syscall_works: syscall_works(kvm, supported)?,
    })
}

/// A guest with one vCPU at privilege level 0. The fields are dropped in this order: the RAM outlives the virtual
/// machine.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    ram: std::sync::Arc<GuestRam>,
}

impl Guest {
    /// Runs until the guest has finished a round. Returns how long that took.
    fn round(&mut self) -> Result<Duration, KvmError> {
        let start = Instant::now();
        match self.vcpu.run().map_err(KvmError::ioctl("KVM_RUN"))? {
            VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {
                Ok(start.elapsed().max(Duration::from_nanos(1)))
            }
            other => {
                let reason = format!("a guest of a few instructions ended with {other:?}");
                Err(KvmError::new("KVM_RUN", reason))
            }
        }
    }
}

fn guest(kvm: &Kvm, supported: &CpuId, code: &[(u64, &[u8])]) -> Result<Guest, KvmError> {
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
    Ok(Guest { vcpu, _vm: vm, ram })
}

fn memory(error: crate::memory::MemoryError) -> KvmError {
    KvmError::new("guest RAM", error)
}

/// The first round is discarded: KVM maps the guest's pages in it. The loop then grows until its rounds are long
/// enough.
fn kernel_speed(kvm: &Kvm, supported: &CpuId) -> Result<f64, KvmError> {
    // 0: mov ecx, [ITERATIONS]; 1: dec ecx; jnz 1b; out PORT, al; jmp 0b
    let code = [
        0x8b, 0x0c, 0x25, 0x00, 0x20, 0x03, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xe6, PORT, 0xeb, 0xf1,
    ];
    let mut guest = guest(kvm, supported, &[(CODE, &code)])?;
    let mut iterations = FIRST_ITERATIONS;
    let mut round = |iterations: u32| {
        guest
            .ram
            .write(ITERATIONS, &iterations.to_le_bytes())
            .map_err(memory)?;
        guest.round()
    };
    round(iterations)?;
    loop {
        let mut fastest = Duration::MAX;
        for _ in 0..LONG_ROUNDS {
            fastest = fastest.min(round(iterations)?);
            if fastest < LONG_ENOUGH {
                break;
            }
        }
        match iterations.checked_mul(4).filter(|_| fastest < LONG_ENOUGH) {
            Some(more) => iterations = more,
            None => return Ok(2.0 * f64::from(iterations) / fastest.as_secs_f64()),
        }
    }
}

/// A first round reads a byte of each page of the code, so that KVM has mapped it when it is executed.
fn cold_speed(kvm: &Kvm, supported: &CpuId) -> Result<f64, KvmError> {
    let pages = COLD_ROUNDS * COLD_BYTES / PAGE_SIZE;
    let [a, b, c, d, ..] = COLD_CODE.to_le_bytes();
    let [count, ..] = pages.to_le_bytes();
    // mov esi, COLD_CODE; mov ecx, pages; 1: mov al, [rsi]; add rsi, 0x1000; dec ecx; jnz 1b; out PORT, al;
    // mov esi, COLD_CODE; jmp rsi
    let read = [
        0xbe, a, b, c, d, 0xb9, count, 0, 0, 0, 0x8a, 0x06, 0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0xff,
        0xc9, 0x75, 0xf3, 0xe6, PORT, 0xbe, a, b, c, d, 0xff, 0xe6,
    ];
    let blocks = COLD_BYTES / 16 - 2;
    let [count, ..] = COLD_REPEATS.to_le_bytes();
    let back = (-16 * i64::try_from(blocks).unwrap_or(0) - 8).to_le_bytes();
    let mut new = Vec::new();
    for _ in 0..COLD_ROUNDS {
        // mov ecx, COLD_REPEATS; 1: the blocks; dec ecx; jnz 1b; out PORT, al. NOPs make 16 bytes of what is around
        // them.
        new.extend([0xb9, count, 0, 0, 0]);
        new.extend([0x90; 11]);
        (0..blocks).for_each(|_| new.extend(COLD_BLOCK));
        new.extend([
            0xff, 0xc9, 0x0f, 0x85, back[0], back[1], back[2], back[3], 0xe6, PORT,
        ]);
        new.extend([0x90; 6]);
    }
    let mut guest = guest(kvm, supported, &[(CODE, &read), (COLD_CODE, &new)])?;
    guest.round()?;
    let mut fastest = Duration::MAX;
    for _ in 0..COLD_ROUNDS {
        fastest = fastest.min(guest.round()?);
    }
    #[allow(clippy::cast_precision_loss)] // some hundred thousand
    let instructions = (COLD_REPEATS * blocks * COLD_BLOCK_INSTRUCTIONS) as f64;
    Ok(instructions / fastest.as_secs_f64())
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
