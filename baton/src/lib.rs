//! The `baton` program: its command line, and reports for people and for programs.
//!
//! | job | module |
//! | --- | --- |
//! | `baton run`, `judge`, `boot`, `blob` and `doctor`: arguments, exit status, messages | [`cli`] |
//! | a judged run as text and as JSON, and progress while it goes on | [`report`] |
//!
//! [`harness`] boots, observes and judges a guest; it does not depend on this crate.
#![forbid(unsafe_code)]

pub mod cli;
pub mod report;
