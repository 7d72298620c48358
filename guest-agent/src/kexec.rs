//! Loading the next kernel and jumping into it.

use crate::failure::{Failure, Named};
use crate::{files, luo, sys};
use alloc::ffi::CString;
use alloc::format;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::system::RebootCommand;

/// The directory of the bzImage to load.
const DIRECTORY: &str = "/next";
/// The bzImage to load; the initramfs carries it, or [`stage`] writes it.
const KERNEL: &str = "/next/kernel";
/// The initramfs image of this kernel; exists with `retain_initrd` on the command line. kexec_file_load reads it from
/// sysfs, so it need not be copied.
const INITRD: &str = "/sys/firmware/initrd";
/// 6.17 and 6.18 write the preserved-memory map only when user space asks, and refuse to load the next kernel before
/// that. A kernel with LUO does it on its own at reboot.
const FINALIZE: &str = "/sys/kernel/debug/kho/out/finalize";

/// Where the image of [`jump_back`] is put, and begins: in the first MiB, which x86 kernels leave to firmware and keep
/// from their allocators (`reserve_real_mode`, arch/x86/realmode/init.c). What is there is back after the jump.
const IMAGE_AT: usize = 0x8000;
/// The image. It is entered in 64-bit mode by a call, with its own start above the return address, where it has to
/// leave the place at which it is entered the next time: the same (tools/testing/selftests/kexec/test_kexec_jump.c, from
/// 6.15).
const RETURNS_AT_ONCE: [u8; 1] = [0xc3]; // ret

/// Loads [`KERNEL`] with this kernel's own initramfs.
pub fn load(command_line: &str) -> Result<(), Failure> {
    let arguments = CString::new(command_line)
        .map_err(|_| Failure::refused("kexec_file_load", "the command line contains a NUL byte"))?;
    let kernel = files::open(KERNEL, OFlags::RDONLY)?;
    let initrd = open_initrd()?;
    finalize()?;
    sys::kexec_file_load(&kernel, &initrd, &arguments).named(|| {
        format!(
            "kexec_file_load({KERNEL}, {INITRD}, {} bytes)",
            arguments.count_bytes()
        )
    })
}

/// Opens the initramfs image of this kernel.
pub fn open_initrd() -> Result<OwnedFd, Failure> {
    files::open(INITRD, OFlags::RDONLY)
        .map_err(|failure| failure.with_detail("is retain_initrd on the kernel command line?"))
}

/// Writes a part of [`KERNEL`]. The part at offset 0 makes the file anew; each other part must follow the last one.
pub fn stage(offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let write = || Failure::refused(format!("write({KERNEL})"), "no part before this one, or a gap");
    let mut flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if offset == 0 {
        match rustix::fs::mkdir(DIRECTORY, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::of(format!("mkdir({DIRECTORY})"), errno)),
        }
        flags |= OFlags::CREATE | OFlags::TRUNC;
    }
    let opened = rustix::fs::open(KERNEL, flags, Mode::from_raw_mode(0o644));
    let file = opened.named(|| format!("open({KERNEL})"))?;
    let size = rustix::fs::fstat(&file)
        .named(|| format!("fstat({KERNEL})"))?
        .st_size;
    if u64::try_from(size) != Ok(offset) {
        return Err(write());
    }
    let mut done = 0;
    while done < bytes.len() {
        let at = offset.saturating_add(done as u64);
        match rustix::io::pwrite(&file, &bytes[done..], at).named(|| format!("write({KERNEL})"))? {
            0 => return Err(write()),
            count => done += count,
        }
    }
    Ok(())
}

/// Reboots into the loaded kernel; returns only if that failed.
pub fn jump() -> Failure {
    match rustix::system::reboot(RebootCommand::Kexec) {
        Ok(()) => Failure::refused("reboot(LINUX_REBOOT_CMD_KEXEC)", "returned without an error"),
        Err(errno) => Failure::of("reboot(LINUX_REBOOT_CMD_KEXEC)", errno),
    }
}

/// Jumps into an image that returns at once, and comes back.
pub fn jump_back() -> Result<(), Failure> {
    sys::kexec_load(&RETURNS_AT_ONCE, IMAGE_AT).map_err(|errno| {
        let call = match errno {
            Errno::NOSYS | Errno::INVAL => {
                "kexec_load(KEXEC_PRESERVE_CONTEXT), which needs CONFIG_KEXEC_JUMP"
            }
            _ => "kexec_load(KEXEC_PRESERVE_CONTEXT)",
        };
        Failure::of(call, errno)
    })?;
    let jumped = rustix::system::reboot(RebootCommand::Kexec);
    // Nobody is to jump there once more in the belief that it is the next kernel.
    let unloaded = sys::kexec_unload();
    jumped.named(|| "reboot(LINUX_REBOOT_CMD_KEXEC)")?;
    unloaded.named(|| "kexec_load(no segment)")
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

/// Takes the finalization back. The next [`load`] finalizes anew.
pub fn abort_finalize() -> Result<(), Failure> {
    files::write(FINALIZE, b"0")
}
