//! A kernel image without a kernel.

/// Offset of the 64-bit entry point in the loaded part of an image (Documentation/arch/x86/boot.rst, 64-bit boot
/// protocol).
const ENTRY: usize = 0x200;
/// Sectors of the setup part: the boot sector and one more.
const SETUP: usize = 1024;

/// A well-formed bzImage (boot protocol 2.15) that executes `code` at its 64-bit entry point.
///
/// # Panics
/// If `code` does not fit.
#[must_use]
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; SETUP + 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(4096u32 / 16).to_le_bytes()); // syssize, in paragraphs
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21]); // relocatable_kernel, min_alignment
    put(0x236, &3u16.to_le_bytes()); // xloadflags: 64-bit entry, loadable above 4 GiB
    put(0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(0x260, &0x20_0000u32.to_le_bytes()); // init_size
    put(SETUP + ENTRY, code);
    image
}
