//! PCI functions through sysfs.

use crate::failure::{Failure, Named};
use crate::files;
use crate::sys::Mapping;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
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
    /// Finds the first function with baton's vendor id and this device id.
    pub fn find(device: u16) -> Result<Self, Failure> {
        Self::find_in(DEVICES, device)
    }

    /// Finds it in a directory laid out like [`DEVICES`].
    pub fn find_in(devices: &str, device: u16) -> Result<Self, Failure> {
        let directory = files::open(devices, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.named(|| format!("getdents64({devices})"))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let function = Self {
                path: format!("{devices}/{name}"),
            };
            if function.identity()? == (VENDOR_ID, device) {
                return Ok(function);
            }
        }
        Err(Failure::refused(
            format!("find({devices})"),
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

    /// Its address, as `0000:00:02.0`.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Binds `driver` to the function, unless it is bound already.
    pub fn bind(&self, driver: &str) -> Result<(), Failure> {
        if files::exists(&format!("{}/driver", self.path)) {
            return Ok(());
        }
        files::write(&format!("{}/driver_override", self.path), driver.as_bytes())?;
        files::write("/sys/bus/pci/drivers_probe", self.name().as_bytes())
    }

    /// Number of the IOMMU group that the function is in.
    pub fn iommu_group(&self) -> Result<u32, Failure> {
        let path = format!("{}/iommu_group", self.path);
        let target = rustix::fs::readlink(&*path, Vec::new()).named(|| format!("readlink({path})"))?;
        let number = target
            .to_str()
            .ok()
            .and_then(|target| target.rsplit('/').next()?.parse().ok());
        number.ok_or_else(|| Failure::refused(path, "is no link to a group's number"))
    }

    /// Vendor and device id, from the first two words of configuration space.
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

/// A directory laid out like sysfs, for the tests of drivers.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::path::Path;
    use tempfile::TempDir;

    /// One function of another vendor and one of baton's, whose BAR 0 begins with `magic`.
    pub fn sysfs(device: u16, bar0_bytes: u64, magic: u32) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        function(directory.path(), "0000:00:00.0", 0x8086, 0x1237);
        let path = function(directory.path(), "0000:00:01.0", VENDOR_ID, device);
        std::fs::File::create(path.join("resource0"))
            .unwrap()
            .set_len(bar0_bytes)
            .unwrap();
        bar(&directory, bar0_bytes).write_u32(0, magic);
        directory
    }

    /// The path that [`Function::find_in`] wants.
    pub fn path(sysfs: &TempDir) -> &str {
        sysfs.path().to_str().unwrap()
    }

    /// BAR 0 of baton's function, as the device sees it.
    pub fn bar(sysfs: &TempDir, bytes: u64) -> Mapping {
        let path = sysfs.path().join("0000:00:01.0/resource0");
        Mapping::registers(&files::open(path.to_str().unwrap(), OFlags::RDWR).unwrap(), bytes).unwrap()
    }

    fn function(directory: &Path, name: &str, vendor: u16, device: u16) -> std::path::PathBuf {
        let path = directory.join(name);
        std::fs::create_dir(&path).unwrap();
        let mut config = [0; 64];
        config[..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        config[4] = 0b11;
        std::fs::write(path.join("config"), config).unwrap();
        std::fs::write(path.join("enable"), "0").unwrap();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::device::{DMA_DEVICE_ID, MAILBOX_DEVICE_ID};

    #[test]
    fn finds_its_own_enables_and_masters() {
        let sysfs = fake::sysfs(DMA_DEVICE_ID, 4096, 0x1234_5678);
        let function = Function::find_in(fake::path(&sysfs), DMA_DEVICE_ID).unwrap();
        assert_eq!(function.map_bar0(4096).unwrap().read_u32(0), 0x1234_5678);
        function.set_bus_master().unwrap();
        let path = sysfs.path().join("0000:00:01.0");
        assert_eq!(std::fs::read(path.join("enable")).unwrap(), b"1");
        assert_eq!(std::fs::read(path.join("config")).unwrap()[4..6], [0b111, 0]);
    }

    #[test]
    fn says_what_is_not_there() {
        let sysfs = fake::sysfs(DMA_DEVICE_ID, 4096, 0);
        let failure = Function::find_in(fake::path(&sysfs), MAILBOX_DEVICE_ID)
            .err()
            .unwrap();
        assert_eq!(failure.detail, "no function ba70:0001");
        let failure = Function::find_in("/nowhere", MAILBOX_DEVICE_ID).err().unwrap();
        assert_eq!((failure.call.as_str(), failure.errno), ("open(/nowhere)", 2));
    }
}
