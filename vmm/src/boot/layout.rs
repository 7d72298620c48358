//! Where the loader puts things, and the numbers of the boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst).

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, the zero page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top-level page table.
pub const PML4: u64 = 0x9000;
/// The one page-directory-pointer table: 512 GiB in 1 GiB pages, or the page directories at [`PD`].
pub const PDPT: u64 = 0xa000;
/// Page directories for a processor without 1 GiB pages: [`PD_COUNT`] of them, 1 GiB in 2 MiB pages each.
pub const PD: u64 = 0x1_0000;
/// How many there are: what a loader places, the kernel, its parameters and its initramfs, is below 4 GiB.
pub const PD_COUNT: u64 = 4;
/// The setup_data node with the guest's random seed.
pub const RNG_SEED: u64 = 0xb000;
/// The setup_data node with a handover, if the kernel is booted with one.
pub const KHO_NODE: u64 = 0xc000;
/// Command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, with its NUL.
pub const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Firmware area: ACPI tables.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Firmware of processors that wait to be woken, while there are any: [`super::wakeup`] says what is in it. It is memory of
/// the firmware's own, which no kernel may use (ACPI NVS).
pub const WAKEUP: u64 = 0xf_0000;
/// End of the firmware area and start of extended memory.
pub const EXTENDED_START: u64 = 0x10_0000;
/// Where kernels are placed at the earliest.
pub const KERNEL_MIN: u64 = 16 << 20;

/// Offsets into `struct boot_params`; from 0x1f1 on they are the setup header's offsets into the file, too.
pub mod offset {
    /// u64: address of the ACPI RSDP.
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    /// u32: upper half of `ramdisk_image`.
    pub const EXT_RAMDISK_IMAGE: usize = 0x0c0;
    /// u32: upper half of `ramdisk_size`.
    pub const EXT_RAMDISK_SIZE: usize = 0x0c4;
    /// u32: upper half of `cmd_line_ptr`.
    pub const EXT_CMD_LINE_PTR: usize = 0x0c8;
    /// u8: number of e820 entries.
    pub const E820_ENTRIES: usize = 0x1e8;
    /// u8: size of the setup code in sectors of 512 bytes, less one; 0 means 4.
    pub const SETUP_SECTS: usize = 0x1f1;
    /// u32: size of the protected-mode code in units of 16 bytes.
    pub const SYSSIZE: usize = 0x1f4;
    /// u16: 0xaa55.
    pub const BOOT_FLAG: usize = 0x1fe;
    /// u8: where the header ends, counted from 0x202.
    pub const HEADER_JUMP: usize = 0x201;
    /// u32: "HdrS".
    pub const HEADER_MAGIC: usize = 0x202;
    /// u16: protocol version.
    pub const VERSION: usize = 0x206;
    /// u8: type of boot loader.
    pub const TYPE_OF_LOADER: usize = 0x210;
    /// u8: load flags.
    pub const LOADFLAGS: usize = 0x211;
    /// u32: address of the initrd.
    pub const RAMDISK_IMAGE: usize = 0x218;
    /// u32: size of the initrd.
    pub const RAMDISK_SIZE: usize = 0x21c;
    /// u32: address of the command line.
    pub const CMD_LINE_PTR: usize = 0x228;
    /// u32: highest address that the initrd may occupy.
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    /// u32: alignment of the load address.
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    /// u8: the kernel may be moved.
    pub const RELOCATABLE_KERNEL: usize = 0x234;
    /// u16: `XLF_*` flags.
    pub const XLOADFLAGS: usize = 0x236;
    /// u32: longest command line, without its NUL.
    pub const CMDLINE_SIZE: usize = 0x238;
    /// u32: offset of the compressed kernel in the protected-mode code.
    pub const PAYLOAD_OFFSET: usize = 0x248;
    /// u32: its length.
    pub const PAYLOAD_LENGTH: usize = 0x24c;
    /// u64: address of the first setup_data node.
    pub const SETUP_DATA: usize = 0x250;
    /// u64: preferred load address.
    pub const PREF_ADDRESS: usize = 0x258;
    /// u32: memory that the kernel needs from its load address on before it has looked at the memory map.
    pub const INIT_SIZE: usize = 0x260;
    /// The e820 table: entries of {u64 address, u64 size, u32 type}.
    pub const E820_TABLE: usize = 0x2d0;
}

/// Bytes of `struct boot_params`.
pub const BOOT_PARAMS_SIZE: usize = 4096;
/// Value at [`offset::BOOT_FLAG`].
pub const BOOT_FLAG: u16 = 0xaa55;
/// Value at [`offset::HEADER_MAGIC`]: "HdrS".
pub const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first version that has everything the loader uses (xloadflags).
pub const MIN_VERSION: u16 = 0x020c;
/// Load flag: the protected-mode code goes to 1 MiB or above.
pub const LOADED_HIGH: u8 = 1;
/// xloadflags: there is a 64-bit entry point at 0x200.
pub const XLF_KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry point.
pub const ENTRY_64: u64 = 0x200;
/// e820 type: usable RAM.
pub const E820_RAM: u32 = 1;
/// e820 type: reserved.
pub const E820_RESERVED: u32 = 2;
/// e820 type: ACPI tables.
pub const E820_ACPI: u32 = 3;
/// e820 type: memory that belongs to the firmware for good.
pub const E820_NVS: u32 = 4;
/// Entries that fit the table in the zero page.
pub const E820_MAX: usize = 128;
/// Bytes of an e820 entry.
pub const E820_ENTRY_BYTES: usize = 20;
/// setup_data type: a wrapper around data elsewhere.
pub const SETUP_INDIRECT: u32 = 1 << 31;
/// setup_data type: a seed for the random number generator.
pub const SETUP_RNG_SEED: u32 = 9;
/// setup_data type: Kexec HandOver.
pub const SETUP_KEXEC_KHO: u32 = kho_core::KhoData::SETUP_TYPE;
/// Bytes of a setup_data node before its payload: {u64 next, u32 type, u32 len}.
pub const SETUP_DATA_HEADER: u64 = 16;
