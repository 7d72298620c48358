//! Code that the fuzz target shares with softcpu's tests: that of the differential test, and the target itself, which
//! `tests/fuzz_inputs.rs` runs on stable toolchains.
#![allow(dead_code)] // the differential test uses more of it

#[path = "../../tests/differential/catalog.rs"]
mod catalog;
#[path = "../../tests/differential/choices.rs"]
mod choices;
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
pub mod target;
#[path = "../../tests/differential/tell.rs"]
pub mod tell;
