//! The ioctls of VFIO without an IOMMU that the agent uses (include/uapi/linux/vfio.h; the same from 6.17 to 7.3).

use super::ioctl::{call, own};
use core::ffi::CStr;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Result;
use rustix::ioctl::{IntegerSetter, Opcode, opcode};

/// VFIO_TYPE.
const TYPE: u8 = b';';
const SET_IOMMU: Opcode = opcode::none(TYPE, 102);
const GROUP_SET_CONTAINER: Opcode = opcode::none(TYPE, 104);
const GROUP_GET_DEVICE_FD: Opcode = opcode::none(TYPE, 106);
const DEVICE_SET_IRQS: Opcode = opcode::none(TYPE, 110);

/// VFIO_NOIOMMU_IOMMU.
const NO_IOMMU: usize = 8;
/// VFIO_PCI_MSIX_IRQ_INDEX.
const MSIX: u32 = 2;
/// VFIO_IRQ_SET_DATA_NONE and VFIO_IRQ_SET_DATA_EVENTFD.
const DATA_NONE: u32 = 1 << 0;
const DATA_EVENTFD: u32 = 1 << 2;
/// VFIO_IRQ_SET_ACTION_TRIGGER.
const ACTION_TRIGGER: u32 = 1 << 5;

/// struct vfio_irq_set with room for one eventfd.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfd: i32,
}

/// Gives `group` to `container`, which does without an IOMMU.
pub fn join(container: BorrowedFd<'_>, group: BorrowedFd<'_>) -> Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: the kernel reads one int.
    unsafe { call::<GROUP_SET_CONTAINER, i32>(group, &mut fd) }?;
    // SAFETY: the argument is a number.
    let set_iommu = unsafe { IntegerSetter::<SET_IOMMU>::new_usize(NO_IOMMU) };
    // SAFETY: the kernel reads and writes no memory for this number.
    unsafe { rustix::ioctl::ioctl(container, set_iommu) }
}

/// Opens the function of this name (`0000:00:02.0`) in a group.
pub fn open_function(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let mut name = [name.to_bytes_with_nul(), &[]].concat();
    // SAFETY: the kernel reads the name up to its NUL.
    own(unsafe { call::<GROUP_GET_DEVICE_FD, [u8]>(group, &mut name[..]) }?)
}

/// Lets each message of MSI-X vector 0 add 1 to an eventfd.
pub fn arm_msix(function: impl AsFd, eventfd: BorrowedFd<'_>) -> Result<()> {
    set_irqs(function, DATA_EVENTFD, 1, eventfd.as_raw_fd())
}

/// Disables MSI-X. When this returns, no handler runs any more.
pub fn disarm_msix(function: impl AsFd) -> Result<()> {
    set_irqs(function, DATA_NONE, 0, -1)
}

fn set_irqs(function: impl AsFd, data: u32, count: u32, eventfd: i32) -> Result<()> {
    #[allow(clippy::cast_possible_truncation)] // 24 bytes
    let argsz = size_of::<IrqSet>() as u32;
    let mut set = IrqSet {
        argsz,
        flags: data | ACTION_TRIGGER,
        index: MSIX,
        start: 0,
        count,
        eventfd,
    };
    // SAFETY: the kernel reads a vfio_irq_set of `argsz` bytes.
    unsafe { call::<DEVICE_SET_IRQS, IrqSet>(function, &mut set) }?;
    Ok(())
}
