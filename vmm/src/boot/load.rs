//! Places kernel, initramfs, command line and zero page in RAM, and returns the registers at the kernel's entry point.

use std::io::Cursor;
use std::ops::Range;

use kho_core::KhoData;
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage as Loader;
use thiserror::Error;
use vm_memory::GuestAddress;

use super::bzimage::{BzImage, ImageError};
use super::layout::{
    ACPI_TABLES, BOOT_PARAMS, BOOT_PARAMS_SIZE, COMMAND_LINE, COMMAND_LINE_ROOM, CONVENTIONAL_END, E820_ACPI,
    E820_ENTRY_BYTES, E820_NVS, E820_RAM, E820_RESERVED, ENTRY_64, EXTENDED_START, GDT, KERNEL_MIN, KHO_NODE,
    PD, PD_COUNT, PDPT, PML4, RNG_SEED, SETUP_DATA_HEADER, SETUP_RNG_SEED, WAKEUP, offset,
};
use crate::memory::{GuestRam, MemoryError, PAGE_SIZE};
use crate::vcpu::{RSI, Registers, TableRegister};

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct BootRequest<'a> {
    /// A bzImage.
    pub kernel: &'a [u8],
    /// A cpio archive, or nothing.
    pub initramfs: &'a [u8],
    /// Kernel command line.
    pub command_line: &'a str,
    /// Seed for the guest's random number generator.
    pub rng_seed: [u8; 32],
    /// Guest physical address of the ACPI RSDP.
    pub rsdp: u64,
    /// Whether the processor has 1 GiB pages.
    pub gigabyte_pages: bool,
    /// Whether processors wait in [`super::wakeup`]'s firmware. The memory map then reserves its pages.
    pub wakeup: bool,
    /// What another kernel is said to have handed over; `None` for a kernel that is the first.
    pub handover: Option<&'a HandedOver>,
    /// RAM at the end of its region below 4 GiB that belongs to a device. The memory map reserves it, so that no kernel
    /// uses it, and a kexec tells the next kernel the same.
    pub device_memory: Option<&'a Range<u64>>,
}

impl BootRequest<'_> {
    /// End of the RAM below 4 GiB that kernels may use.
    fn low_end(&self, ram: &GuestRam) -> u64 {
        self.device_memory.map_or(ram.low_end(), |device| device.start)
    }
}

/// A handover that is in memory when the machine is switched on, as if another kernel had left it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOver {
    /// What the `setup_data` node says.
    pub kho: KhoData,
    /// The scratch areas. Kernel and initramfs are placed there, as a kexec does.
    pub scratch: Vec<Range<u64>>,
}

/// Why a kernel cannot be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The image is not bootable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The loader refused the image.
    #[error("kernel image cannot be loaded")]
    Loader(#[from] linux_loader::loader::Error),
    /// The kernel does not fit.
    #[error("kernel needs {init_size} bytes of RAM from {address:#x} on, but RAM ends at {ram_end:#x}")]
    KernelTooLarge {
        /// Load address.
        address: u64,
        /// Bytes needed from there.
        init_size: u64,
        /// End of RAM below 4 GiB.
        ram_end: u64,
    },
    /// The initramfs does not fit.
    #[error("initramfs of {bytes} bytes does not fit between the kernel's end at {from:#x} and {to:#x}")]
    InitramfsTooLarge {
        /// Size of the initramfs.
        bytes: u64,
        /// Where it could begin.
        from: u64,
        /// Where it must end.
        to: u64,
    },
    /// The kernel does not fit the scratch areas of a handover.
    #[error(
        "kernel needs {init_size} bytes of scratch below {ram_end:#x}, aligned to {alignment:#x}, and there are {found}"
    )]
    KernelOutsideScratch {
        /// Bytes needed.
        init_size: u64,
        /// Alignment of the load address.
        alignment: u64,
        /// End of RAM below 4 GiB.
        ram_end: u64,
        /// Bytes of all areas.
        found: u64,
    },
    /// The initramfs does not fit the scratch areas beside the kernel.
    #[error("initramfs of {bytes} bytes does not fit the scratch areas beside the kernel")]
    InitramfsOutsideScratch {
        /// Size of the initramfs.
        bytes: u64,
    },
    /// The command line is too long for the kernel.
    #[error("kernel command line has {found} bytes: the kernel takes at most {expected}")]
    CommandLineTooLong {
        /// Length of the command line.
        found: u64,
        /// Most that this kernel takes.
        expected: u64,
    },
    /// The command line holds a NUL byte.
    #[error("kernel command line has a NUL byte at offset {at}")]
    CommandLineNul {
        /// Its offset.
        at: usize,
    },
    /// The machine's own layout does not fit its RAM.
    #[error("boot data cannot be written")]
    Memory(#[from] MemoryError),
}

/// Loads everything and returns the registers of the first processor.
pub fn load(ram: &GuestRam, request: &BootRequest<'_>) -> Result<Registers, BootError> {
    let image = BzImage::parse(request.kernel)?;
    let address = match request.handover {
        Some(handover) => scratch_for_kernel(ram, &image, &handover.scratch)?,
        None => kernel_address(request.low_end(ram), &image)?,
    };
    let kernel_end = address + image.init_size;
    let loaded = Loader::load(
        ram.map(),
        Some(GuestAddress(address)),
        &mut Cursor::new(image.file),
        None,
    )?;
    ram.mark(address, loaded.kernel_end - address);

    let initramfs = match request.handover {
        Some(handover) => {
            let bytes = request.initramfs.len() as u64;
            let kernel = address..kernel_end;
            let at = scratch_for_initramfs(ram, &image, &kernel, bytes, &handover.scratch)?;
            ram.write(at, request.initramfs)?;
            at
        }
        None => place_initramfs(ram, &image, kernel_end, request)?,
    };
    write_command_line(ram, &image, request.command_line)?;
    write_rng_seed(ram, &request.rng_seed)?;
    if let Some(handover) = request.handover {
        ram.write(KHO_NODE, &handover.kho.to_node(RNG_SEED))?;
    }
    write_boot_params(ram, &image, request, initramfs)?;
    write_page_tables(ram, request.gigabyte_pages)?;
    let mut registers = entry_state(ram)?;
    registers.rip = address + ENTRY_64;
    Ok(registers)
}

fn kernel_address(ram_end: u64, image: &BzImage<'_>) -> Result<u64, BootError> {
    let too_large = |address| BootError::KernelTooLarge {
        address,
        init_size: image.init_size,
        ram_end,
    };
    let address = if image.relocatable {
        KERNEL_MIN.next_multiple_of(image.alignment)
    } else {
        image.pref_address
    };
    let end = address
        .checked_add(image.init_size)
        .ok_or_else(|| too_large(address))?;
    if address < EXTENDED_START || end > ram_end {
        return Err(too_large(address));
    }
    Ok(address)
}

/// The lowest address in scratch that the kernel fits, as for a kexec: at the earliest where kernels are placed.
fn scratch_for_kernel(ram: &GuestRam, image: &BzImage<'_>, scratch: &[Range<u64>]) -> Result<u64, BootError> {
    let (start, alignment) = if image.relocatable {
        (KERNEL_MIN, image.alignment)
    } else {
        (image.pref_address, 1)
    };
    let fits = |area: &Range<u64>| {
        let address = area.start.max(start).checked_next_multiple_of(alignment)?;
        let end = address.checked_add(image.init_size)?;
        let moved = !image.relocatable && address != image.pref_address;
        (end <= area.end.min(ram.low_end()) && !moved).then_some(address)
    };
    let found = scratch.iter().map(|area| area.end.saturating_sub(area.start));
    scratch
        .iter()
        .filter_map(fits)
        .min()
        .ok_or(BootError::KernelOutsideScratch {
            init_size: image.init_size,
            alignment,
            ram_end: ram.low_end(),
            found: found.fold(0, u64::saturating_add),
        })
}

/// The highest address in scratch that an initramfs fits beside the kernel.
fn scratch_for_initramfs(
    ram: &GuestRam,
    image: &BzImage<'_>,
    kernel: &Range<u64>,
    bytes: u64,
    scratch: &[Range<u64>],
) -> Result<u64, BootError> {
    let limit = ram.low_end().min(image.initrd_addr_max.saturating_add(1));
    // What is left of an area that the kernel is in.
    let parts = |area: &Range<u64>| {
        [
            area.start.max(EXTENDED_START)..area.end.min(kernel.start),
            area.start.max(kernel.end)..area.end,
        ]
    };
    let fits = |part: Range<u64>| {
        let address = part.end.min(limit).checked_sub(bytes)? / PAGE_SIZE * PAGE_SIZE;
        (address >= part.start).then_some(address)
    };
    let found = scratch.iter().flat_map(parts).filter_map(fits).max();
    found.ok_or(BootError::InitramfsOutsideScratch { bytes })
}

/// As high as the kernel allows, to leave low memory free.
fn place_initramfs(
    ram: &GuestRam,
    image: &BzImage<'_>,
    kernel_end: u64,
    request: &BootRequest<'_>,
) -> Result<u64, BootError> {
    let bytes = request.initramfs.len() as u64;
    if bytes == 0 {
        return Ok(0);
    }
    let to = request.low_end(ram).min(image.initrd_addr_max.saturating_add(1));
    let address = to.checked_sub(bytes).map(|start| start / PAGE_SIZE * PAGE_SIZE);
    match address {
        Some(address) if address >= kernel_end && u32::try_from(bytes).is_ok() => {
            ram.write(address, request.initramfs)?;
            Ok(address)
        }
        _ => Err(BootError::InitramfsTooLarge {
            bytes,
            from: kernel_end,
            to,
        }),
    }
}

fn write_command_line(ram: &GuestRam, image: &BzImage<'_>, line: &str) -> Result<(), BootError> {
    let expected = image.cmdline_size.min(COMMAND_LINE_ROOM - 1);
    let found = line.len() as u64;
    if found > expected {
        return Err(BootError::CommandLineTooLong { found, expected });
    }
    if let Some(at) = line.bytes().position(|byte| byte == 0) {
        return Err(BootError::CommandLineNul { at });
    }
    ram.write(COMMAND_LINE, line.as_bytes())?;
    ram.write(COMMAND_LINE + found, &[0])?;
    Ok(())
}

fn write_rng_seed(ram: &GuestRam, seed: &[u8; 32]) -> Result<(), MemoryError> {
    let mut node = Vec::with_capacity(48);
    node.extend_from_slice(&0_u64.to_le_bytes());
    node.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node.extend_from_slice(&32_u32.to_le_bytes());
    debug_assert_eq!(node.len() as u64, SETUP_DATA_HEADER);
    node.extend_from_slice(seed);
    ram.write(RNG_SEED, &node)
}

fn write_boot_params(
    ram: &GuestRam,
    image: &BzImage<'_>,
    request: &BootRequest<'_>,
    initramfs: u64,
) -> Result<(), MemoryError> {
    let mut page = vec![0; BOOT_PARAMS_SIZE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(offset::SETUP_SECTS, image.header());
    put(offset::ACPI_RSDP_ADDR, &request.rsdp.to_le_bytes());
    put(offset::TYPE_OF_LOADER, &[0xff]);
    put(offset::RAMDISK_IMAGE, &low_half(initramfs));
    put(offset::RAMDISK_SIZE, &low_half(request.initramfs.len() as u64));
    put(offset::CMD_LINE_PTR, &low_half(COMMAND_LINE));
    let first_node = request.handover.map_or(RNG_SEED, |_| KHO_NODE);
    put(offset::SETUP_DATA, &first_node.to_le_bytes());
    let map = e820(ram, request.wakeup, request.device_memory);
    put(
        offset::E820_ENTRIES,
        &[u8::try_from(map.len()).unwrap_or(u8::MAX)],
    );
    for (index, (start, end, kind)) in map.into_iter().enumerate() {
        let at = offset::E820_TABLE + index * E820_ENTRY_BYTES;
        put(at, &start.to_le_bytes());
        put(at + 8, &(end - start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    ram.write(BOOT_PARAMS, &page)
}

/// The lower half of an address or size that the loader has kept below 4 GiB.
fn low_half(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

/// The memory map: (start, end, type).
fn e820(ram: &GuestRam, wakeup: bool, device_memory: Option<&Range<u64>>) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, CONVENTIONAL_END, E820_RAM),
        (CONVENTIONAL_END, 0xa_0000, E820_RESERVED),
    ];
    if wakeup {
        map.push((ACPI_TABLES, WAKEUP, E820_ACPI));
        map.push((WAKEUP, EXTENDED_START, E820_NVS));
    } else {
        map.push((ACPI_TABLES, EXTENDED_START, E820_ACPI));
    }
    for region in ram.regions() {
        let device = device_memory.filter(|device| device.end == region.end);
        let end = device.map_or(region.end, |device| device.start);
        map.push((region.start.max(EXTENDED_START), end, E820_RAM));
        map.extend(device.map(|device| (device.start, device.end, E820_RESERVED)));
    }
    map
}

/// Identity mapping of the first 512 GiB in 1 GiB pages: two pages of tables for any size of RAM. Without such pages,
/// of the first 4 GiB in 2 MiB pages.
fn write_page_tables(ram: &GuestRam, gigabyte_pages: bool) -> Result<(), MemoryError> {
    if gigabyte_pages {
        return write_gigabyte_tables(ram, PML4, PDPT);
    }
    ram.write(PML4, &(PDPT | TABLE).to_le_bytes())?;
    for number in 0..PD_COUNT {
        let directory = PD + number * PAGE_SIZE;
        ram.write(PDPT + number * 8, &(directory | TABLE).to_le_bytes())?;
        let leaves: Vec<u8> = (0..512_u64)
            .flat_map(|page| (number << 30 | page << 21 | LEAF).to_le_bytes())
            .collect();
        ram.write(directory, &leaves)?;
    }
    Ok(())
}

/// Page-table entry: present, writable.
const TABLE: u64 = 0b11;
/// Page-table entry: present, writable, page size.
const LEAF: u64 = 0b1000_0011;

/// Identity mapping of the first 512 GiB by two tables at these addresses.
pub(super) fn write_gigabyte_tables(ram: &GuestRam, pml4: u64, pdpt_at: u64) -> Result<(), MemoryError> {
    ram.write(pml4, &(pdpt_at | TABLE).to_le_bytes())?;
    let pdpt: Vec<u8> = (0..512_u64)
        .flat_map(|gigabyte| (gigabyte << 30 | LEAF).to_le_bytes())
        .collect();
    ram.write(pdpt_at, &pdpt)
}

/// Writes the GDT, and returns the registers at entry according to the boot protocol; the caller sets RIP.
pub(crate) fn entry_state(ram: &GuestRam) -> Result<Registers, MemoryError> {
    write_gdt(ram, GDT)?;
    let mut registers = entry_registers(GDT, PML4);
    registers.gpr[RSI] = BOOT_PARAMS;
    Ok(registers)
}

/// Bytes of the GDT: two null descriptors, code, data.
pub(super) const GDT_BYTES: u16 = 32;

/// Writes the GDT that the boot protocol requires.
pub(super) fn write_gdt(ram: &GuestRam, at: u64) -> Result<(), MemoryError> {
    const CODE: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let gdt: Vec<u8> = [0, 0, CODE, DATA]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    ram.write(at, &gdt)
}

/// The registers at entry according to the boot protocol, with the GDT and the page tables at these addresses. The
/// caller sets RIP and RSI.
pub(super) fn entry_registers(gdt: u64, pml4: u64) -> Registers {
    Registers {
        gdtr: TableRegister {
            base: gdt,
            limit: GDT_BYTES - 1,
        },
        cr3: pml4,
        ..Registers::from(&softcpu::Registers::default())
    }
}

#[cfg(test)]
mod tests {
    use super::super::bzimage::tests::image;
    use super::super::handover::BootParams;
    use super::*;
    use crate::memory::MIN_RAM;

    fn request<'a>(kernel: &'a [u8], initramfs: &'a [u8], command_line: &'a str) -> BootRequest<'a> {
        BootRequest {
            kernel,
            initramfs,
            command_line,
            rng_seed: [7; 32],
            rsdp: ACPI_TABLES,
            gigabyte_pages: true,
            wakeup: false,
            handover: None,
            device_memory: None,
        }
    }

    #[test]
    fn memory_of_a_device_is_reserved_and_nothing_is_placed_in_it() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let (kernel, initramfs, device) = (image(4096), vec![7; 1 << 20], 60 << 20..64 << 20);
        let request = BootRequest {
            device_memory: Some(&device),
            ..request(&kernel, &initramfs, "")
        };
        let registers = load(&ram, &request).unwrap();
        let params = BootParams::read(&ram, registers.gpr[RSI]).unwrap();
        assert_eq!(params.initrd_address, 59 << 20);
        let last: Vec<_> = params.e820.iter().rev().take(2).collect();
        assert_eq!(
            (last[0].address, last[0].length, last[0].kind),
            (60 << 20, 4 << 20, E820_RESERVED)
        );
        assert_eq!(
            (last[1].address + last[1].length, last[1].kind),
            (60 << 20, E820_RAM)
        );
    }

    /// A handover with these scratch areas, in MiB.
    fn handed(scratch: &[(u64, u64)]) -> HandedOver {
        let region = |number: u64| kho_core::Region::new(number << 20, 4096);
        HandedOver {
            kho: KhoData {
                fdt: region(12),
                scratch: region(13),
            },
            scratch: scratch
                .iter()
                .map(|(start, end)| start << 20..end << 20)
                .collect(),
        }
    }

    #[test]
    fn a_handover_is_announced_and_the_kernel_lies_in_scratch() {
        let ram = GuestRam::new(64 << 20).unwrap();
        let kernel = image(4096);
        let initramfs = vec![7; 3 << 20];
        let with = |handover: &HandedOver| {
            let request = BootRequest {
                handover: Some(handover),
                ..request(&kernel, &initramfs, "")
            };
            load(&ram, &request)
        };
        // The first area is too low for a kernel.
        let registers = with(&handed(&[(2, 8), (21, 26), (40, 60)])).unwrap();
        let params = BootParams::read(&ram, registers.gpr[RSI]).unwrap();
        let load_address = registers.rip - ENTRY_64;
        assert!((21 << 20..26 << 20).contains(&load_address), "{load_address:#x}");
        assert_eq!(params.initrd_address, 57 << 20);
        assert_eq!(params.kho_data(&ram).unwrap(), Some(handed(&[]).kho));
        assert_eq!(params.setup_data(&ram).unwrap().len(), 2);

        let error = with(&handed(&[(2, 8)])).unwrap_err();
        assert!(
            matches!(error, BootError::KernelOutsideScratch { found: 0x60_0000, .. }),
            "{error}"
        );
        let error = with(&handed(&[(20, 22)])).unwrap_err();
        assert!(
            matches!(error, BootError::InitramfsOutsideScratch { .. }),
            "{error}"
        );
    }

    #[test]
    fn what_is_loaded_is_what_the_reader_finds() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let mut kernel = image(4096);
        kernel[1024 + 0x200] = 0xf4;
        let registers = load(&ram, &request(&kernel, b"initramfs", "console=ttyS0")).unwrap();
        assert_eq!(registers.rip, KERNEL_MIN + ENTRY_64);
        let mut first = [0];
        ram.read(registers.rip, &mut first).unwrap();
        assert_eq!(first, [0xf4]);

        let params = BootParams::read(&ram, registers.gpr[RSI]).unwrap();
        assert_eq!(params.command_line(&ram).unwrap(), b"console=ttyS0");
        assert_eq!(
            (params.initrd_address, params.initrd_bytes),
            (MIN_RAM - PAGE_SIZE, 9)
        );
        assert_eq!(params.acpi_rsdp, ACPI_TABLES);
        assert_eq!(params.e820.len(), 4);
        load(
            &ram,
            &BootRequest {
                wakeup: true,
                ..request(&kernel, b"", "")
            },
        )
        .unwrap();
        let params_with = BootParams::read(&ram, registers.gpr[RSI]).unwrap();
        assert_eq!(params_with.e820.len(), 5);
        let nodes = params.setup_data(&ram).unwrap();
        assert_eq!(
            (nodes.len(), nodes[0].kind, nodes[0].length),
            (1, SETUP_RNG_SEED, 32)
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let kernel = image(4096);
        let error = |request: BootRequest<'_>| load(&ram, &request).unwrap_err();
        assert!(matches!(
            error(request(&kernel, &vec![0; 16 << 20], "")),
            BootError::InitramfsTooLarge { to: MIN_RAM, .. }
        ));
        let long = "x".repeat(2048);
        assert!(matches!(
            error(request(&kernel, b"", &long)),
            BootError::CommandLineTooLong {
                found: 2048,
                expected: 2047
            }
        ));
        assert!(matches!(
            error(request(&kernel, b"", "a\0b")),
            BootError::CommandLineNul { at: 1 }
        ));
        let mut greedy = image(4096);
        greedy[offset::INIT_SIZE + 3] = 0x7f;
        assert!(matches!(
            error(request(&greedy, b"", "")),
            BootError::KernelTooLarge { .. }
        ));
        let mut lost = image(4096);
        lost[offset::RELOCATABLE_KERNEL] = 0;
        lost[offset::PREF_ADDRESS..offset::PREF_ADDRESS + 8].copy_from_slice(&[0xff; 8]);
        assert!(matches!(
            error(request(&lost, b"", "")),
            BootError::KernelTooLarge { .. }
        ));
    }
}
