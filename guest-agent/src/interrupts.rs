//! Interrupts of the DMA engine, received in user space through VFIO without an IOMMU.

use crate::failure::{Failure, Named};
use crate::files;
use crate::pci::Function;
use crate::sys::vfio;
use alloc::ffi::CString;
use alloc::format;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// Without it vfio-pci refuses a function that is behind no IOMMU.
const NO_IOMMU_MODE: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
const CONTAINER: &str = "/dev/vfio/vfio";

/// MSI-X vector 0 of a function, armed.
pub struct Interrupts {
    function: OwnedFd,
    eventfd: OwnedFd,
    /// Interrupts counted so far.
    count: u64,
    /// An open group keeps its container, and a container its group.
    _container: OwnedFd,
    _group: OwnedFd,
}

impl Interrupts {
    /// Binds vfio-pci to a function, opens it and arms its vector. The function loses its bus-master bit by that.
    pub fn arm(function: &Function) -> Result<Self, Failure> {
        files::write(NO_IOMMU_MODE, b"1")?;
        function.bind("vfio-pci")?;
        let number = function.iommu_group()?;
        let path = format!("/dev/vfio/noiommu-{number}");
        let group = files::open(&path, OFlags::RDWR)?;
        let container = files::open(CONTAINER, OFlags::RDWR)?;
        vfio::join(container.as_fd(), group.as_fd()).named(|| format!("ioctl({path}, SET_CONTAINER)"))?;
        let name = CString::new(function.name())
            .map_err(|_| Failure::refused("VFIO", "the function's name has a NUL"))?;
        let opened = vfio::open_function(group.as_fd(), &name)
            .named(|| format!("ioctl({path}, GET_DEVICE_FD {})", function.name()))?;
        let eventfd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).named(|| "eventfd")?;
        vfio::arm_msix(&opened, eventfd.as_fd()).named(|| "ioctl(VFIO_DEVICE_SET_IRQS)")?;
        Ok(Self {
            function: opened,
            eventfd,
            count: 0,
            _container: container,
            _group: group,
        })
    }

    /// Sleeps for `ns` nanoseconds, and wakes for each interrupt.
    pub fn wait(&mut self, ns: u64) -> Result<(), Failure> {
        let end = now().saturating_add(ns);
        loop {
            let left = end.saturating_sub(now());
            if left == 0 {
                return Ok(());
            }
            let timeout = Timespec {
                tv_sec: i64::try_from(left / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(left % 1_000_000_000).unwrap_or(0),
            };
            let mut ready = [PollFd::new(&self.eventfd, PollFlags::IN)];
            match poll(&mut ready, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => self.drain()?,
                Err(errno) => return Err(errno).named(|| "poll(eventfd)"),
            }
        }
    }

    /// Disables the vector, and returns how many interrupts came since it was armed.
    pub fn disarm(mut self) -> Result<u64, Failure> {
        vfio::disarm_msix(&self.function).named(|| "ioctl(VFIO_DEVICE_SET_IRQS)")?;
        self.drain()?;
        Ok(self.count)
    }

    /// Adds what the eventfd has counted since it was last read.
    fn drain(&mut self) -> Result<(), Failure> {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.eventfd, &mut bytes) {
            Ok(_) => self.count += u64::from_le_bytes(bytes),
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(errno).named(|| "read(eventfd)"),
        }
        Ok(())
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
