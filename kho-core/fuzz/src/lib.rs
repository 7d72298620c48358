//! What the fuzz targets share. The crate's own tests use the same files, on a stable compiler: see
//! `../tests/corpus.rs`.

pub mod budget;
pub mod targets;

/// Runs one target on one input, within its budget of memory.
pub fn run(target: fn(&[u8]), input: &[u8]) {
    let peak = budget::peak_of(|| target(input));
    assert!(
        peak <= budget::limit(input),
        "{peak} bytes of memory for an input of {} bytes",
        input.len()
    );
}
