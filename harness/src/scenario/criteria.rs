//! What the findings of a rule must be like, where a scenario expects the rule to be violated.

use crate::oracle::{Finding, Findings, Writer};
use serde::{Deserialize, Deserializer, de};
use std::fmt;
use vmm::phase::Phase;

/// Expected findings of one rule. Each finding that a report keeps must fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criteria {
    /// Least number of findings; 1 if it is not given.
    #[serde(default)]
    pub least: Option<u64>,
    /// Most findings.
    #[serde(default)]
    pub most: Option<u64>,
    /// Text in the owner.
    #[serde(default)]
    pub owner: Option<String>,
    /// Kind of the last writer.
    #[serde(default)]
    pub writer: Option<WriterKind>,
    /// Text in the symbol of the last writer, a processor.
    #[serde(default)]
    pub symbol: Option<String>,
    /// Kernel generation of the last write.
    #[serde(default)]
    pub generation: Option<u32>,
    /// Phase of the last write.
    #[serde(default, deserialize_with = "phase")]
    pub phase: Option<Phase>,
}

/// Kinds of [`Writer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriterKind {
    /// The DMA engine.
    Device,
    /// A processor.
    Cpu,
    /// An injection.
    Injected,
    /// It is not known.
    Unknown,
    /// The finding is about something that did not happen.
    Nobody,
}

impl WriterKind {
    /// The kind of a writer.
    pub fn of(writer: &Writer) -> Self {
        match writer {
            Writer::Device { .. } => Self::Device,
            Writer::Cpu { .. } | Writer::CpuPage { .. } => Self::Cpu,
            Writer::Injected { .. } => Self::Injected,
            Writer::Unknown { .. } => Self::Unknown,
            Writer::Nobody => Self::Nobody,
        }
    }
}

impl fmt::Display for WriterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "the device",
            Self::Cpu => "a CPU",
            Self::Injected => "an injection",
            Self::Unknown => "unknown",
            Self::Nobody => "nobody",
        })
    }
}

pub(super) fn phase<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Phase>, D::Error> {
    let name = String::deserialize(deserializer)?;
    let unknown = || {
        let names: Vec<_> = Phase::ALL.iter().map(|phase| format!("\"{phase}\"")).collect();
        de::Error::custom(format!("phase \"{name}\": expected one of {}", names.join(", ")))
    };
    Phase::from_name(&name).map(Some).ok_or_else(unknown)
}

impl Criteria {
    /// The first way in which `findings` are not as expected, in words; `None` if they are.
    pub fn deviation(&self, findings: &Findings) -> Option<String> {
        let (least, total) = (self.least.unwrap_or(1), findings.total);
        if total < least {
            return Some(format!(
                "has {total} findings, and at least {least} were expected"
            ));
        }
        if let Some(most) = self.most.filter(|most| total > *most) {
            return Some(format!("has {total} findings, and at most {most} were expected"));
        }
        let mut deviations = findings.kept.iter().filter_map(|finding| {
            let deviation = self.deviation_of(finding)?;
            Some(format!(
                "has another finding than expected: {}: {deviation}",
                finding.text
            ))
        });
        deviations.next()
    }

    fn deviation_of(&self, finding: &Finding) -> Option<String> {
        if let Some(owner) = self
            .owner
            .as_ref()
            .filter(|owner| !finding.owner.contains(*owner))
        {
            return Some(format!("its owner is {}, not {owner}", finding.owner));
        }
        let writer = &finding.last_writer;
        let kind = WriterKind::of(writer);
        if let Some(expected) = self.writer.filter(|expected| *expected != kind) {
            return Some(format!("its last writer is {kind}, not {expected}"));
        }
        let (generation, phase, symbol) = match writer {
            Writer::Device {
                generation, phase, ..
            }
            | Writer::Injected {
                generation, phase, ..
            }
            | Writer::CpuPage {
                generation, phase, ..
            } => (Some(*generation), Some(*phase), None),
            Writer::Cpu {
                generation,
                phase,
                symbol,
                ..
            } => (Some(*generation), Some(*phase), Some(symbol.as_str())),
            Writer::Unknown { .. } | Writer::Nobody => (None, None, None),
        };
        let differs = |what: &str, expected: String| {
            Some(format!("{what} of its last writer ({writer}) is not {expected}"))
        };
        if let Some(expected) = self.generation.filter(|expected| generation != Some(*expected)) {
            return differs("the generation", expected.to_string());
        }
        if let Some(expected) = self.phase.filter(|expected| phase != Some(*expected)) {
            return differs("the phase", expected.to_string());
        }
        if let Some(expected) = &self.symbol
            && symbol.is_none_or(|symbol| !symbol.contains(expected))
        {
            return differs("the symbol", expected.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::RuleName;

    fn finding(last_writer: Writer) -> Finding {
        Finding {
            rule: RuleName::PreservedContent,
            page: Some(7),
            address: Some(0x7008),
            owner: "memfd \"vm\" (session \"s\", token 1)".into(),
            expected: "00".into(),
            actual: "01".into(),
            last_writer,
            text: "page 3 differs".into(),
            question: None,
            explained_by: Vec::new(),
        }
    }

    fn cpu() -> Writer {
        Writer::Cpu {
            generation: 1,
            symbol: "clear_page+0x7".into(),
            rip: 7,
            phase: Phase::BootNew,
            time_ns: 9,
            instructions: None,
            cpl: 0,
        }
    }

    fn findings(kept: Vec<Finding>) -> Findings {
        let total = kept.len() as u64;
        Findings { kept, total }
    }

    fn deviation(criteria: &str, found: &Findings) -> Option<String> {
        toml::from_str::<Criteria>(criteria).unwrap().deviation(found)
    }

    #[test]
    fn each_criterion_is_met_or_named() {
        let found = findings(vec![finding(cpu())]);
        for (met, unmet, named) in [
            ("", "least = 2", "has 1 findings, and at least 2 were expected"),
            ("most = 1", "most = 0", "at most 0"),
            ("owner = \"memfd \\\"vm\\\"\"", "owner = \"ring\"", "not ring"),
            (
                "writer = \"cpu\"",
                "writer = \"device\"",
                "its last writer is a CPU, not the device",
            ),
            ("symbol = \"clear_page\"", "symbol = \"memset\"", "is not memset"),
            (
                "generation = 1",
                "generation = 0",
                "the generation of its last writer",
            ),
            ("phase = \"boot-new\"", "phase = \"restore\"", "is not restore"),
        ] {
            assert_eq!(deviation(met, &found), None);
            let said = deviation(unmet, &found).unwrap();
            assert!(said.contains(named), "{said}");
        }
        assert!(deviation("", &findings(Vec::new())).is_some());
    }

    #[test]
    fn one_finding_of_another_kind_is_enough() {
        let found = findings(vec![finding(cpu()), finding(Writer::Nobody)]);
        let said = deviation("writer = \"cpu\"", &found).unwrap();
        assert!(
            said.contains("page 3 differs") && said.contains("nobody"),
            "{said}"
        );
        assert!(deviation("phase = \"boot-new\"", &found).is_some());
    }

    #[test]
    fn an_unknown_phase_or_key_is_refused() {
        let error = toml::from_str::<Criteria>("phase = \"later\"")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"later\"") && error.contains("\"boot-new\""),
            "{error}"
        );
        assert!(toml::from_str::<Criteria>("leasst = 1").is_err());
    }
}
