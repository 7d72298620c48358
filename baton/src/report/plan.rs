//! Reports on a plan: the steps of each kernel generation, as text and JSON.

use harness::plan::{Plan, Step};
use harness::scenario::{Bytes, Scenario};
use serde::Serialize;
use std::fmt::Write;

/// A plan, for programs.
#[derive(Debug, Serialize)]
pub struct PlanReport {
    schema: &'static str,
    version: u32,
    baton: &'static str,
    name: String,
    scenario: String,
    seed: u64,
    ram_bytes: u64,
    vcpus: u32,
    kexecs: u32,
    /// Whether the scenario gives its own steps.
    gives_steps: bool,
    generations: Vec<GenerationPlan>,
}

/// One kernel generation.
#[derive(Debug, Serialize)]
struct GenerationPlan {
    generation: u32,
    kernel: String,
    command_line: String,
    steps: Vec<StepPlan>,
}

/// One step.
#[derive(Debug, Serialize)]
struct StepPlan {
    /// Place in the scenario's list, from 1; null if it is none of the scenario's.
    given: Option<u32>,
    /// What is done.
    what: String,
    /// The error that it has to fail with.
    errno: Option<String>,
}

impl PlanReport {
    /// Of a plan.
    pub fn new(plan: &Plan, scenario: &Scenario) -> Self {
        let step = |generation: u32, step: &Step| {
            let given = match step {
                Step::Given(given) => Some(given),
                _ => None,
            };
            StepPlan {
                given: given.map(|given| given.number).filter(|number| *number > 0),
                what: plan.step_words(generation, step),
                errno: given.and_then(|given| given.errno).map(|errno| errno.to_string()),
            }
        };
        let generations = (0..)
            .zip(&plan.steps)
            .filter(|(generation, _)| *generation >= plan.first_generation())
            .map(|(generation, steps)| GenerationPlan {
                generation,
                kernel: plan.kernel(generation).name.clone(),
                command_line: plan.command_line(generation).into(),
                steps: steps.iter().map(|one| step(generation, one)).collect(),
            });
        Self {
            schema: "baton-plan",
            version: 1,
            baton: env!("CARGO_PKG_VERSION"),
            name: plan.name.clone(),
            scenario: plan.scenario_file.clone(),
            seed: plan.seed,
            ram_bytes: plan.ram_bytes,
            vcpus: plan.vcpus,
            kexecs: plan.kexecs,
            gives_steps: scenario.gives_steps(),
            generations: generations.collect(),
        }
    }
}

/// The plan as text. The steps that the scenario gives have their numbers in front.
pub fn plan_text(report: &PlanReport) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_plan(report, &mut out);
    out
}

fn write_plan(report: &PlanReport, out: &mut String) -> std::fmt::Result {
    let (ram, seed) = (Bytes(report.ram_bytes), report.seed);
    writeln!(
        out,
        "{}: {}, seed {seed}, {ram} of RAM, {}",
        report.name,
        if report.gives_steps {
            "steps of its own"
        } else {
            "the usual life cycle"
        },
        match report.vcpus {
            1 => "1 vCPU".into(),
            vcpus => format!("{vcpus} vCPUs"),
        },
    )?;
    for generation in &report.generations {
        writeln!(
            out,
            "generation {}, kernel {}",
            generation.generation, generation.kernel
        )?;
        writeln!(out, "        boot with: {}", generation.command_line)?;
        for step in &generation.steps {
            let number = step.given.map_or(String::new(), |number| number.to_string());
            write!(out, "{number:>6}  {}", step.what)?;
            match &step.errno {
                Some(errno) => writeln!(out, ": must fail with {errno}")?,
                None => writeln!(out)?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::plan::{Overrides, outline};

    fn shown(text: &str) -> (String, serde_json::Value) {
        shown_with(text, &Overrides::default())
    }

    fn shown_with(text: &str, overrides: &Overrides) -> (String, serde_json::Value) {
        let scenario = harness::scenario::parse("s.toml", text).unwrap();
        let plan = outline(&scenario, "s.toml", text, overrides).unwrap();
        let report = PlanReport::new(&plan, &scenario);
        (plan_text(&report), serde_json::to_value(&report).unwrap())
    }

    const MEMFD: &str = "name = \"s\"\n[[memfd]]\nname = \"m\"\nsize = \"64 KiB\"\ntoken = 1\n";

    #[test]
    fn given_steps_have_their_numbers_and_errors() {
        let text = format!(
            "{MEMFD}[[step]]\ndo = \"create\"\nobject = \"m\"\n\
             [[step]]\ndo = \"seal\"\nobject = \"m\"\nseals = [\"grow\", \"write\"]\nerrno = \"EBUSY\"\n"
        );
        let (text, json) = shown(&text);
        assert!(
            text.contains("     1  create memfd \"m\" without pages\n"),
            "{text}"
        );
        let seal = "     2  seal memfd \"m\": grow, write: must fail with EBUSY\n";
        assert!(text.contains(seal), "{text}");
        assert!(text.contains("        kexec\n"), "{text}");
        let steps = json["generations"][0]["steps"].as_array().unwrap();
        let of = |number: u64| steps.iter().find(|step| step["given"] == number).unwrap();
        assert_eq!(of(2)["errno"], "EBUSY");
        assert_eq!(of(1)["errno"], serde_json::Value::Null);
        assert_eq!(json["gives_steps"], true);
    }

    #[test]
    fn without_steps_it_is_the_life_cycle() {
        let (text, json) = shown(MEMFD);
        assert!(text.starts_with("s: the usual life cycle, seed 1"), "{text}");
        assert!(text.contains("preserve memfd \"m\"\n"), "{text}");
        assert_eq!(json["generations"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn what_the_command_line_changes_is_shown() {
        let overrides = Overrides {
            ram: Some(Bytes(256 << 20)),
            vcpus: Some(2),
            append: Some("initcall_debug".into()),
            ..Overrides::default()
        };
        let (text, json) = shown_with(MEMFD, &overrides);
        assert!(text.contains(", 256 MiB of RAM, 2 vCPUs\n"), "{text}");
        assert_eq!(text.matches(" initcall_debug\n").count(), 2, "{text}");
        let command_line = json["generations"][1]["command_line"].as_str().unwrap();
        assert!(command_line.ends_with(" initcall_debug"), "{command_line}");
    }

    #[test]
    fn a_payload_is_shown_with_its_commands() {
        let head = "name = \"s\"\n[payload]\ninitramfs = \"i\"\n";
        let (text, _) = shown(&format!("{head}run = [\"/t -s 1\", [\"/t\", \"a b\"]]\n"));
        assert!(text.contains("  run the payload's program: /t -s 1\n"), "{text}");
        assert!(
            text.contains("  run the payload's program: /t \"a b\"\n"),
            "{text}"
        );
        let (text, _) = shown(&format!("{head}init = \"/i -x\"\npassed = [\"PASSED\"]\n"));
        let lines = text.matches("  let the payload be PID 1: /i -x\n").count();
        assert_eq!(lines, 2, "{text}");
    }

    #[test]
    fn a_device_beside_steps_is_in_the_list() {
        let text = format!(
            "{}[dma]\nrate = \"1 MB/s\"\nring = 1\n[[step]]\ndo = \"create\"\nobject = \"m\"\n[[step]]\ndo = \"create\"\nsession = \"baton\"\n\
             [[step]]\ndo = \"preserve\"\nobject = \"m\"\n[[step]]\ndo = \"retrieve\"\nsession = \"baton\"\ngeneration = 1\n\
             [[step]]\ndo = \"retrieve\"\nobject = \"m\"\n",
            MEMFD
        );
        let (text, _) = shown(&text);
        let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line}: {text}"));
        let order = [
            "     3  preserve memfd \"m\"",
            "        start the DMA engine\n",
            "        kexec\n",
            "     5  retrieve memfd \"m\"",
            "        stop the DMA engine\n",
            "        capture all pages, at the end\n",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
    }
}
