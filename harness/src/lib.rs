//! Scenarios, oracle, reports.
