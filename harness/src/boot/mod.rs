//! Boots a kernel without a scenario: nothing is asked of the guest, and nothing is judged but how it ended.
//!
//! | file | job |
//! | --- | --- |
//! | `drive.rs` | runs the machine, types for the guest, and shows its console |
//! | `ended.rs` | how it ended, as plain data |
//! | `panic.rs` | finds a panic in console output that comes in pieces |

mod drive;
mod ended;
mod panic;

pub use drive::{Input, Limits, Terminal, drive};
pub use ended::{End, Ended, Generation};
