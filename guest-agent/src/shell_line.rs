//! A line of the agent's shell: commands, their words, and where their output goes.
//!
//! Blanks separate words and `;` separates commands. `'` and `"` quote what is between two of them, `\` quotes the next
//! character outside quotes. `> FILE` and `>> FILE` redirect output. `#` at the beginning of a word makes the rest a
//! comment. There are no variables.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// Its name and its arguments; at least one.
    pub words: Vec<String>,
    /// Where its output goes, if not to the console.
    pub output: Option<Output>,
}

/// A file that takes output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its path.
    pub path: String,
    /// Whether the file keeps what it has.
    pub append: bool,
}

/// Why a line is no list of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineError {
    /// A quote has no second one.
    Unclosed(char),
    /// Nothing is after a `>`.
    NoFile,
    /// There is a `>`, but no command before it.
    NoCommand,
    /// A command has two of them.
    TwoFiles,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclosed(quote) => write!(f, "no second {quote} in the line"),
            Self::NoFile => f.write_str("no file after >"),
            Self::NoCommand => f.write_str("no command before >"),
            Self::TwoFiles => f.write_str("more than one > in a command"),
        }
    }
}

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `>`, or `>>` if true.
    Redirect(bool),
    /// `;`.
    End,
}

/// The commands of a line.
pub fn parse(line: &str) -> Result<Vec<Command>, LineError> {
    let mut commands = Vec::new();
    let mut command = Command::default();
    let mut tokens = tokens(line)?.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            Token::Word(word) => command.words.push(word),
            Token::Redirect(append) => {
                let Some(Token::Word(path)) = tokens.next() else {
                    return Err(LineError::NoFile);
                };
                if command.output.replace(Output { path, append }).is_some() {
                    return Err(LineError::TwoFiles);
                }
            }
            Token::End => end(&mut commands, &mut command)?,
        }
    }
    end(&mut commands, &mut command)?;
    Ok(commands)
}

/// Adds a command that is complete, unless it is empty.
fn end(commands: &mut Vec<Command>, command: &mut Command) -> Result<(), LineError> {
    let command = core::mem::take(command);
    match (command.words.is_empty(), &command.output) {
        (false, _) => commands.push(command),
        (true, Some(_)) => return Err(LineError::NoCommand),
        (true, None) => {}
    }
    Ok(())
}

fn tokens(line: &str) -> Result<Vec<Token>, LineError> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next() {
                        Some(next) if next == character => break,
                        Some(next) => word.push(next),
                        None => return Err(LineError::Unclosed(character)),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            '#' if word.is_none() => break,
            ';' | '>' => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(if character == ';' {
                    Token::End
                } else {
                    Token::Redirect(characters.next_if_eq(&'>').is_some())
                });
            }
            blank if blank.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            other => word.get_or_insert_default().push(other),
        }
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;

    /// The commands in a form to compare: words in brackets, then the file.
    fn shown(line: &str) -> String {
        let Ok(commands) = parse(line) else {
            return format!("{:?}", parse(line).unwrap_err());
        };
        let mut text = String::new();
        for command in commands {
            text += &format!("{:?}", command.words);
            if let Some(output) = command.output {
                text += &format!(">{}{}", if output.append { ">" } else { "" }, output.path);
            }
        }
        text
    }

    #[test]
    fn lines_are_split_as_in_other_shells() {
        for (line, expected) in [
            ("", ""),
            ("  # nothing", ""),
            ("echo a  b", r#"["echo", "a", "b"]"#),
            ("echo 'a  b'\"c\" ''", r#"["echo", "a  bc", ""]"#),
            (r"echo a\ b \# c#d", r##"["echo", "a b", "#", "c#d"]"##),
            ("echo 1 >/f;cat /f ; ;", r#"["echo", "1"]>/f["cat", "/f"]"#),
            ("echo 1 >> f 2", r#"["echo", "1", "2"]>>f"#),
            ("echo '>;' # x ; y", r#"["echo", ">;"]"#),
            ("echo 'a", "Unclosed('\\'')"),
            ("echo >", "NoFile"),
            ("echo > ; x", "NoFile"),
            ("> f", "NoCommand"),
            ("a >b >c", "TwoFiles"),
        ] {
            assert_eq!(shown(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_survived_and_no_command_is_empty(line in "(.|[ ;>'\"#\\\\]){0,60}") {
            for command in parse(&line).unwrap_or_default() {
                prop_assert!(!command.words.is_empty());
            }
        }

        #[test]
        fn a_quoted_word_comes_out_as_it_is(word in "[^']{0,20}") {
            let commands = parse(&format!("echo '{word}'")).unwrap();
            prop_assert_eq!(&commands[0].words[1], &word);
        }
    }
}
