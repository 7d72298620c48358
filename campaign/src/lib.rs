//! Many runs: campaigns (scenarios by kernels by injections by seeds) and sweeps (one kind of fault at every place).
//!
//! This is the only crate with an asynchronous runtime, and only where it drives worker processes.
#![forbid(unsafe_code)]
