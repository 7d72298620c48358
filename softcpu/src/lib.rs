//! A deterministic x86-64 processor.
