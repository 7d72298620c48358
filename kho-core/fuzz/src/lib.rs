//! Code that the fuzz targets share. The crate's tests use the same files on a stable compiler: see
//! `../tests/corpus.rs`.

pub mod budget;
pub mod targets;
