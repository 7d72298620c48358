//! Code that the fuzz target shares with the stable-toolchain test `tests/device_registers.rs`.

pub mod input;
pub mod model;
pub mod registers;
