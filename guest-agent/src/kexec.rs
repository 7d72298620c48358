//! Loading the next kernel and jumping into it.

use crate::failure::{Failure, Named};
use crate::{files, luo, sys};
use alloc::ffi::CString;
use alloc::format;
use rustix::fs::OFlags;
use rustix::system::RebootCommand;

/// The bzImage to load; the initramfs carries it.
const KERNEL: &str = "/next/kernel";
/// The initramfs image that this kernel was given; there with `retain_initrd` on the command line. kexec_file_load can
/// read it from sysfs, so that it need not be copied first.
const INITRD: &str = "/sys/firmware/initrd";
/// 6.17 and 6.18 write the preserved-memory map only when told to, and refuse to load before that. A kernel with LUO tells
/// itself, at reboot.
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

/// Finalizes KHO where a kernel wants that from user space; a second time is an error to it, so only if it is not yet.
fn finalize() -> Result<(), Failure> {
    if !files::exists(FINALIZE) || files::exists(luo::DEVICE) {
        return Ok(());
    }
    if files::read(FINALIZE)?.first() == Some(&b'1') {
        return Ok(());
    }
    files::write(FINALIZE, b"1")
}
