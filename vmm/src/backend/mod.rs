//! What executes guest code. Nothing of a backend's own types leaves its file.

mod soft;

pub use soft::Soft;
