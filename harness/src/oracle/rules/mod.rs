//! One rule per file: a function from evidence (with indexes) to a result.

pub mod blob_well_formed;
pub mod device_never_silent;
pub mod device_writes_landed;
pub mod dma_only_to_preserved;
pub mod interrupts_neither_lost_nor_invented;
pub mod kept_from_allocator;
pub mod kernel_quiet;
pub mod map_covers_preserved;
pub mod no_cpu_write_before_retrieval;
pub mod nothing_leaked;
pub mod payload_passed;
pub mod preserved_content;
pub mod session_retrieved;
pub mod steps_answered;
