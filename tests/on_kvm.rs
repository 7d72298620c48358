//! What a report must say if the scenario ran on KVM, beyond the verdict.

use serde_json::Value;

/// Everything that is wrong with this scenario's report, one sentence each.
#[must_use]
pub fn wrong_with(report: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            wrong.push(format!("expected: {what}"));
        }
    };
    let phases = report["phases"].as_array().cloned().unwrap_or_default();
    must(
        phases.iter().all(|phase| phase["instructions"].is_null()),
        "no number of instructions, which nobody counts on KVM",
    );
    let jumps = report["jumps_not_before_ns"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    must(
        jumps.iter().all(Value::is_null),
        "every jump seen at its very instruction, with the symbols of a kernel that was built here",
    );
    let findings: Vec<&Value> = report["findings"].as_array().into_iter().flatten().collect();
    match report["name"].as_str() {
        Some("memfd-under-dma") => {
            must(jumps.len() == 1, "one jump");
            for phase in ["jump", "boot-new", "restore"] {
                let writes = report["device_writes"][phase].as_u64();
                must(writes > Some(0), &format!("device writes during {phase}"));
            }
            let rules = report["rules"].as_array().cloned().unwrap_or_default();
            must(
                rules
                    .iter()
                    .filter(|rule| rule["expected"] != "any")
                    .all(|rule| rule["held"] == true && rule["looked_at"].as_u64() > Some(0)),
                "every rule that has to hold to hold, with something to look at",
            );
        }
        Some("unpreserved-target") => {
            // What stopped the device has an instruction on KVM, too; what a processor wrote has none.
            must(
                findings.iter().all(|finding| {
                    finding["rule"] != "device-writes-landed" || finding["last_writer"]["who"] != "cpu"
                }),
                "no instruction named as the writer of memory: KVM's dirty log knows pages",
            );
            must(
                findings
                    .iter()
                    .any(|finding| finding["rule"] == "dma-only-to-preserved"),
                "device writes to what nobody preserved",
            );
            let lost = findings.iter().find(|finding| {
                finding["rule"] == "device-writes-landed" && finding["last_writer"]["who"] == "cpu-page"
            });
            must(
                lost.is_some_and(|finding| {
                    let writer = &finding["last_writer"];
                    writer["generation"] == 1 && writer["phase"].is_string()
                }),
                "a page that the new kernel wrote, with its phase",
            );
        }
        _ => {}
    }
    wrong
}

#[cfg(test)]
mod checks {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_of_softcpu_is_found_out() {
        let soft = json!({ "phases": [{ "instructions": 5 }], "jumps_not_before_ns": [null] });
        assert_eq!(wrong_with(&soft).len(), 1);
    }

    #[test]
    fn a_device_that_did_not_write_is_missed() {
        let mut report = json!({
            "name": "memfd-under-dma",
            "jumps_not_before_ns": [null],
            "device_writes": { "jump": 1, "boot-new": 2, "restore": 3 },
            "rules": [
                { "expected": "holds", "held": true, "looked_at": 1 },
                { "expected": "any", "held": false, "looked_at": 0 },
            ],
        });
        assert!(wrong_with(&report).is_empty());
        report["device_writes"]["jump"] = 0.into();
        assert_eq!(wrong_with(&report).len(), 1);
        report["rules"][0]["looked_at"] = 0.into();
        assert_eq!(wrong_with(&report).len(), 2);
    }
}
