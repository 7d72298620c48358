//! Loading the next kernel and jumping into it.

use crate::failure::{Failure, Named};
use crate::{files, luo, sys};
use alloc::ffi::CString;
use alloc::format;
use rustix::fs::OFlags;
use rustix::system::RebootCommand;

/// The bzImage to load; the initramfs carries it.
const KERNEL: &str = "/next/kernel";
/// The initramfs image of this kernel; exists with `retain_initrd` on the command line. kexec_file_load reads it from
/// sysfs, so it need not be copied.
const INITRD: &str = "/sys/firmware/initrd";
/// 6.17 and 6.18 write the preserved-memory map only when user space asks, and refuse to load the next kernel before
/// that. A kernel with LUO does it on its own at reboot.
const FINALIZE: &str = "/sys/kernel/debug/kho/out/finalize";

/// Loads [`KERNEL`] with this kernel's own initramfs.
pub fn load(command_line: &str) -> Result<(), Failure> {
    let arguments = CString::new(command_line)
        .map_err(|_| Failure::refused("kexec_file_load", "the command line contains a NUL byte"))?;
    let kernel = files::open(KERNEL, OFlags::RDONLY)?;
    let initrd = files::open(INITRD, OFlags::RDONLY)
        .map_err(|failure| failure.with_detail("is retain_initrd on the kernel command line?"))?;
    finalize()?;
    sys::kexec_file_load(&kernel, &initrd, &arguments).named(|| {
        format!(
            "kexec_file_load({KERNEL}, {INITRD}, {} bytes)",
            arguments.count_bytes()
        )
    })
}

/// Reboots into the loaded kernel; returns only if that failed.
pub fn jump() -> Failure {
    match rustix::system::reboot(RebootCommand::Kexec) {
        Ok(()) => Failure::refused("reboot(LINUX_REBOOT_CMD_KEXEC)", "returned without an error"),
        Err(errno) => Failure::of("reboot(LINUX_REBOOT_CMD_KEXEC)", errno),
    }
}

/// Finalizes KHO on kernels that expect it of user space. Checks first, because finalizing twice is an error.
fn finalize() -> Result<(), Failure> {
    if !files::exists(FINALIZE) || files::exists(luo::DEVICE) {
        return Ok(());
    }
    if files::read(FINALIZE)?.first() == Some(&b'1') {
        return Ok(());
    }
    files::write(FINALIZE, b"1")
}
