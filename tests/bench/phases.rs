//! The phases of a run on baton, from its JSON report.

use serde::{Deserialize, Serialize};

/// One phase of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Kernel generation.
    pub generation: u32,
    /// Wall time in milliseconds.
    pub wall_ms: f64,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// Retired instructions; nothing on KVM, which does not tell.
    #[serde(default)]
    pub instructions: Option<u64>,
}

/// The parts of baton's JSON report that the benchmark reads; docs/report.md describes all of it.
#[derive(Debug, Deserialize)]
struct Report {
    scenarios: Vec<Scenario>,
}

#[derive(Debug, Deserialize)]
struct Scenario {
    verdict: String,
    backend: String,
    #[serde(default)]
    reasons: Vec<String>,
    phases: Vec<Phase>,
}

/// The phases of the one scenario in the report, which must have passed on `backend`.
pub fn passed(report: &str, backend: &str) -> Result<Vec<Phase>, String> {
    let report: Report = serde_json::from_str(report).map_err(|error| format!("report: {error}"))?;
    let count = report.scenarios.len();
    let mut scenarios = report.scenarios.into_iter();
    let (Some(scenario), None) = (scenarios.next(), scenarios.next()) else {
        return Err(format!("report: {count} scenarios, expected one"));
    };
    if (scenario.verdict.as_str(), scenario.backend.as_str()) != ("pass", backend) {
        let why = scenario.reasons.join("; ");
        return Err(format!(
            "verdict {} on backend {}, expected pass on {backend}: {why}",
            scenario.verdict, scenario.backend
        ));
    }
    Ok(scenario.phases)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A report on one run with a phase of this name and the jump.
    pub fn report(verdict: &str, phase: &str) -> String {
        format!(
            r#"{{"version": 1, "scenarios": [{{"verdict": "{verdict}", "backend": "soft", "seed": 1, "reasons": ["why"],
                "phases": [
                {{"name": "{phase}", "generation": 0, "instructions": 60, "wall_ms": 2.0, "guest_ns": 7}},
                {{"name": "jump", "generation": 0, "instructions": null, "wall_ms": 0.5, "guest_ns": 1}}]}}]}}"#
        )
    }

    #[test]
    fn phases_of_a_pass_are_read() {
        let read = passed(&report("pass", "boot-old"), "soft").unwrap();
        assert_eq!((read[0].name.as_str(), read[0].guest_ns), ("boot-old", 7));
        assert_eq!((read[0].instructions, read[1].instructions), (Some(60), None));
    }

    #[test]
    fn what_did_not_pass_is_an_error() {
        let error = |report: &str, backend: &str| passed(report, backend).unwrap_err();
        assert!(
            error(&report("error", "x"), "soft").contains("verdict error on backend soft, expected pass")
        );
        assert!(error(&report("error", "x"), "soft").ends_with("why"));
        assert!(error(&report("pass", "x"), "kvm").contains("on backend soft, expected pass on kvm"));
        assert!(error(r#"{"scenarios": []}"#, "soft").contains("0 scenarios"));
        assert!(passed("no JSON", "soft").is_err());
    }
}
