//! Code that the fuzz target shares with the stable-toolchain test `tests/snapshot_file.rs`.

pub mod target;
