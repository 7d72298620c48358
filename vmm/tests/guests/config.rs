//! The machine that a guest runs on, and the kernel image that carries the guest's code.

use vmm::boot::layout::{
    BOOT_FLAG, EXTENDED_START, HEADER_MAGIC, KERNEL_MIN, LOADED_HIGH, MIN_VERSION, XLF_KERNEL_64, offset,
};
use vmm::devices::dma::{BusMaster, DmaConfig};
use vmm::ledger::DEFAULT_CAPACITY;
use vmm::machine::MachineConfig;
use vmm::memory::MIN_RAM;

/// Offset of the protected-mode code in an image with one sector of setup behind the boot sector.
const CODE_OFFSET: usize = 1024;

/// The smallest bzImage that the loader accepts, with `parts` at these offsets of its 64 KiB of code.
pub fn bz_image(parts: &[(usize, &[u8])]) -> Vec<u8> {
    const CODE_BYTES: usize = 0x1_0000;
    let mut file = vec![0; CODE_OFFSET + CODE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset::SETUP_SECTS, &[1]);
    put(
        offset::SYSSIZE,
        &u32::try_from(CODE_BYTES / 16).unwrap().to_le_bytes(),
    );
    put(offset::BOOT_FLAG, &BOOT_FLAG.to_le_bytes());
    // A short JMP over a header that reaches the field INIT_SIZE.
    put(offset::HEADER_JUMP, &[0x6a]);
    put(offset::HEADER_MAGIC, &HEADER_MAGIC.to_le_bytes());
    put(offset::VERSION, &MIN_VERSION.to_le_bytes());
    put(offset::LOADFLAGS, &[LOADED_HIGH]);
    put(offset::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes());
    put(offset::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    put(offset::RELOCATABLE_KERNEL, &[1]);
    put(offset::XLOADFLAGS, &XLF_KERNEL_64.to_le_bytes());
    put(offset::CMDLINE_SIZE, &2047_u32.to_le_bytes());
    put(offset::PREF_ADDRESS, &KERNEL_MIN.to_le_bytes());
    put(
        offset::INIT_SIZE,
        &u32::try_from(EXTENDED_START).unwrap().to_le_bytes(),
    );
    for (at, bytes) in parts {
        put(CODE_OFFSET + at, bytes);
    }
    file
}

/// A machine of the smallest size with one processor.
pub fn machine_config(kernel: Vec<u8>) -> MachineConfig {
    MachineConfig {
        ram_bytes: MIN_RAM,
        kernel,
        initramfs: Vec::new(),
        command_line: String::new(),
        seed: 1,
        dma: DmaConfig {
            rate: 100_000_000,
            seed: 1,
            bus_master: BusMaster::Retained,
            ..DmaConfig::default()
        },
        progress_limit_ns: 1_000_000,
        vcpus: 1,
        ledger_entries: DEFAULT_CAPACITY,
        injections: Vec::new(),
        handover: None,
        device_memory: None,
    }
}
