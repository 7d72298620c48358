//! Which keys go with which verb.

use super::super::check::{Problem, require};
use super::{Step, Verb};
use std::ops::Range;

/// A key of a step, with its place in the text if it is there.
type Key = (&'static str, Option<Range<usize>>);

/// What a verb is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Memfd,
    Session,
    Either,
    Nothing,
}

impl Verb {
    fn about(self) -> About {
        match self {
            Self::Create | Self::Retrieve | Self::Close => About::Either,
            Self::Unpreserve | Self::Finish => About::Session,
            Self::DropCaches
            | Self::Load
            | Self::Kexec
            | Self::JumpBack
            | Self::AbortFinalize
            | Self::Wait => About::Nothing,
            _ => About::Memfd,
        }
    }

    /// Further keys that it may have.
    fn may_have(self, memfd: bool) -> &'static [&'static str] {
        match self {
            Self::Write => &["at", "size", "by", "loop", "errno"],
            Self::Read => &["at", "size", "loop"],
            Self::Allocate | Self::PunchHole | Self::Collapse => &["at", "size", "loop", "errno"],
            Self::Seal => &["seals", "errno"],
            Self::Preserve => &["session", "token", "side", "loop", "errno"],
            Self::Retrieve if memfd => &["session", "token", "side", "errno"],
            Self::RetrieveAgain => &["session", "token", "side", "errno"],
            Self::Finish => &["side", "errno"],
            Self::Close if !memfd => &["side"],
            Self::Close | Self::Unpreserve | Self::DropCaches => &[],
            Self::Create if !memfd => &["loop", "errno"],
            Self::Create
            | Self::Retrieve
            | Self::Load
            | Self::Kexec
            | Self::JumpBack
            | Self::AbortFinalize => &["errno"],
            Self::Wait => &["time"],
        }
    }
}

/// Checks that a step has the keys that its verb needs, and no other.
pub(super) fn check(step: &Step) -> Result<(), Problem> {
    let verb = *step.verb.get_ref();
    let (memfd, session) = (step.object.is_some(), step.session.is_some());
    let about = verb.about();
    let named = match about {
        About::Memfd => memfd,
        About::Session => session,
        About::Either => memfd || session,
        About::Nothing => true,
    };
    require(named, &step.verb, || {
        let wanted = match about {
            About::Memfd => "object",
            About::Session => "session",
            About::Either | About::Nothing => "object or session",
        };
        format!("found no {wanted}, which such a step is about")
    })?;
    require(verb != Verb::Seal || step.seals.is_some(), &step.verb, || {
        "found no seals, expected a list of those to add".into()
    })?;
    require(verb != Verb::Wait || step.time.is_some(), &step.verb, || {
        "found no time, expected how much passes".into()
    })?;
    let may_have = verb.may_have(memfd);
    let about_key = match about {
        About::Memfd => "object",
        About::Session => "session",
        About::Either if memfd => "object",
        About::Either => "session",
        About::Nothing => "",
    };
    for (key, span) in keys(step) {
        let Some(span) = span else { continue };
        if key != about_key && !may_have.contains(&key) {
            let allowed: Vec<&str> = [about_key]
                .into_iter()
                .chain(may_have.iter().copied())
                .filter(|key| !key.is_empty())
                .collect();
            let message = format!(
                "found {key}, expected no other keys in such a step than generation and: {}",
                if allowed.is_empty() {
                    "none".to_owned()
                } else {
                    allowed.join(", ")
                }
            );
            return Err(Problem { span, message });
        }
    }
    Ok(())
}

/// All keys but `do` and `generation`.
fn keys(step: &Step) -> [Key; 11] {
    fn span<T>(value: &Option<toml::Spanned<T>>) -> Option<Range<usize>> {
        value.as_ref().map(toml::Spanned::span)
    }
    [
        ("object", span(&step.object)),
        ("session", span(&step.session)),
        ("token", span(&step.token)),
        ("side", span(&step.side)),
        ("at", span(&step.at)),
        ("size", span(&step.size)),
        ("by", span(&step.by)),
        ("seals", span(&step.seals)),
        ("loop", span(&step.looped)),
        ("time", span(&step.time)),
        ("errno", span(&step.errno)),
    ]
}
