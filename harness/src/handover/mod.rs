//! A handover that the host makes: a kernel boots with it as another kernel's successor, and there is no other kernel.
//!
//! Its records come from a model file, or from the memfds of the scenario. `kho-core` builds them, in any version. The
//! agent takes back the scenario's memfds as after a kexec, and the oracle judges as after a kexec at guest time 0.

mod image;
mod model;
mod place;
mod source;

pub use image::{Image, ImageError};
pub use model::Model;
pub use place::{HandoverError, HandoverPlan, LOW_MEMORY, plan};
pub use source::{MODEL, PAGES, Source, SourceError};
