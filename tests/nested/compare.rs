//! Judges answers: scenarios against softcpu's reports, test programs by what they count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::job::{Item, Job, What};
use crate::worker::{Answer, scenario};

/// The job, and softcpu's reports as they come in.
pub struct Judge {
    items: Vec<Item>,
    soft: Mutex<Soft>,
}

/// Softcpu's reports by scenario, or why there is none.
struct Soft {
    done: BTreeMap<String, Result<Value, String>>,
    coming: Receiver<(String, Result<Value, String>)>,
}

impl Judge {
    /// Has softcpu run the job's scenarios on a thread of its own meanwhile.
    pub fn start(job: &Job) -> Self {
        let (reports, coming) = channel();
        let asked = job.clone();
        std::thread::spawn(move || {
            for item in &asked.items {
                let What::Scenario { text, .. } = &item.what else {
                    continue;
                };
                if reports.send((item.name.clone(), on_soft(&asked, text))).is_err() {
                    return;
                }
            }
        });
        Self {
            items: job.items.clone(),
            soft: Mutex::new(Soft {
                done: BTreeMap::new(),
                coming,
            }),
        }
    }

    /// Begins to judge one run of the job.
    pub fn round(&self, place: &'static str) -> Round<'_> {
        Round {
            judge: self,
            place,
            answered: BTreeSet::new(),
            bad: 0,
            tests: 0,
        }
    }

    fn soft(&self, name: &str) -> Result<Value, String> {
        let mut soft = self.soft.lock().unwrap_or_else(PoisonError::into_inner);
        while !soft.done.contains_key(name) {
            let Ok((name, report)) = soft.coming.recv() else {
                return Err("softcpu ran no such scenario".into());
            };
            soft.done.insert(name, report);
        }
        soft.done[name].clone()
    }
}

fn on_soft(job: &Job, text: &str) -> Result<Value, String> {
    let mut answer = Answer::new("soft");
    scenario(job, text, &["--backend", "soft"], &mut answer)
        .map_err(|error| format!("{error}\n{}", answer.text))?;
    Ok(answer.report)
}

/// One run of the job.
pub struct Round<'a> {
    judge: &'a Judge,
    /// Where it runs, in words.
    place: &'static str,
    answered: BTreeSet<String>,
    bad: usize,
    /// Tests that ran in test programs.
    tests: usize,
}

impl Round<'_> {
    /// Takes a line of the emulated host's answers.
    pub fn line(&mut self, line: &str) {
        match serde_json::from_str(line) {
            Ok(answer) => self.answer(answer),
            Err(error) => {
                self.bad += 1;
                println!("FAILED    an answer cannot be read: {error}\n    | {line}");
            }
        }
    }

    /// Takes an answer and says what it is worth.
    pub fn answer(&mut self, answer: Answer) {
        let item = self.judge.items.iter().find(|item| item.name == answer.name);
        let verdict = match item {
            Some(item) => self.verdict_on(item, &answer),
            None => Err("nobody asked for it".into()),
        };
        let Answer {
            name, seconds, text, ..
        } = answer;
        match verdict {
            Ok(said) => println!("ok        {name:24} {seconds:6.1} s  {said}"),
            Err(wrong) => {
                self.bad += 1;
                println!("FAILED    {name:24} {seconds:6.1} s  {wrong}");
                text.lines().for_each(|line| println!("    | {line}"));
            }
        }
        self.answered.insert(name);
    }

    fn verdict_on(&mut self, item: &Item, answer: &Answer) -> Result<String, String> {
        match &item.what {
            What::Doctor => doctor(answer),
            What::Scenario { text, .. } => {
                let soft = self.judge.soft(&item.name)?;
                alike(&answer.report, &soft, any_outcome(text), answer.status)
            }
            What::Tests { .. } => {
                let ran = counted(answer)?;
                self.tests += ran;
                let left_out = answer.text.lines().filter_map(|line| {
                    let from = line.find("LEFT OUT")?;
                    Some(format!("\n    | {}", &line[from..]))
                });
                Ok(format!("{ran} tests passed{}", left_out.collect::<String>()))
            }
        }
    }

    /// Whether this item was answered.
    pub fn has(&self, item: &str) -> bool {
        self.answered.contains(item)
    }

    /// Whether every item was answered, and well.
    pub fn end(self) -> bool {
        let asked = self.judge.items.iter().map(|item| &item.name);
        let missing: Vec<&String> = asked.filter(|name| !self.answered.contains(*name)).collect();
        missing
            .iter()
            .for_each(|name| println!("FAILED    {name:24} no answer"));
        println!(
            "{} of {} items ran {}, {} tests in them; {} went wrong",
            self.answered.len(),
            self.judge.items.len(),
            self.place,
            self.tests,
            self.bad + missing.len()
        );
        self.bad == 0 && missing.is_empty()
    }
}

/// KVM must be taken for what it is.
fn doctor(answer: &Answer) -> Result<String, String> {
    for wanted in ["without workarounds", "using kvm for --backend auto"] {
        if !answer.text.contains(wanted) {
            return Err(format!("doctor does not say \"{wanted}\""));
        }
    }
    let line = answer.text.lines().find(|line| line.starts_with("backend kvm:"));
    Ok(line.unwrap_or_default().to_owned())
}

/// Whether the scenario leaves the outcome open, as where a device overwrites a kernel.
fn any_outcome(text: &str) -> bool {
    text.lines().any(|line| line.trim() == "outcome = \"any\"")
}

/// What must be the same on both backends, in a form that shows a difference: the verdict, the outcome, and what came
/// of each rule. Of what the scenario leaves open only that its expectation was met.
fn essence(report: &Value, any_outcome: bool) -> BTreeMap<String, String> {
    let mut essence = BTreeMap::from([("verdict".to_owned(), report["verdict"].to_string())]);
    if !any_outcome {
        for part in ["kind", "generation", "phase"] {
            essence.insert(format!("outcome's {part}"), report["outcome"][part].to_string());
        }
    }
    for rule in report["rules"].as_array().into_iter().flatten() {
        let looked = rule["looked_at"].as_u64() > Some(0);
        let mut result = format!("met {}", rule["met"]);
        if rule["expected"] != "any" {
            result += &format!(", held {}, looked at something {looked}", rule["held"]);
        }
        essence.insert(rule["name"].to_string(), result);
    }
    essence
}

/// Compares a scenario's reports, and says so.
fn alike(kvm: &Value, soft: &Value, any_outcome: bool, status: Option<i32>) -> Result<String, String> {
    if kvm.is_null() {
        return Err("no report".into());
    }
    let (ours, theirs) = (essence(kvm, any_outcome), essence(soft, any_outcome));
    let nothing = "nothing".to_owned();
    let differing = ours
        .keys()
        .chain(theirs.keys())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| {
            let [ours, theirs] = [&ours, &theirs].map(|one| one.get(name).unwrap_or(&nothing));
            format!("{name}: {ours} on kvm, {theirs} on soft")
        });
    let mut wrong: Vec<String> = differing.collect();
    if kvm["backend"] != "kvm" {
        wrong.push(format!("ran on {}", kvm["backend"]));
    }
    if status != Some(0) || kvm["verdict"] != "pass" {
        wrong.push(format!(
            "status {status:?}, verdict {}: {}",
            kvm["verdict"], kvm["reasons"]
        ));
    }
    wrong.extend(tests::on_kvm::wrong_with(kvm));
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let slowed = match kvm["slowdown"].as_u64() {
        Some(slowdown) if slowdown > 1 => format!("; device time slowed {slowdown} times"),
        _ => String::new(),
    };
    Ok(format!(
        "{}, {}, {} rules as on soft{slowed}",
        kvm["verdict"].as_str().unwrap_or_default(),
        kvm["outcome"]["kind"].as_str().unwrap_or_default(),
        kvm["rules"].as_array().map_or(0, Vec::len)
    ))
}

/// How many tests ran, which must be all that the program has, and all well.
fn counted(answer: &Answer) -> Result<usize, String> {
    let expected = answer.tests.len();
    // "test result: ok. 80 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s"
    let line = answer
        .text
        .lines()
        .rev()
        .find(|line| line.starts_with("test result: "));
    let passed = line.and_then(|line| {
        let number = line.split(" passed;").next()?.rsplit(' ').next()?;
        number.parse::<usize>().ok()
    });
    match (answer.status, passed) {
        (Some(0), Some(passed)) if passed == expected && passed > 0 => Ok(passed),
        (status, passed) => Err(format!(
            "status {status:?}, {passed:?} tests passed, expected {expected}"
        )),
    }
}

#[cfg(test)]
mod checks {
    use super::*;
    use serde_json::json;

    fn report(verdict: &str, held: bool, kind: &str) -> Value {
        json!({
            "name": "s", "verdict": verdict, "backend": "kvm", "reasons": [], "slowdown": 1,
            "outcome": { "kind": kind, "generation": 1, "phase": "done" },
            "rules": [{ "name": "r", "held": held, "met": true, "looked_at": 1 }],
        })
    }

    #[test]
    fn equal_reports_are_alike_and_differences_are_named() {
        let good = report("pass", true, "completed");
        assert_eq!(
            alike(&good, &good, false, Some(0)).unwrap(),
            "pass, completed, 1 rules as on soft"
        );
        for (kvm, said) in [
            (report("pass", false, "completed"), "held false"),
            (report("pass", true, "guest-hang"), "outcome's kind"),
            (report("fail", true, "completed"), "verdict"),
            (Value::Null, "no report"),
        ] {
            let wrong = alike(&kvm, &good, false, Some(0)).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
        assert!(alike(&good, &good, false, Some(1)).is_err());
        let mut elsewhere = good.clone();
        elsewhere["backend"] = "soft".into();
        assert!(alike(&elsewhere, &good, false, Some(0)).is_err());
    }

    #[test]
    fn what_a_scenario_leaves_open_may_differ() {
        assert!(any_outcome("[expect]\noutcome = \"any\"\n") && !any_outcome("outcome = \"completed\"\n"));
        let (mut kvm, mut soft) = (
            report("pass", false, "triple-fault"),
            report("pass", true, "completed"),
        );
        assert!(alike(&kvm, &soft, true, Some(0)).is_err(), "the rule is not open");
        for one in [&mut kvm, &mut soft] {
            one["rules"][0]["expected"] = "any".into();
        }
        assert!(alike(&kvm, &soft, true, Some(0)).is_ok());
        assert!(alike(&kvm, &soft, false, Some(0)).is_err());
    }

    #[test]
    fn tests_that_did_not_run_are_missed() {
        let mut answer = Answer::new("t");
        answer.tests = ["a", "b", "c"].map(str::to_owned).to_vec();
        let line = |passed| format!("noise\ntest result: ok. {passed} passed; 0 failed; 0 ignored; x\n\n");
        (answer.status, answer.text) = (Some(0), line(3));
        assert_eq!(counted(&answer).unwrap(), 3);
        for (status, text) in [
            (Some(0), line(2)),
            (Some(0), line(0)),
            (Some(101), line(3)),
            (Some(0), String::new()),
            (None, line(3)),
        ] {
            (answer.status, answer.text) = (status, text);
            assert!(counted(&answer).is_err(), "{answer:?}");
        }
        (answer.status, answer.text) = (Some(0), line(0));
        answer.tests.clear();
        assert!(counted(&answer).is_err(), "no test at all");
    }

    #[test]
    fn a_doctor_that_chooses_soft_is_not_believed() {
        let mut answer = Answer::new("doctor");
        answer.text = "backend kvm:  available, without workarounds; using kvm for --backend auto\n".into();
        assert!(doctor(&answer).unwrap().starts_with("backend kvm:"));
        answer.text = answer.text.replace("using kvm", "using soft");
        assert!(doctor(&answer).is_err());
    }
}
