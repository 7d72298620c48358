//! PID 1 of the guest: carries out the host's requests from the mailbox, and nothing else.
//!
//! # Two builds
//! With `panic = "abort"` (profile `agent`) this is the guest's init: a static program without a C
//! library and without Rust's standard library, to keep it small: every guest has to unpack and start it. The command
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C link-arg=-nostartfiles" \
//!     cargo build -p guest-agent --profile agent --target x86_64-unknown-linux-gnu
//! ```
//! writes `target/x86_64-unknown-linux-gnu/agent/guest-agent`. (`--target` keeps the flags away from build scripts
//! and procedural macros, which cannot be static.) With any other profile it is an ordinary program, so that the
//! workspace builds and tests as usual. Either program says so and exits if it is not PID 1.
//!
//! # The initramfs
//! `/init` is this program and `/next/kernel` the bzImage to kexec into. The directories `/proc`, `/sys` and `/dev` are
//! made if they are missing. The kernel needs `retain_initrd` on its command line, so that the next kernel gets the same
//! initramfs, and `liveupdate=on` (6.17 and 6.18: `kho=on`).
//!
//! In an initramfs that has an /init of its own the agent is `/.baton/agent`, and the kernel has `rdinit=/.baton/agent`.
//!
//! # Kernels
//! The interface of /dev/liveupdate that the agent uses is the same from 6.19 to 7.3. Before 6.19 there is none, and
//! session requests fail with ENOENT from `open(/dev/liveupdate)`; everything else works.
//!
//! # Standalone
//! With `baton.standalone` on the command line there is no host: see [`standalone`].
//!
//! # Shell
//! With `baton.shell` the agent is a shell on the console: see [`shell`].

#![cfg_attr(panic = "abort", no_std, no_main)]

extern crate alloc;

mod agent;
mod boot;
mod changes;
mod console;
mod crew;
mod dma;
mod failure;
mod files;
mod interrupts;
mod kernel_log;
mod kexec;
mod luo;
mod mailbox;
mod memory;
mod page_flags;
mod pci;
mod pressure;
mod program;
mod provoke;
mod shell;
mod standalone;
mod sys;

use guest_agent::command_line::Parameters;
use guest_agent::protocol::NO_MAILBOX;

/// The program, called from either entry point.
fn run() -> ! {
    if !rustix::process::getpid().is_init() {
        console::write_first(&[(
            "/dev/stderr",
            b"guest-agent: runs only as PID 1 of a guest
",
        )]);
        sys::exit(2);
    }
    boot::mount_all();
    let command_line = boot::command_line();
    let parameters = Parameters::parse(&command_line);
    if parameters.standalone {
        standalone::run(&parameters, &command_line);
        boot::power_off();
    }
    if parameters.shell {
        shell::run();
    }
    match mailbox::Mailbox::find() {
        Ok(mailbox) => agent::serve(&mailbox, command_line),
        Err(failure) => {
            console::line(&alloc::format!("{NO_MAILBOX}{failure}"));
            boot::power_off();
        }
    }
}

#[cfg(not(panic = "abort"))]
fn main() {
    run();
}
