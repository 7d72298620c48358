//! PCI functions through sysfs.

use crate::failure::{Failure, Named};
use crate::files;
use crate::sys::Mapping;
use alloc::format;
use alloc::string::String;
use core::mem::MaybeUninit;
use guest_agent::device::VENDOR_ID;
use rustix::fs::{OFlags, RawDir};

/// Where sysfs lists PCI functions.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Offset of the COMMAND register in configuration space.
const COMMAND: u64 = 4;
/// COMMAND bit 2: the function may master the bus.
const BUS_MASTER: u8 = 1 << 2;

/// A PCI function of baton's machine.
pub struct Function {
    path: String,
}

impl Function {
    /// Finds the first function with baton's vendor identity and this device identity.
    pub fn find(device: u16) -> Result<Self, Failure> {
        let directory = files::open(DEVICES, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.named(|| format!("getdents64({DEVICES})"))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let function = Self {
                path: format!("{DEVICES}/{name}"),
            };
            if function.identity()? == (VENDOR_ID, device) {
                return Ok(function);
            }
        }
        Err(Failure::refused(
            format!("find({DEVICES})"),
            format!("no function {VENDOR_ID:04x}:{device:04x}"),
        ))
    }

    /// Enables the function and maps the first `bytes` of its BAR 0.
    pub fn map_bar0(&self, bytes: u64) -> Result<Mapping, Failure> {
        files::write(&format!("{}/enable", self.path), b"1")?;
        let path = format!("{}/resource0", self.path);
        let bar = files::open(&path, OFlags::RDWR | OFlags::SYNC)?;
        Mapping::registers(&bar, bytes).named(|| format!("mmap({path})"))
    }

    /// Lets the function master the bus.
    pub fn set_bus_master(&self) -> Result<(), Failure> {
        let path = format!("{}/config", self.path);
        let config = files::open(&path, OFlags::RDWR)?;
        let mut command = [0; 1];
        rustix::io::pread(&config, &mut command, COMMAND).named(|| format!("pread({path})"))?;
        rustix::io::pwrite(&config, &[command[0] | BUS_MASTER], COMMAND)
            .named(|| format!("pwrite({path})"))?;
        Ok(())
    }

    /// Vendor and device identity, from the first two words of configuration space.
    fn identity(&self) -> Result<(u16, u16), Failure> {
        let path = format!("{}/config", self.path);
        let config = files::open(&path, OFlags::RDONLY)?;
        let mut words = [0; 4];
        rustix::io::pread(&config, &mut words, 0).named(|| format!("pread({path})"))?;
        Ok((
            u16::from_le_bytes([words[0], words[1]]),
            u16::from_le_bytes([words[2], words[3]]),
        ))
    }
}
