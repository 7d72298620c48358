//! What executes guest code. Nothing of a backend's own types leaves its file.

pub(crate) mod soft;
#[cfg(test)]
mod tests;

pub use soft::Soft;
