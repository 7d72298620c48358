//! The kernel's own test of KHO, lib/test_kho.c: it preserves folios of every order, which makes it a good test
//! input.

/// `KHO_TEST_FDT`: name of the node in the KHO root.
pub const NODE_NAME: &str = "kho_test";
/// `KHO_TEST_COMPAT`.
pub const COMPATIBLE_V1: &str = "kho-test-v1";
/// Node that describes the folios.
pub const DATA_NODE_NAME: &str = "data";
/// Number of folios, a native `u32`.
pub const PROP_COUNT: &str = "nr_folios";
/// The folios, each `address | order` in a native `u64`: in place in 6.17, behind a vmalloc descriptor from 6.18 on.
pub const PROP_FOLIOS: &str = "folios_info";
