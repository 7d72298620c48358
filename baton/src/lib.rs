//! The `baton` program: its command line, and reports for people and for programs.
//!
//! | job | module |
//! | --- | --- |
//! | `baton run`, `judge`, `boot`, `blob` and `doctor`: arguments, exit status, messages | [`cli`] |
//! | a judged run as text and as JSON, and progress while it goes on | [`report`] |
//!
//! Everything that boots, observes and judges a guest is in [`harness`]; nothing there knows of this crate.
#![forbid(unsafe_code)]

pub mod cli;
pub mod report;
