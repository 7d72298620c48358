//! Handover formats.
