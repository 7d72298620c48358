//! Code that the fuzz targets share with softcpu's tests: that of the differential test, and the targets themselves,
//! which `tests/fuzz_inputs.rs` and `tests/fuzz_programs.rs` run on stable toolchains.
#![allow(dead_code)] // the differential test uses more of it

#[path = "../../tests/differential/approximate.rs"]
mod approximate;
#[path = "../../tests/differential/catalog.rs"]
mod catalog;
#[path = "../../tests/differential/choices.rs"]
mod choices;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/differential/compare.rs"]
mod compare;
#[path = "../../tests/differential/fixup.rs"]
mod fixup;
#[path = "../../tests/differential/generate.rs"]
mod generate;
#[path = "../../tests/differential/native.rs"]
mod native;
#[path = "../../tests/differential/rng.rs"]
mod rng;
#[path = "../../tests/differential/soft.rs"]
mod soft;
#[path = "../../tests/differential/state.rs"]
mod state;
pub mod program;
pub mod target;
#[path = "../../tests/differential/tell.rs"]
pub mod tell;
