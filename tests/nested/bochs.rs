//! Emulated VMX with EPT: Bochs. It knows neither kernels nor initramfs, so it boots from a disc.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::host::{Emulator, Killed, emulator};

/// Memory of the host, in MiB. Bochs 2.7 has no more than 2 GiB below the hole for devices.
const MEMORY_MIB: u32 = 2048;
/// Has EPT with accessed and dirty bits, and preemption timer.
const PROCESSOR: &str = "corei7_haswell_4770";
/// Instructions in a second of the host's time, whatever time they take. A higher number makes waiting longer, a lower one
/// copying: Bochs takes a byte of REP MOVSB for an instruction.
const INSTRUCTIONS_PER_SECOND: u32 = 250_000_000;
/// The kernel's command line: see there in `qemu`.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off mce=off tsc=reliable";
/// How often is looked whether Bochs has connected.
const POLL: Duration = Duration::from_millis(50);

/// Starts a host from what is in `host`, with files of its own in `work`.
pub fn start(host: &Path, work: &Path, processors: u32, initramfs: &[u8]) -> Result<Emulator, String> {
    if processors != 1 {
        return Err(format!(
            "{processors} processors: a host with emulated VMX has one"
        ));
    }
    let disc = work.join("disc.iso");
    write_disc(host, work, &disc, initramfs)?;
    // Bochs writes a file's last bytes when it ends, and a connection's at once.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| format!("bochs: {error}"))?;
    let port = listener
        .local_addr()
        .map_err(|error| format!("bochs: {error}"))?
        .port();
    let console = work.join("console");
    let settings = work.join("settings");
    write(&settings, &configuration(host, &disc, &console, port))?;
    // Debian's Bochs has the debugger, which begins by asking what to do.
    let debugger = work.join("debugger");
    write(&debugger, "c\n")?;
    let mut command = emulator(&host.join("bochs"));
    command
        .arg("-q")
        .arg("-f")
        .arg(&settings)
        .arg("-rc")
        .arg(&debugger);
    command
        .env("TERM", "xterm")
        .env("BXSHARE", host.join("root/usr/share/bochs"));
    let mut process = Killed(on_terminal(&mut command, &work.join("screen"))?);
    let answers = accept(&listener, &mut process.0)?;
    let orders = answers.try_clone().map_err(|error| format!("bochs: {error}"))?;
    Ok(Emulator {
        process,
        console,
        answers,
        orders,
        has_status: false,
    })
}

/// Makes the disc: a boot loader, the kernel and its initramfs.
fn write_disc(host: &Path, work: &Path, disc: &Path, initramfs: &[u8]) -> Result<(), String> {
    let content = work.join("content");
    let loader = content.join("isolinux");
    let failed = |error: std::io::Error| format!("{}: {error}", content.display());
    std::fs::create_dir_all(&loader).map_err(failed)?;
    for file in ["isolinux.bin", "ldlinux.c32"] {
        std::fs::copy(host.join(file), loader.join(file)).map_err(failed)?;
    }
    std::fs::copy(host.join("vmlinuz"), content.join("vmlinuz")).map_err(failed)?;
    let archive = File::create(content.join("initrd.gz")).map_err(failed)?;
    // The boot loader reads through the BIOS, slowly.
    let mut archive = GzEncoder::new(archive, Compression::fast());
    archive.write_all(initramfs).map_err(failed)?;
    archive.finish().map_err(failed)?;
    write(
        &loader.join("isolinux.cfg"),
        &format!(
            "default host\nprompt 0\nlabel host\n kernel /vmlinuz\n append initrd=/initrd.gz {COMMAND_LINE}\n"
        ),
    )?;
    let made = Command::new(host.join("xorriso"))
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(disc)
        .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .arg(&content)
        .output()
        .map_err(|error| format!("xorriso: {error}"))?;
    if made.status.success() {
        Ok(())
    } else {
        Err(format!(
            "xorriso: {}\n{}",
            made.status,
            String::from_utf8_lossy(&made.stderr)
        ))
    }
}

/// What bochsrc(5) describes.
fn configuration(host: &Path, disc: &Path, console: &Path, port: u16) -> String {
    let (host, disc, console) = (host.display(), disc.display(), console.display());
    let log = format!("{console}.bochs");
    format!(
        "config_interface: textconfig\n\
         display_library: term\n\
         cpu: model={PROCESSOR}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
         memory: guest={MEMORY_MIB}, host={MEMORY_MIB}\n\
         romimage: file={host}/bios\n\
         vgaromimage: file={host}/vgabios\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={disc}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=socket-client, dev=localhost:{port}\n\
         sound: driver=dummy\n\
         clock: sync=none, time0=local\n\
         log: {log}\n\
         panic: action=fatal\nerror: action=ignore\ninfo: action=ignore\ndebug: action=ignore\n"
    )
}

/// Opens a terminal that does not become this process's own.
fn open_terminal(path: &str) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Says on which further terminal it draws the screen, followed by its path in quotation marks.
const CONNECTED: &str = "Bochs connected to screen \"";

/// Starts it on a terminal of its own, because Bochs wants one. What it prints goes into the file `screen`. What it draws, on
/// a terminal that it makes, is read and dropped: else it would wait for a reader.
fn on_terminal(command: &mut Command, screen: &Path) -> Result<Child, String> {
    let failed = |error: rustix::io::Errno| format!("a terminal for bochs: {error}");
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).map_err(failed)?;
    grantpt(&master).map_err(failed)?;
    unlockpt(&master).map_err(failed)?;
    let name = ptsname(&master, Vec::new()).map_err(failed)?;
    let open = || {
        let file = File::options().read(true).write(true).open(Path::new(
            name.to_str()
                .map_err(|error| format!("a terminal for bochs: {error}"))?,
        ));
        file.map(Stdio::from)
            .map_err(|error| format!("a terminal for bochs: {error}"))
    };
    command.stdin(open()?).stdout(open()?).stderr(open()?);
    let process = command.spawn().map_err(|error| format!("bochs: {error}"))?;
    let mut drawn = File::create(screen).map_err(|error| format!("{}: {error}", screen.display()))?;
    std::thread::spawn(move || {
        // Ends when the last process has closed the terminal.
        for line in BufReader::new(File::from(master))
            .split(b'\n')
            .map_while(Result::ok)
        {
            let line = String::from_utf8_lossy(&line).into_owned();
            let _ = writeln!(drawn, "{line}");
            let path = line
                .split(CONNECTED)
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            if let Some(mut terminal) = path.and_then(|path| open_terminal(path).ok()) {
                std::thread::spawn(move || std::io::copy(&mut terminal, &mut std::io::sink()));
            }
        }
    });
    Ok(process)
}

/// Waits until Bochs has connected.
fn accept(listener: &TcpListener, process: &mut Child) -> Result<File, String> {
    let failed = |error: std::io::Error| format!("bochs: {error}");
    listener.set_nonblocking(true).map_err(failed)?;
    loop {
        match listener.accept() {
            Ok((answers, _)) => {
                answers.set_nonblocking(false).map_err(failed)?;
                return Ok(File::from(OwnedFd::from(answers)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(status) = process.try_wait().map_err(failed)? {
            return Err(format!("bochs ended before it ran: {status}"));
        }
        std::thread::sleep(POLL);
    }
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}
