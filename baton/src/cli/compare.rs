//! `baton compare`.

use super::{CompareArgs, Exit, complain};
use crate::report::{CompareReport, write_json};
use harness::compare::{Comparison, compare};
use harness::evidence::{Evidence, is_kept_in, load};
use std::path::Path;

/// Says where two runs part. The exit status is 0 for equal runs, 1 for different ones, and 3 when they cannot be compared.
pub(super) fn run(args: &CompareArgs) -> Exit {
    match read(&args.first).and_then(|first| Ok((first, read(&args.second)?))) {
        Ok((first, second)) => tell(args, compare(&first, &second)),
        Err(reason) => {
            complain(reason);
            Exit::Failed
        }
    }
}

fn read(directory: &Path) -> Result<Evidence, String> {
    if !is_kept_in(directory) {
        return Err(format!(
            "{}: no evidence in it, expected a directory that `baton run --out` made for one scenario",
            directory.display()
        ));
    }
    load(directory).map_err(|error| harness::conductor::chain(&error))
}

fn tell(args: &CompareArgs, comparison: Comparison) -> Exit {
    let exit = match &comparison {
        Comparison::Equal(_) => Exit::Met,
        Comparison::Different(_) => Exit::Unmet,
        Comparison::Incomparable { .. } => Exit::Failed,
    };
    // Standard output is the report's when it is wanted there.
    if args.json.as_deref() != Some(Path::new("-")) {
        println!("{comparison}");
    }
    let Some(path) = &args.json else { return exit };
    let report = CompareReport::new([&args.first, &args.second], comparison);
    match write_json(&report, path) {
        Ok(()) => exit,
        Err(error) => {
            complain(format!("{}: cannot be written: {error}", path.display()));
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::evidence::save;
    use harness::testing;
    use std::path::PathBuf;

    fn kept(at: &Path, name: &str, change: impl FnOnce(&mut Evidence)) -> PathBuf {
        let (directory, mut evidence) = (at.join(name), testing::good());
        change(&mut evidence);
        save(&evidence, &directory).unwrap();
        directory
    }

    #[test]
    fn the_exit_status_and_the_json_say_what_it_came_to() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(folder.path(), "first", |_| {});
        let json = folder.path().join("compare.json");
        let against = |second: PathBuf| {
            let args = CompareArgs {
                first: first.clone(),
                second,
                json: Some(json.clone()),
            };
            let exit = run(&args);
            let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
            (exit, report)
        };
        let (exit, report) = against(kept(folder.path(), "same", |_| {}));
        assert_eq!(
            (exit, &report["comparison"]["result"]),
            (Exit::Met, &"equal".into())
        );
        assert_eq!(
            (&report["schema"], &report["version"]),
            (&"baton-compare".into(), &1.into())
        );
        let (exit, report) = against(kept(folder.path(), "other", |evidence| {
            evidence.trace.records[3].value += 1
        }));
        let comparison = &report["comparison"];
        assert_eq!((exit, &comparison["result"]), (Exit::Unmet, &"different".into()));
        assert_eq!(
            (&comparison["record"]["part"], &comparison["record"]["index"]),
            (&"trace".into(), &3.into())
        );
        let (exit, report) = against(kept(folder.path(), "kvm", |evidence| {
            evidence.backend = "kvm".into()
        }));
        assert_eq!(
            (exit, &report["comparison"]["reason"]),
            (Exit::Failed, &"unrepeatable".into())
        );
    }

    #[test]
    fn what_is_no_evidence_cannot_be_compared() {
        let folder = tempfile::tempdir().unwrap();
        let first = kept(folder.path(), "first", |_| {});
        let nothing = folder.path().join("nothing");
        assert!(read(&nothing).unwrap_err().contains("no evidence in it"));
        let args = CompareArgs {
            first,
            second: nothing,
            json: None,
        };
        assert_eq!(run(&args), Exit::Failed);
    }
}
