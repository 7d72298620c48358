//! Loads a kernel into guest RAM by the 64-bit Linux boot protocol, and reads the boot parameters that one kernel
//! leaves for the next.

pub mod bzimage;
pub mod handover;
pub mod layout;
pub mod load;
pub mod wakeup;

pub use bzimage::{BzImage, ImageError};
pub use handover::{BootMemory, BootParams, HandoverError, SetupData};
pub use load::{BootError, BootRequest, HandedOver, load};
