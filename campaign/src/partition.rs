//! One machine's part of a plan, as cargo-nextest names it: `slice:2/8` or `hash:2/8`.

use crate::plan::CellId;

/// Which cells of a plan this machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partition {
    /// All.
    #[default]
    Whole,
    /// Every `of`-th cell, beginning with number `part` (from 1): parts differ by at most one cell in size.
    Slice {
        /// From 1 to `of`.
        part: u64,
        /// Number of parts.
        of: u64,
    },
    /// The cells whose identity falls into bucket `part`: a cell stays in its part when others are added to the plan.
    Hash {
        /// From 1 to `of`.
        part: u64,
        /// Number of parts.
        of: u64,
    },
}

impl Partition {
    /// Whether the cell at `index` of the plan, from 0, is in this part.
    #[must_use]
    pub fn has(self, index: usize, cell: CellId) -> bool {
        match self {
            Self::Whole => true,
            Self::Slice { part, of } => index as u64 % of == part - 1,
            Self::Hash { part, of } => cell.bucket(of) == part - 1,
        }
    }
}

impl std::str::FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\": expected slice:PART/PARTS or hash:PART/PARTS, with PART from 1 to PARTS");
        let (kind, parts) = text.split_once(':').ok_or_else(wrong)?;
        let (part, of) = parts.split_once('/').ok_or_else(wrong)?;
        let (part, of): (u64, u64) = (
            part.parse().map_err(|_| wrong())?,
            of.parse().map_err(|_| wrong())?,
        );
        if part == 0 || part > of {
            return Err(wrong());
        }
        match kind {
            "slice" | "count" | "hash" if of == 1 => Ok(Self::Whole),
            // cargo-nextest's older name for the same.
            "slice" | "count" => Ok(Self::Slice { part, of }),
            "hash" => Ok(Self::Hash { part, of }),
            _ => Err(wrong()),
        }
    }
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Slice { part, of } => write!(f, "slice:{part}/{of}"),
            Self::Hash { part, of } => write!(f, "hash:{part}/{of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_is_in_exactly_one_part() {
        for kind in ["slice", "hash"] {
            let parts: Vec<Partition> = (1..=8)
                .map(|part| format!("{kind}:{part}/8").parse().unwrap())
                .collect();
            for index in 0..1000 {
                let cell = CellId::of(&[index.to_string().as_bytes()]);
                let having = parts.iter().filter(|part| part.has(index, cell)).count();
                assert_eq!(having, 1, "{kind} {index}");
            }
        }
    }

    #[test]
    fn parts_that_there_are_not_are_refused() {
        for bad in [
            "",
            "slice",
            "slice:1",
            "slice:0/8",
            "slice:9/8",
            "hash:1/0",
            "half:1/2",
            "slice:-1/2",
        ] {
            assert!(bad.parse::<Partition>().is_err(), "{bad}");
        }
        assert_eq!("hash:1/1".parse(), Ok(Partition::Whole));
        assert_eq!("slice:2/8".parse::<Partition>().unwrap().to_string(), "slice:2/8");
    }
}
